"""Requests of a batch are answered as by `Engine.predict`, each on its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
from fake_engine import FakeEngine, Found

from yolact_runtime.engines.load import load_engine
from yolact_runtime.serving.answers import OUTPUTS
from yolact_runtime.serving.service import (
    InstanceService,
    PrepareService,
    Refusal,
    Request,
    ResultService,
)

EVERYTHING = [*OUTPUTS, "engine"]


def picture(shade: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), shade, np.uint8)


def request(image: np.ndarray, outputs: Sequence[str] = EVERYTHING, **parameters: Any) -> Request:
    return Request({"array": image[None]}, json.dumps(parameters), outputs)


def png(image: np.ndarray) -> np.ndarray:
    return np.array([[cv2.imencode(".png", image)[1].tobytes()]], object)


def engine(**more: Any) -> FakeEngine:
    findings = {
        10: [Found((4, 4, 20, 24)), Found((30, 30, 50, 60), 1, 0.5)],
        20: [Found((8, 2, 40, 12), 1, 0.7, 0.6)],
    }
    return FakeEngine(findings, **{"max_batch": 4, **more})


def same(answer: Any, image: np.ndarray, source: FakeEngine, **more: Any) -> None:
    expected = source.predict([image], **more)[0]
    assert [counts.decode() for counts in answer["rles"][0]] == [rle["counts"] for rle in expected.rles]
    for name in ("boxes_float", "relative_boxes", "scores", "mask_scores", "category_ids", "areas"):
        assert np.array_equal(answer[name.removesuffix("_float")][0], getattr(expected, name)), name
    assert answer["size"].tolist() == [[expected.height, expected.width]]


def test_requests_of_one_batch_with_their_own_parameters() -> None:
    source = engine(broken=[99])
    calls: list[int] = []
    detect = source.detect
    source.detect = lambda batch, classes=None: calls.append(len(batch)) or detect(batch)  # type: ignore
    service = InstanceService(source)
    images = [
        picture(10),
        picture(20, 40, 90),
        picture(10),
        picture(10),
        picture(20),
        picture(10),
        picture(3),
    ]
    parameters: list[dict[str, Any]] = [{}, {}, {"top_k": 1}, {"classes": "2"}, {}, {}, {}]
    answers = service.answer([request(image, **more) for image, more in zip(images, parameters, strict=True)])
    assert sorted(calls) == [1, 1, 1, 4]
    calls.clear()
    for answer, image, more in zip(answers, images, parameters, strict=True):
        same(answer, image, source, **({"classes": [2]} if "classes" in more else more))
    assert [len(answer["scores"][0]) for answer in answers] == [2, 1, 1, 1, 1, 2, 0]  # type: ignore[index]
    service.close()


def test_bad_requests_and_a_failing_engine_do_not_affect_others() -> None:
    source = engine(broken=[99])
    service = InstanceService(source)
    bad = Request({"image": np.array([[b"no image"]], object)}, "{}", EVERYTHING)
    requests = [
        request(picture(10)),
        request(picture(99)),
        bad,
        request(picture(20)),
        request(picture(9), top_k=0),
    ]
    answers = service.answer(requests)
    same(answers[0], picture(10), source)
    same(answers[3], picture(20), source)
    assert answers[1] == Refusal("cannot look at shade 99", internal=True)
    assert answers[2] == Refusal("image of the request is damaged or not an image")
    assert isinstance(answers[4], Refusal) and "top_k is 0" in answers[4].reason


def test_an_unexpected_failure_goes_to_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    source = engine()

    def fail(*_: Any) -> None:
        raise RuntimeError("secret\npath")

    source.detect = fail  # type: ignore[method-assign]
    (answer,) = InstanceService(source).answer([request(picture(10))])
    assert answer == Refusal("RuntimeError on the server, whose log has more", internal=True)
    assert "secret" in caplog.text


def test_only_what_is_wanted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_masks(*_: Any) -> None:
        raise AssertionError("masks were computed")

    monkeypatch.setattr("yolact_runtime.masks.box_masks", no_masks)
    service = InstanceService(engine())
    (answer,) = service.answer([request(picture(10), ["scores", "engine"])])
    assert isinstance(answer, dict) and set(answer) == {"scores", "engine"}
    facts = json.loads(answer["engine"][0, 0])
    assert facts["engine"] == "FakeEngine" and set(facts) == {"engine", "precision", "version", "model"}


def test_an_encoded_image_is_read_as_a_file_is() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3), np.uint8)
    service = PrepareService(engine().metadata)
    requests = [Request({"image": png(image)}, "", ()), Request({"array": image[None]}, "", ())]
    encoded, array = service.answer(requests)
    assert isinstance(encoded, dict) and isinstance(array, dict)
    assert np.array_equal(encoded["images"][0], engine().prepare(image))
    assert np.array_equal(encoded["images"], array["images"])
    assert encoded["size"].tolist() == [[40, 50]] and encoded["size"].dtype == np.int32


@pytest.mark.parametrize("detect", ["native", "runtime"])
def test_the_steps_around_a_network_are_the_engine(detect: str, tmp_path: Path) -> None:
    """The network itself runs in ONNX Runtime."""
    pytest.importorskip("onnx")
    from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx

    native = detect == "native"
    arrays, metadata = (native_arrays(), NATIVE) if native else (runtime_arrays(), RUNTIME)
    path = write_onnx(tmp_path / "m.onnx", arrays, metadata)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    source = load_engine(path, backend="onnxruntime", threads=1)
    image = picture(255, 30, 50)
    for more in ({}, {"top_k": 1}, {"classes": "cat"}, {"score_threshold": "0.5"}):
        (step,) = PrepareService(metadata).answer([request(image, (), **more)])
        assert isinstance(step, dict)
        values = dict(zip(names, session.run(names, {"images": step["images"]}), strict=True))
        inputs = {**values, "size": step["size"]}
        (answer,) = ResultService(metadata).answer([Request(inputs, json.dumps(more), EVERYTHING)])
        expected = {key: [value] if key == "classes" else float(value) for key, value in more.items()}
        if "top_k" in expected:
            expected["top_k"] = 1
        same(answer, image, source, **expected)
    source.close()


def test_outputs_of_a_network_that_cannot_be_right() -> None:
    pytest.importorskip("onnx")
    from fake_onnx import NATIVE, native_arrays

    service = ResultService(NATIVE)
    size = np.array([[30, 50]], np.int32)
    wrong = [
        {"count": np.array([2**31 - 1], np.int32)},
        {"classes": np.full((1, 4), 7, np.int32)},
        {"boxes": np.zeros((1, 3, 4), np.float32)},
        {"size": np.array([[-1, 50]], np.int32)},
    ]
    for change in wrong:
        (answer,) = service.answer([Request({**native_arrays(), "size": size, **change}, "", EVERYTHING)])
        assert isinstance(answer, Refusal), change
    infinite = {"boxes": np.full((1, 4, 4), np.inf, np.float32)}
    (answer,) = service.answer([Request({**native_arrays(), "size": size, **infinite}, "", EVERYTHING)])
    assert isinstance(answer, dict) and answer["boxes"].shape == (1, 0, 4)
