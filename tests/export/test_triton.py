"""The server's configuration, read back with its own schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_onnx import NATIVE, RUNTIME, native_arrays, runtime_arrays, write_onnx

from yolact_export.triton.options import TritonOptions
from yolact_export.triton.repository import write_repository
from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256, write_json

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
from google.protobuf import text_format  # noqa: E402


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def test_each_class_name_has_one_line(tmp_path: Path) -> None:
    """Labels are numbered by their lines; a name may be anything that an annotation file has."""
    names = ("circle\nfake", "a\r\n\u2028b\x85", "half", "")
    metadata = dataclasses.replace(NATIVE, class_names=names, category_ids=(1, 2, 3, 4))
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), metadata)
    folder = write_repository(path, tmp_path / "repository", "names")
    expected = ["circle\\nfake", "a\\r\\n\\u2028b\\x85", "half", ""]
    assert (folder / "labels.txt").read_text("utf-8").splitlines() == expected
    assert read(folder).name == "names"


def test_models_that_do_not_match_their_metadata(tmp_path: Path) -> None:
    kinds = {**native_arrays(), "boxes": native_arrays()["boxes"].astype(np.float64)}
    fewer = {name: array for name, array in native_arrays().items() if name != "boxes"}
    for arrays, message in ((kinds, "boxes is in double"), (fewer, "lacks the outputs boxes")):
        path = write_onnx(tmp_path / "m.onnx", arrays, NATIVE)
        with pytest.raises(YolactError, match=message):
            write_repository(path, tmp_path / "repository", "names")


@pytest.mark.parametrize("options", [{"instances": 10**10}, {"queue_delay_us": 1 << 70}])
def test_numbers_that_no_server_takes(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="allowed: "):
        TritonOptions(**options)


def test_a_name_that_no_folder_can_have(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="up to 200 letters"):
        write_repository(model, tmp_path / "repository", "x" * 300)


def read(folder: Path) -> schema.ModelConfig:
    """The configuration; parsing fails on a field or a value that the schema does not have."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def shapes(tensors: Any) -> dict[str, tuple[int, list[int]]]:
    return {tensor.name: (tensor.data_type, list(tensor.dims)) for tensor in tensors}


def test_a_model_with_dynamic_batches(model: Path, tmp_path: Path) -> None:
    options = TritonOptions(instances=2, queue_delay_us=500)
    folder = write_repository(model, tmp_path / "repository", "cats", options)
    assert folder == tmp_path / "repository" / "cats"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text() == "cat\ndog\nbird\n"
    config = read(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("cats", "onnxruntime", 3)
    assert shapes(config.input) == {"images": (schema.TYPE_UINT8, [16, 16, 3])}
    assert shapes(config.output) == {
        "count": (schema.TYPE_INT32, [1]),
        "boxes": (schema.TYPE_FP32, [4, 4]),
        "scores": (schema.TYPE_FP32, [4]),
        "classes": (schema.TYPE_INT32, [4]),
        "coefficients": (schema.TYPE_FP32, [4, 2]),
        "prototypes": (schema.TYPE_FP32, [8, 8, 2]),
    }
    reshaped = {
        output.name: list(output.reshape.shape) for output in config.output if output.HasField("reshape")
    }
    assert reshaped == {"count": []}
    assert {output.name: output.label_filename for output in config.output}["classes"] == "labels.txt"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, schema.ModelInstanceGroup.KIND_AUTO)
    ]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 3]
    assert list(config.model_warmup[0].inputs["images"].dims) == [16, 16, 3]
    assert json.loads(config.parameters["yolact"].string_value)["category_ids"] == [0, 7, 90]
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["cats"]


@pytest.mark.parametrize("plugin", [False, True])
def test_an_engine_with_a_fixed_batch(plugin: bool, tmp_path: Path) -> None:
    fixed = dataclasses.replace(RUNTIME, min_batch=1, max_batch=1)
    source = write_onnx(tmp_path / "m.onnx", runtime_arrays(), fixed)
    graph = onnx.load(source)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(graph, source)
    engine = tmp_path / "m.engine"
    engine.write_bytes(b"an engine")
    record = EngineRecord(
        *("tensorrt", "11.4.0", ("8.6",), "a GPU", "13.0", (1, 1, 1), {"fp32": 3}, "network"),
        *(sha256(engine), engine.stat().st_size, "m.onnx"),
        plugin=plugin,
    )
    detects = dataclasses.replace(fixed, detect="native", priors=None) if plugin else fixed
    write_json(record_path(engine), to_json(detects, record))
    config = read(write_repository(engine, tmp_path / "repository", "cats"))
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    # The server forms no batches, so shapes include the batch.
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert shapes(config.input) == {"images": (schema.TYPE_UINT8, [1, 16, 16, 3])}
    (warm_up,) = config.model_warmup
    assert (warm_up.batch_size, list(warm_up.inputs["images"].dims)) == (1, [1, 16, 16, 3])
    found = shapes(config.output)
    if plugin:
        assert found["count"] == (schema.TYPE_INT32, [1])
        assert found["coefficients"] == (schema.TYPE_FP32, [1, 4, 2])
    else:
        assert set(found) == {"loc", "logits", "coefficients", "prototypes"}
        assert found["loc"] == (schema.TYPE_FP32, [1, 4, 4])


def test_an_engine_of_another_library(model: Path, tmp_path: Path) -> None:
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"an engine")
    record = EngineRecord(
        *("tensorrt_rtx", "1.7.1", ("8.6",), "", "", (1, 3, 3), {"fp32": 3}, "network"),
        *(sha256(engine), engine.stat().st_size, "m.onnx"),
    )
    write_json(record_path(engine), to_json(NATIVE, record))
    with pytest.raises(UsageError, match=r"Triton runs TensorRT engines: give m\.onnx"):
        write_repository(engine, tmp_path / "repository", "cats")


def test_an_engine_that_is_not_what_its_json_says(model: Path, tmp_path: Path) -> None:
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"an engine")
    with pytest.raises(YolactError, match=r"m\.engine\.json is missing"):
        write_repository(engine, tmp_path / "repository", "cats")
    assert not (tmp_path / "repository").exists()


def test_wrong_use_leaves_nothing(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with pytest.raises(UsageError, match="model name 'a/b'"):
        write_repository(model, repository, "a/b")
    with pytest.raises(UsageError, match="Triton takes"):
        write_repository(model.with_suffix(".pth"), repository, "cats")
    with pytest.raises(UsageError, match="--triton-instances 0"):
        TritonOptions(instances=0)
    with pytest.raises(UsageError, match="--triton-queue-delay -1"):
        TritonOptions(queue_delay_us=-1)
    with pytest.raises(YolactError, match=r"gone\.onnx"):
        write_repository(tmp_path / "gone.onnx", repository, "cats")
    assert not repository.exists()
    write_repository(model, repository, "cats")
    with pytest.raises(YolactError, match="exists; delete it"):
        write_repository(model, repository, "cats")
