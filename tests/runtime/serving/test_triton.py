"""Triton's configuration as options of the engine, and errors as Triton's; the server is not needed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from yolact_runtime.errors import UsageError
from yolact_runtime.serving.triton import InstancesModel, PrepareModel, engine_options


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """As in the server."""


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the server gives to models, as far as they use it."""

    def response(output_tensors: Any = None, error: Any = None) -> SimpleNamespace:
        return SimpleNamespace(tensors=dict(output_tensors or []), error=error)

    class TritonError(SimpleNamespace):
        INTERNAL, INVALID_ARG = "internal", "invalid"

        def __init__(self, message: str, code: str) -> None:
            super().__init__(message=message, code=code)

    module = SimpleNamespace(
        TritonModelException=TritonModelException,
        TritonError=TritonError,
        InferenceResponse=response,
        Tensor=lambda name, array: (name, array),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)  # type: ignore[arg-type]
    return module


def config(**parameters: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}


def arguments(folder: Path, **parameters: str) -> dict[str, str]:
    text = json.dumps(config(**{"yolact_api": "1", **parameters}))
    return {"model_config": text, "model_repository": str(folder), "model_version": "1"}


def test_options_of_the_engine() -> None:
    assert engine_options({}) == {}
    given = config(yolact="{}", engine_backend="auto", engine_precision="", FORCE_CPU_ONLY_INPUT_TENSORS="no")
    assert engine_options(given) == {}
    given = config(engine_backend="openvino", engine_threads="3", engine_providers="cuda:1, cpu")
    assert engine_options(given) == {"backend": "openvino", "threads": 3, "providers": ["cuda:1", "cpu"]}
    with pytest.raises(UsageError, match="engine_threads is '-1'; a whole number or auto is needed"):
        engine_options(config(engine_threads="-1"))
    with pytest.raises(UsageError, match="unknown parameter engine_thread; near ones: engine_threads"):
        engine_options(config(engine_thread="1"))


@pytest.mark.parametrize(
    "model, parameters, words",
    [
        (InstancesModel, {}, "has none of model.onnx, model.engine"),
        (PrepareModel, {}, "metadata.json does not exist"),
        (PrepareModel, {"yolact_api": "2"}, "has version 2 of the inputs and outputs"),
    ],
)
def test_a_model_that_cannot_be_opened(
    backend: Any, tmp_path: Path, model: Any, parameters: dict[str, str], words: str
) -> None:
    with pytest.raises(TritonModelException, match=words) as error:
        model().initialize(arguments(tmp_path, **parameters))
    assert "\n" not in str(error.value)


def test_requests_that_cannot_be_read_do_not_affect_others(backend: Any, tmp_path: Path) -> None:
    onnx_files = pytest.importorskip("fake_onnx")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "metadata.json").write_text(json.dumps(onnx_files.NATIVE.to_props()))
    model = PrepareModel()
    model.initialize(arguments(tmp_path))

    def no_text() -> str:
        return b"\xff".decode()

    image = np.zeros((1, 9, 9, 3), np.uint8)
    tensor = SimpleNamespace(name=lambda: "array", as_numpy=lambda: image)
    good = SimpleNamespace(
        inputs=lambda: [tensor], parameters=lambda: "{}", requested_output_names=lambda: ["images"]
    )
    bad = SimpleNamespace(**{**vars(good), "parameters": no_text})
    responses = model.execute([bad, good])
    assert responses[0].error.message == "the request has a parameter that is not UTF-8"
    assert responses[0].error.code == "invalid"
    assert responses[1].error is None and responses[1].tensors["images"].shape == (1, 16, 16, 3)
    model.finalize()
