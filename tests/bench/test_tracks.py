"""`yolact-bench tracks`: its scores against brute force, and the tracker on true boxes."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from fake_onnx import RUNTIME, runtime_arrays, write_onnx

from yolact.dataset_tools.moving import moving_shapes
from yolact_bench import cli
from yolact_bench.tracks import IdentityScores, measure


def boxes(*columns):
    """One box (x, 0, x + 10, 10) for each x."""
    return np.array([[x, 0, x + 10, 10] for x in columns], np.float32).reshape(-1, 4)


def scores(*frames):
    """The scores of frames of ({identity: x}, {track: x})."""
    result = IdentityScores()
    result.begin()
    for true, found in frames:
        keys = (np.array(list(one), np.int64) for one in (true, found))
        identities, tracks = keys
        result.add(identities, boxes(*true.values()), tracks, boxes(*found.values()))
    return result


def test_scores_by_hand():
    right = scores(*[({1: 0, 2: 50}, {7: 0, 8: 50})] * 4)
    assert (right.idf1, right.switches) == (1, 0)
    # Half of the frames: the tracks change places. Each identity keeps two of its four boxes.
    swapped = scores(*[({1: 0, 2: 50}, {7: 0, 8: 50})] * 2, *[({1: 0, 2: 50}, {8: 0, 7: 50})] * 2)
    assert (swapped.idf1, swapped.switches) == (0.5, 2)
    # Missed in one frame, by another track after it: 2 * 2 / (4 + 3).
    lost = scores(({1: 0}, {7: 0}), ({1: 0}, {7: 0}), ({1: 0}, {}), ({1: 0}, {9: 0}))
    assert (lost.idf1, lost.switches) == (pytest.approx(4 / 7), 1)
    # A third of a box is not enough.
    assert scores(({1: 0}, {7: 5})).idf1 == 0
    assert scores(({}, {})).idf1 == 1
    assert scores(({}, {3: 0})).idf1 == 0


@pytest.mark.parametrize("seed", range(5))
def test_idf1_is_that_of_the_best_of_all_matchings(seed):
    rng = np.random.default_rng(seed)
    frames, together, count = [], np.zeros((3, 4)), 0
    for _ in range(20):
        true = {k: 20 * k for k in range(3) if rng.random() < 0.8}
        places = rng.permutation(4)
        found = {k: 20 * int(places[k]) for k in range(4) if rng.random() < 0.8}
        frames.append((true, found))
        count += len(true) + len(found)
        for one, track in itertools.product(true, found):
            together[one, track] += true[one] == found[track]
    best = max(sum(together[i, p[i]] for i in range(3)) for p in itertools.permutations(range(4), 3))
    assert scores(*frames).idf1 == pytest.approx(2 * best / count)


def test_a_match_that_is_still_right_is_kept():
    # Both overlap; the track of the frame before counts, although the other one fits better.
    crowded = scores(({1: 0}, {7: 0}), ({1: 0}, {7: 2, 8: 0}), ({1: 0}, {7: 0}))
    assert crowded.switches == 0


def test_true_boxes_are_tracked_through_occlusions_and_exits():
    pytest.importorskip("trackers")
    videos = [list(moving_shapes(150, seed=seed, size=(120, 160))) for seed in (1, 2)]
    gaps = 0
    for video in videos:
        shown = [set(frame.identities.tolist()) for frame in video]
        every = set().union(*shown)
        spans = {k: [n for n, some in enumerate(shown) if k in some] for k in every}
        gaps += sum(last[-1] - last[0] + 1 - len(last) for last in spans.values())
        assert len(every) > 4 and any(span[-1] < 140 for span in spans.values())  # some leave
    assert gaps > 10  # frames in which something hides a shape
    figures = measure(videos)
    assert figures.idf1 >= 0.9 and figures.switches_per_100_frames <= 1


def test_the_command(tmp_path, monkeypatch, capsys):
    pytest.importorskip("trackers")
    monkeypatch.chdir(tmp_path)
    shapes = replace(RUNTIME, class_names=("circle", "square", "triangle"), category_ids=(1, 4, 9))
    write_onnx("shapes.onnx", runtime_arrays(), shapes)
    write_onnx("other.onnx", runtime_arrays(), RUNTIME)
    few = ["tracks", "--videos", "1", "--frames", "3"]
    assert cli.main([*few, "--engine", "shapes.onnx:name=ours,threads=1", "--json", "out.json"]) == 0
    assert "ours" in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures) == {"true boxes", "ours"} and figures["true boxes"]["switches"] == 0
    assert cli.main([*few, "--engine", "other.onnx"]) == 2
    assert "other.onnx does not find circle, square, triangle" in capsys.readouterr().err
    assert cli.main(["tracks", "--videos", "0"]) == 2
