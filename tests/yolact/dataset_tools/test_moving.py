"""Synthetic videos of moving shapes."""

import numpy as np
import pytest

from yolact.dataset_tools.moving import moving_shapes
from yolact_runtime.errors import UsageError


def clip(frames=60, **more):
    return list(moving_shapes(frames, **{"size": (96, 128), **more}))


def test_the_same_arguments_give_the_same_frames():
    one, other = clip(10, seed=3), clip(10, seed=3)
    for frame, again in zip(one, other, strict=True):
        assert (frame.image == again.image).all() and (frame.boxes == again.boxes).all()
    assert any((a.image != b.image).any() for a, b in zip(one, clip(10, seed=4), strict=True))


def test_boxes_are_around_what_moved():
    frames = clip(40, seed=1, shapes=1)
    background = np.median([frame.image for frame in frames], axis=0)
    seen = 0
    for frame in frames:
        different = np.abs(frame.image - background).max(axis=2) > 60
        if len(frame.boxes) != 1 or different.sum() < 300:
            continue
        y, x = np.nonzero(different)
        box = np.array([*np.percentile(x, (1, 99)), *np.percentile(y, (1, 99))])[[0, 2, 1, 3]]
        seen += np.abs(box - frame.boxes[0]).max() < 12
    assert seen > 10


def test_shapes_move_a_little_and_never_return():
    frames, last = clip(200, seed=2), {}
    for index, frame in enumerate(frames):
        assert (frame.boxes[:, :2] >= 0).all() and (frame.boxes[:, 2:] <= [128, 96]).all()
        assert len(set(frame.identities.tolist())) == len(frame.identities) <= 4
        for identity, label, box in zip(frame.identities.tolist(), frame.labels, frame.boxes, strict=True):
            if identity in last:
                before, known, old = last[identity]
                assert known == label
                if before == index - 1:
                    assert np.abs(old[[0, 2]].mean() - box[[0, 2]].mean()) < 20
            last[identity] = index, label, box
    assert len(last) > 4
    np.testing.assert_allclose([frame.time for frame in frames[:3]], [0, 1 / 30, 2 / 30])


def test_speed_is_in_seconds():
    slow, fast = clip(31, shapes=1, frame_rate=15)[-1], clip(61, shapes=1, frame_rate=30)[-1]
    assert slow.time == fast.time == 2


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"shapes": 0}, {"size": (20, 100)}, {"frame_rate": 0}])
def test_arguments_out_of_range(wrong):
    with pytest.raises(UsageError, match="moving shapes"):
        list(moving_shapes(**wrong))
