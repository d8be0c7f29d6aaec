import dataclasses

import numpy as np
import pytest
from fake_onnx import BOXES, CLASSES, NATIVE, SCORES, native_arrays, write_onnx

from yolact_runtime import Detections, Engine, YolactError, load_engine
from yolact_runtime.engines import load as engine
from yolact_runtime.errors import UsageError

WHITE = np.full((20, 30, 3), 255, np.uint8)


class Fake(Engine):
    """Returns the known detections for every image, changed by the test."""

    def __init__(self, metadata=NATIVE, **changes):
        self.metadata = metadata
        self.changes = changes
        self.sizes = []

    def detect(self, batch, classes=None):
        self.sizes.append(len(batch))
        assert batch.shape[1:] == (16, 16, 3) and batch.dtype == self.metadata.input_dtype
        arrays = native_arrays()
        arrays |= {"mask_scores": arrays["scores"]} | self.changes
        return Detections(**{key: np.repeat(value, len(batch), axis=0) for key, value in arrays.items()})


def test_it_finds_what_the_backend_finds():
    (result,) = Fake().predict([WHITE])
    np.testing.assert_array_equal(result.relative_boxes, BOXES)
    np.testing.assert_array_equal(result.scores, SCORES)
    np.testing.assert_array_equal(result.classes, CLASSES)
    assert result.names == ["dog", "cat"] and result.category_ids.tolist() == [7, 0]
    assert (result.height, result.width, len(result)) == (20, 30, 2)


def test_threshold_and_limit():
    fake = Fake()
    assert len(fake.predict([WHITE], score_threshold=0.3)[0]) == 1  # a score must exceed it
    assert len(fake.predict([WHITE], score_threshold=0.0)[0]) == 2
    assert len(fake.predict([WHITE], score_threshold=1.0)[0]) == 0
    assert fake.predict([WHITE], top_k=1)[0].names == ["dog"]
    for wrong in (
        {"score_threshold": 1.1},
        {"score_threshold": float("nan")},
        {"top_k": 0},
        {"top_k": 3.0},
        {"top_k": "3"},
        {"score_threshold": None},
    ):
        with pytest.raises(UsageError):
            fake.predict([WHITE], **wrong)


def test_images_are_cut_into_batches_of_what_the_engine_takes():
    fake = Fake()
    assert fake.predict([]) == []
    assert len(fake.predict([WHITE] * 7)) == 7
    assert fake.sizes == [3, 3, 1]
    fixed = Fake(dataclasses.replace(NATIVE, min_batch=3, input_dtype="float32"))
    assert len(fixed.predict([WHITE] * 4)) == 4
    assert fixed.sizes == [3, 3]


@pytest.mark.parametrize(("reused", "images"), [(True, 1), (True, 2), (False, 1), (False, 2)])
def test_results_are_copied_where_the_engine_reuses_its_outputs(reused, images):
    fake = Fake()
    fake.reuses_outputs = reused
    found = fake.detect(np.zeros((images, 16, 16, 3), np.uint8))
    fake.detect = lambda batch: found
    results = fake.predict([WHITE] * images)
    for array in found:
        array[:] = 0  # as the next call would
    for result in results:
        np.testing.assert_array_equal(result.relative_boxes, BOXES)
        np.testing.assert_array_equal(result.scores, SCORES)
        # Of a batch nothing is shared, or one result would keep the memory of all.
        shared = not reused and images == 1
        assert (result.prototypes == (0 if shared else 3)).all()


def test_an_image_of_the_right_size_is_not_copied():
    image = np.full((16, 16, 3), 7, np.uint8)
    fake = Fake()
    assert fake.prepare(image) is image
    assert fake.prepare(image[:8]) is not image and fake.prepare(image[:8]).shape == (16, 16, 3)
    in_float = Fake(dataclasses.replace(NATIVE, input_dtype="float32"))
    assert in_float.prepare(image).dtype == np.float32


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        [[1, 2, 3]],
        None,
    ],
)
def test_other_things_than_images_are_refused(image):
    with pytest.raises(YolactError, match=r"^image 1 is "):
        Fake().predict([WHITE, image])


@pytest.mark.parametrize("size", [(1, 1), (8000, 50), (1, 900)])
def test_images_of_any_size(size):
    image = np.full((*size, 3), 7, np.uint8)
    (result,) = Fake().predict([image])
    assert result.masks.shape == (2, *size)
    assert (image == 7).all()
    assert len(result.to_coco(1)) == len(result.to_coco(1, polygons=True)) == 2
    assert result.draw(image).shape == image.shape


def test_no_detection_is_a_result():
    (result,) = Fake(count=np.zeros(1, np.int32)).predict([WHITE])
    assert len(result) == 0 and result.masks.shape == (0, 20, 30)
    assert result.boxes.shape == (0, 4) and result.to_coco(1) == result.rles == result.names == []
    np.testing.assert_array_equal(result.draw(WHITE), WHITE)


def test_opening_by_path(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    with load_engine(str(path), backend="onnxruntime", threads=1) as fake:
        assert fake.metadata == NATIVE and fake.name.startswith("ONNX Runtime")
    with pytest.raises(UsageError, match=r"'config' does not apply to a \.onnx engine; it takes providers"):
        load_engine(path, config="x")
    with pytest.raises(YolactError, match=r"none\.onnx does not exist"):
        load_engine(tmp_path / "none.onnx")
    other = tmp_path / "model.tflite"
    other.touch()
    with pytest.raises(YolactError, match=r"unknown suffix '\.tflite'; known are .*\.onnx"):
        load_engine(other)


def test_names_and_missing_packages(tmp_path, monkeypatch):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    real = engine.entry_points("engines")

    class Point:
        def __init__(self, name, found):
            self.name, self.found = name, found

        def load(self):
            if self.found is None:
                raise ModuleNotFoundError("No module named 'torch'", name="torch")
            return self.found

    names = {"published": Point("published", {"tiny": path}.__getitem__)}
    points = {"engines": {**real, "weights": Point("weights", None)}, "names": names}
    monkeypatch.setattr(engine, "entry_points", lambda group: points[group])
    assert load_engine("tiny").metadata == NATIVE
    checkpoint = tmp_path / "x.weights"
    checkpoint.touch()
    names["published"].found = None
    for source in (checkpoint, "tiny"):
        with pytest.raises(YolactError, match=r"no module 'torch'.*pip install \"yolact\[train\]\""):
            load_engine(source)
    names.clear()
    with pytest.raises(YolactError, match="engine tiny does not exist"):
        load_engine("tiny")


def test_classes_are_chosen_before_the_limit():
    fake = Fake()
    (result,) = fake.predict([WHITE], top_k=1, classes=["cat"])
    assert result.names == ["cat"] and result.scores.tolist() == [SCORES[1]]
    for wanted, names in ((None, ["dog", "cat"]), ([7, 0], ["dog", "cat"]), ("dog", ["dog"]), ([90], [])):
        assert fake.predict([WHITE], classes=wanted)[0].names == names
    assert fake.class_indices(["7", "cat"]) == {0, 1}
    with pytest.raises(UsageError, match=r"classes: there is no class 'dogs'; near ones: dog"):
        fake.predict([WHITE], classes=["dogs"])


class Raw(Fake):
    """Knows what it was asked for, as engines that detect from raw heads."""

    def detect(self, batch, classes=None):
        self.asked = classes
        return super().detect(batch)


def test_engines_are_told_the_classes():
    raw = Raw()
    raw.predict([WHITE], classes=["dog", 0])
    assert raw.asked == {0, 1}
    raw.predict([WHITE])
    assert raw.asked is None


def test_the_former_option_says_what_it_is_now(tmp_path):
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)
    with pytest.raises(UsageError, match=r"option 'classes' .*class_names, and .*predict\(classes=\.\.\.\)"):
        load_engine(path, classes="cat,dog")
