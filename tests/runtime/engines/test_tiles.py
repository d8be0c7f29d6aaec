"""Large images in tiles: every object is found exactly once, wherever the seams are."""

import itertools
import logging
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from exact_engine import ExactEngine, region_of
from fake_engine import FakeEngine, Found, write_image

from yolact_runtime import YolactError, masks, tiled
from yolact_runtime.engines.tiles.merge import View, merge
from yolact_runtime.engines.tiles.windows import Window, windows
from yolact_runtime.errors import UsageError
from yolact_runtime.frames import Frame, Sink, Source
from yolact_runtime.pipeline import PipelineSettings, run_pipeline

TILE, OVERLAP = 64, 0.25  # neighbours share at least 16 pixels


class Scene:
    """A black image on which objects are put, each a value of its own; later ones hide earlier ones."""

    def __init__(self, height=112, width=112):
        self.image = np.zeros((height, width, 3), np.uint8)
        self.count = 0

    def add(self, draw, label=0, score=90):
        """Number of the object of the pixels that `draw` sets in the (H, W) uint8 that it gets."""
        self.count += 1
        mask = np.zeros(self.image.shape[:2], np.uint8)
        draw(mask)
        self.image[mask > 0] = (self.count, label, score)
        return self.count

    def disc(self, x, y, diameter, **about):
        radius = (diameter - 1) // 2
        return self.add(lambda mask: cv2.circle(mask, (x, y), radius, 1, -1), **about)

    def line(self, start, end, width=3, **about):
        return self.add(lambda mask: cv2.line(mask, start, end, 1, width), **about)

    def box(self, x, y, width, height, **about):
        def fill(mask):
            mask[y : y + height, x : x + width] = 1

        return self.add(fill, **about)


def check(scene, result):
    """Each object is found once, with its mask, box, class and score."""
    assert len(result) == scene.count
    found = masks.full_masks(result.regions, result.height, result.width)
    numbers = [int(scene.image[..., 0][mask][0]) for mask in found]
    assert sorted(numbers) == list(range(1, scene.count + 1))
    for number, mask, box, label, score in zip(
        numbers, found, result.boxes_float, result.classes, result.scores, strict=True
    ):
        np.testing.assert_array_equal(mask, scene.image[..., 0] == number)
        y, x = np.nonzero(mask)
        np.testing.assert_allclose(box, [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1e-3)
        assert (label, round(100 * float(score))) == tuple(scene.image[y[0], x[0], 1:].tolist())
    assert (np.diff(result.scores) <= 0).all()


def run(scene, overlap=OVERLAP, full=False, engine=None, **limits):
    engine = engine or ExactEngine()
    options = {"score_threshold": 0.1, "top_k": 1000, **limits}
    return tiled(engine, TILE, overlap, full).predict([scene.image], **options)[0]


# Objects that no tile sees whole are found as one, too: 31 pixels are more than neighbours share.
@pytest.mark.parametrize("diameter", [5, 15, 31])
@pytest.mark.parametrize("changed", [None, (1, 0.8)])
def test_objects_at_all_positions_are_found_once(diameter, changed):
    """Also if tiles take what they cut off for another class, as long as some tile sees an object whole."""
    if changed and diameter > 15:
        pytest.skip("objects that no tile sees whole")
    phases = range(0, diameter + 4, 2 if diameter < 9 else 4)
    for right, down in itertools.product(phases, phases):
        scene = Scene()
        first = diameter // 2 + 1
        centres = range(first, 113 - first - max(phases), diameter + 4)
        for x, y in itertools.islice(itertools.product(centres, centres), 255):
            scene.disc(x + right, y + down, diameter)
        check(scene, run(scene, engine=ExactEngine(changed=changed)))


@pytest.mark.parametrize("overlap", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("full", [False, True])
def test_overlaps_and_the_whole_image(overlap, full):
    scene = Scene(105, 150)
    for number, (x, y) in enumerate(itertools.product(range(8, 143, 14), range(8, 98, 14))):
        scene.disc(x, y, 5 + number % 3, label=number % 2, score=40 + number % 50)
    check(scene, run(scene, overlap, full))


@pytest.mark.parametrize("full", [False, True])
def test_long_objects_are_united_along_all_their_tiles(full):
    scene = Scene(160, 160)
    scene.line((5, 150), (150, 140))
    scene.line((10, 5), (30, 120))
    scene.box(60, 5, 95, 100)  # larger than a tile
    check(scene, run(scene, full=full))


def test_thin_objects_that_cross_on_a_seam_both_stay():
    """Their boxes are the same."""
    scene = Scene(160, 160)
    scene.line((30, 30), (70, 70), score=90)
    scene.line((70, 30), (30, 70), score=80)
    result = run(scene)
    assert len(result) == 2
    assert [int(scene.image[..., 0][mask][0]) for mask in result.masks] == [1, 2]


def test_neighbours_of_one_class_and_small_things_on_large_ones_stay():
    scene = Scene(160, 160)
    scene.box(40, 20, 14, 60)
    scene.box(54, 20, 14, 60)  # touches the one above
    scene.box(20, 100, 100, 50)
    scene.disc(56, 120, 9, score=50)
    check(scene, run(scene))


def test_a_part_with_a_better_score_gives_way_to_the_whole():
    scene = Scene()
    scene.disc(52, 30, 13, score=50)
    (result,) = tiled(ExactEngine(changed=(0, 1.8)), TILE, OVERLAP, False).predict([scene.image], 0.1)
    assert len(result) == 1 and result.areas.tolist() == [(scene.image[..., 0] == 1).sum()]
    assert result.scores[0] == pytest.approx(0.9)


def test_one_object_that_tiles_take_for_two_classes_has_the_better_one():
    """Two classes of one tile stay: the network's own suppression has let them."""
    disc = region_of(cv2.circle(np.zeros((64, 112), np.uint8), (56, 30), 6, 1, -1) > 0)
    tiles = [Window(0, 0, 64, 64), Window(48, 0, 112, 64)]
    views = [
        View(tile, score, score, label, (50, 24, 63, 37), disc, cut=False)
        for tile, label, score in ((0, 0, 0.8), (0, 1, 0.3), (1, 1, 0.7), (1, 0, 0.2))
    ]
    assert merge(views, tiles) == views[:2]
    assert merge(views[2:], tiles) == views[2:]


def test_without_overlap_an_object_on_a_seam_is_two():
    scene = Scene(64, 128)
    scene.box(50, 10, 28, 20)
    result = run(scene, overlap=0)
    assert sorted(result.areas.tolist()) == [14 * 20, 14 * 20]


@pytest.mark.parametrize(("height", "width"), [(160, 160), (64, 65), (65, 64), (20, 500), (1000, 333)])
@pytest.mark.parametrize("overlap", [0, 0.2, 0.5, 0.9])
def test_tiles_cover_the_image_and_have_one_size(height, width, overlap):
    cut = windows(height, width, (TILE, TILE), overlap)
    seen = np.zeros((height, width), int)
    for left, top, right, bottom in cut:
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
        assert (bottom - top, right - left) == (min(TILE, height), min(TILE, width))
        seen[top:bottom, left:right] += 1
    assert seen.min() == 1 or overlap
    assert seen.all()
    for starts in ({window.left for window in cut}, {window.top for window in cut}):
        assert np.diff(sorted(starts)).max(initial=0) <= TILE - round(TILE * overlap)


def test_tiles_fill_batches_over_all_images_of_a_call():
    """The results do not depend on the batch, also where all scores are equal."""
    scenes = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scenes.append(Scene(160, 160))
        for x, y in rng.permutation(list(itertools.product(range(10, 150, 20), range(10, 150, 20)))).tolist():
            scenes[-1].disc(x, y, 13)
    small = Scene(30, 30)
    small.disc(15, 15, 9)
    images = [scenes[0].image, small.image, scenes[1].image, scenes[2].image]
    expected = None
    for batch in (1, 4, 7, 64):
        engine = ExactEngine(batch)
        results = tiled(engine, TILE, OVERLAP, full=False).predict(images, top_k=11)
        assert [len(result) for result in results] == [11, 1, 11, 11]
        tuples = [(result.rles, result.relative_boxes.tolist()) for result in results]
        expected = expected or tuples
        assert tuples == expected
        assert engine.sizes == {(TILE, TILE), (30, 30)}
        if batch >= 4:
            assert engine.shown == [1, *[batch] * (27 // batch), *([27 % batch] if 27 % batch else [])]


def test_an_image_that_fits_goes_through_as_it_is():
    fake = FakeEngine({7: [Found((3, 4, 20, 30)), Found((30, 4, 50, 60), 1, 0.5)]})
    image = np.full((64, 50, 3), 7, np.uint8)
    wrapped = tiled(fake, 64)
    np.testing.assert_array_equal(wrapped.prepare(image), fake.prepare(image))
    (plain,), (result,) = fake.predict([image]), wrapped.predict([image])
    for name in ("relative_boxes", "scores", "mask_scores", "classes", "coefficients", "prototypes"):
        np.testing.assert_array_equal(getattr(result, name), getattr(plain, name))
    assert result.rles == plain.rles and result.contours is None


def test_masks_of_a_network_are_moved_to_their_place():
    """The tile with the shade that FakeEngine looks for: its mask is the image's, moved."""
    fake = FakeEngine({7: [Found((20, 10, 40, 30))]})
    image = np.zeros((64, 128, 3), np.uint8)
    image[:2, 64:66] = 7
    (result,) = tiled(fake, 64, 0, False).predict([image])
    (alone,) = fake.predict([image[:, 64:]])
    np.testing.assert_array_equal(result.masks[0, :, 64:], alone.masks[0])
    assert not result.masks[0, :, :64].any()
    np.testing.assert_allclose(result.boxes_float, alone.boxes_float + np.array([64, 0, 64, 0]), atol=1e-4)
    assert result.to_coco(3)[0]["category_id"] == 1
    assert result.draw(image).shape == image.shape


def test_classes_are_filtered_before_top_k():
    scene = Scene(160, 160)
    for number, x in enumerate(range(10, 150, 14)):
        scene.disc(x, 60, 11, label=number % 2, score=90 - number)
    result = run(scene, top_k=3, classes=["b"])
    assert result.names == ["b"] * 3 and len(result) == 3
    np.testing.assert_allclose(result.scores, [0.89, 0.87, 0.85], atol=1e-6)
    with pytest.raises(UsageError, match="dog"):
        run(scene, classes=["dog"])


def test_the_tiles_of_a_wide_network_are_wide():
    engine = ExactEngine()
    object.__setattr__(engine.metadata, "input_size", (24, 32))
    scene = Scene(160, 160)
    scene.disc(60, 60, 11)
    check(scene, run(scene, engine=engine))
    assert engine.sizes == {(48, 64)}


def test_everything_else_is_the_engine_itself():
    engine = ExactEngine()
    engine.streams, engine.threads, engine.path = 3, 2, Path("m.onnx")
    with tiled(engine) as wrapped:
        assert (wrapped.streams, wrapped.threads, wrapped.path) == (3, 2, engine.path)
        assert wrapped.metadata is engine.metadata and wrapped.precision == engine.precision
        assert wrapped.name == "ExactEngine, tiles of 640 x 640"
        wrapped.stage_timer = timer = lambda stage: None
        assert engine.stage_timer is timer is wrapped.stage_timer
    assert engine.closed


def test_closing_waits_for_the_batch_under_way_and_runs_no_more_tiles():
    started, go_on, errors = threading.Event(), threading.Event(), []

    class Slow(ExactEngine):
        def predict_prepared(self, *arguments):
            started.set()
            assert go_on.wait(10) and not self.closed
            return super().predict_prepared(*arguments)

    def predict():
        with pytest.raises(YolactError) as error:
            engine.predict([Scene().image])
        errors.append(str(error.value))

    slow = Slow(max_batch=1)
    engine = tiled(slow, TILE)
    caller = threading.Thread(target=predict)
    caller.start()
    assert started.wait(10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    while not engine._closed:
        time.sleep(0.001)
    assert not slow.closed
    go_on.set()
    caller.join(10)
    closer.join(10)
    assert slow.closed and len(slow.shown) == 1
    assert errors == ["the engine was closed before all tiles were run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((31,), "tile is 31"), ((64.5,), "tile is 64.5"), ((70_000,), "YOLACT_MAX_SIDE"),
        ((640, 1.0), r"overlap is 1.0; it must be in 0..0.9"), ((640, float("nan")), "overlap is nan"),
    ],
)  # fmt: skip
def test_values_out_of_range(arguments, message):
    with pytest.raises(UsageError, match=message):
        tiled(ExactEngine(), *arguments)


class Images(Source):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        for index, image in enumerate(self.images):
            yield Frame(index, f"{index}.png", Path(f"{index}.png"), lambda image=image: image)


class Count(Sink):
    def __init__(self):
        self.found = []

    def write(self, frame, prepared):
        self.found.append(len(prepared))

    def fail(self, frame, error):
        self.found.append(error)


def test_a_tile_that_fails_loses_its_image_only(caplog):
    scenes = [Scene(160, 160) for _ in range(3)]
    for scene in scenes:
        for x in range(10, 150, 20):
            scene.disc(x, 140, 13)
    scenes[1].disc(80, 80, 9)  # object 8
    sink = Count()
    engine = tiled(ExactEngine(broken=8), TILE, OVERLAP)
    with caplog.at_level(logging.CRITICAL):
        stats = run_pipeline(
            Images([s.image for s in scenes]), engine, [sink], PipelineSettings(batch_size=3)
        )
    assert sink.found == [7, "1.png: cannot look at object 8", 7]
    assert (stats.done, stats.failed) == (2, 1)
    with pytest.raises(YolactError, match="object 8"):
        engine.predict([scenes[1].image])


def test_the_command(tmp_path, monkeypatch, capsys):
    from fake_onnx import NATIVE, native_arrays, write_onnx

    from yolact_runtime import cli

    monkeypatch.chdir(tmp_path)
    write_onnx("m.onnx", native_arrays(), NATIVE)
    write_image(Path("a.png"), 255, 60, 100)
    command = ["--engine", "m.onnx", "--threads", "1", "a.png", "--json", "r.json", "--jsonl", "r.jsonl"]
    assert cli.main([*command, "--tile", "40", "--tile-overlap", "0.1", "--tile-full", "--top-k", "50"]) == 0
    assert "1 image" in capsys.readouterr().out
    assert cv2.imread("results/overlays/a.png").shape == (60, 100, 3)
    for wrong, message in (
        (["--tile-overlap", "0.3"], "--tile PIXELS"), (["--tile-full"], "--tile PIXELS"),
        (["--tile", "7"], "32 or more"), (["--tile", "64", "--tile-overlap", "-1"], "0..0.9"),
    ):  # fmt: skip
        assert cli.main([*command, *wrong]) == 2
        assert message in capsys.readouterr().err
