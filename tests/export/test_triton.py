"""The server's configuration, read back with its own schema."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_export.triton import TensorSpec, TritonOptions, write_repository
from yolact_runtime.errors import UsageError, YolactError

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
from google.protobuf import text_format  # noqa: E402

INPUTS = [TensorSpec("images", "uint8", (None, 16, 16, 3))]
OUTPUTS = [
    TensorSpec("count", "int32", (None,)),
    TensorSpec("boxes", "float32", (None, 4, 4)),
    TensorSpec("classes", "int32", (None, 4)),
    TensorSpec("prototypes", "float16", (None, 8, 8, 2)),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def read(folder: Path) -> schema.ModelConfig:
    """The configuration; parsing fails on a field or a value that the schema does not have."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), schema.ModelConfig())


def test_a_model_with_dynamic_batches(model: Path, tmp_path: Path) -> None:
    options = TritonOptions(instances=2, queue_delay_us=500)
    folder = write_repository(model, NATIVE, (INPUTS, OUTPUTS), tmp_path / "repository", "cats", options)
    assert folder == tmp_path / "repository" / "cats"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text() == "cat\ndog\nbird\n"
    config = read(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("cats", "onnxruntime", 3)
    (images,) = config.input
    assert (images.name, images.data_type, list(images.dims)) == ("images", schema.TYPE_UINT8, [16, 16, 3])
    kinds = {output.name: (output.data_type, list(output.dims)) for output in config.output}
    assert kinds == {
        "count": (schema.TYPE_INT32, []),
        "boxes": (schema.TYPE_FP32, [4, 4]),
        "classes": (schema.TYPE_INT32, [4]),
        "prototypes": (schema.TYPE_FP16, [8, 8, 2]),
    }
    assert {output.name: output.label_filename for output in config.output}["classes"] == "labels.txt"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, schema.ModelInstanceGroup.KIND_AUTO)
    ]
    assert [warm.batch_size for warm in config.model_warmup] == [1, 3]
    assert list(config.model_warmup[0].inputs["images"].dims) == [16, 16, 3]
    assert json.loads(config.parameters["yolact"].string_value)["category_ids"] == [0, 7, 90]
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["cats"]


def test_a_fixed_batch_is_part_of_the_shapes(model: Path, tmp_path: Path) -> None:
    fixed = dataclasses.replace(NATIVE, min_batch=2, max_batch=2)
    specs = [dataclasses.replace(spec, shape=(2, *spec.shape[1:])) for spec in (*INPUTS, *OUTPUTS)]
    engine = model.with_suffix(".engine")
    engine.write_bytes(b"an engine")
    config = read(write_repository(engine, fixed, (specs[:1], specs[1:]), tmp_path / "repository", "cats"))
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.default_model_filename == "model.plan"
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2, 16, 16, 3]
    assert [list(warm.inputs["images"].dims) for warm in config.model_warmup] == [[2, 16, 16, 3]]


def test_wrong_use_leaves_nothing(model: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with pytest.raises(UsageError, match="model name 'a/b'"):
        write_repository(model, NATIVE, (INPUTS, OUTPUTS), repository, "a/b")
    with pytest.raises(UsageError, match="Triton takes"):
        write_repository(model.with_suffix(".pth"), NATIVE, (INPUTS, OUTPUTS), repository, "cats")
    with pytest.raises(UsageError, match="--triton-instances 0"):
        TritonOptions(instances=0)
    with pytest.raises(UsageError, match="--triton-queue-delay -1"):
        TritonOptions(queue_delay_us=-1)
    with pytest.raises(YolactError, match="cannot write"):
        write_repository(tmp_path / "gone.onnx", NATIVE, (INPUTS, OUTPUTS), repository, "cats")
    assert list(repository.iterdir()) == []
    write_repository(model, NATIVE, (INPUTS, OUTPUTS), repository, "cats")
    with pytest.raises(YolactError, match="exists; delete it"):
        write_repository(model, NATIVE, (INPUTS, OUTPUTS), repository, "cats")
