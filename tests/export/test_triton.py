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

from yolact_export.triton import TritonOptions, write_repository
from yolact_runtime.engines.tensorrt.record import EngineRecord, read_engine, record_path, to_json
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256, write_json
from yolact_runtime.metadata import Metadata

schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
from google.protobuf import text_format  # noqa: E402

RAW = TritonOptions(models="raw")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def test_each_class_name_has_one_line(tmp_path: Path) -> None:
    """Labels are numbered by their lines; a name may be anything that an annotation file has."""
    names = ("circle\nfake", "a\r\n\u2028b\x85", "half", "")
    metadata = dataclasses.replace(NATIVE, class_names=names, category_ids=(1, 2, 3, 4))
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), metadata)
    expected = ["circle\\nfake", "a\\r\\n\\u2028b\\x85", "half", ""]
    for options, name in ((RAW, "names_raw"), (TritonOptions(models="python"), "names")):
        folder = write_repository(path, tmp_path / "repository", "names", options)
        assert (folder / "labels.txt").read_text("utf-8").splitlines() == expected
        assert read(folder).name == name


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
    options = TritonOptions(instances=2, queue_delay_us=500, models="raw")
    folder = write_repository(model, tmp_path / "repository", "cats", options)
    assert folder == tmp_path / "repository" / "cats_raw"
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text() == "cat\ndog\nbird\n"
    config = read(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("cats_raw", "onnxruntime", 3)
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
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["cats_raw"]


def fixed_engine(tmp_path: Path, plugin: bool) -> Path:
    """An engine of one image in a call, its JSON, and the ONNX file that it was built from."""
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
    return engine


@pytest.mark.parametrize("plugin", [False, True])
def test_an_engine_with_a_fixed_batch(plugin: bool, tmp_path: Path) -> None:
    engine = fixed_engine(tmp_path, plugin)
    config = read(write_repository(engine, tmp_path / "repository", "cats", RAW))
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
    with pytest.raises(UsageError, match="--triton-models some; allowed: python, raw, ensemble, all"):
        TritonOptions(models="some")
    with pytest.raises(UsageError, match="--triton-queue-delay -1"):
        TritonOptions(queue_delay_us=-1)
    with pytest.raises(YolactError, match=r"gone\.onnx"):
        write_repository(tmp_path / "gone.onnx", repository, "cats")
    assert not repository.exists()
    write_repository(model, repository, "cats")
    with pytest.raises(YolactError, match="exists; delete it"):
        write_repository(model, repository, "cats")


def test_the_model_that_finds_instances(model: Path, tmp_path: Path) -> None:
    folder = write_repository(model, tmp_path / "repository", "cats", TritonOptions(instances=2))
    assert sorted(str(path.relative_to(folder.parent)) for path in folder.rglob("*.*")) == [
        "cats/1/model.onnx",
        "cats/1/model.py",
        "cats/config.pbtxt",
        "cats/labels.txt",
    ]
    config = read(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("cats", "python", 3)
    assert shapes(config.input) == {
        "image": (schema.TYPE_STRING, [1]),
        "array": (schema.TYPE_UINT8, [-1, -1, 3]),
        "prepared": (schema.TYPE_UINT8, [16, 16, 3]),
        "size": (schema.TYPE_INT32, [2]),
    }
    assert all(entry.optional and entry.allow_ragged_batch for entry in config.input)
    assert shapes(config.output) == {
        "boxes": (schema.TYPE_FP32, [-1, 4]),
        "relative_boxes": (schema.TYPE_FP32, [-1, 4]),
        "scores": (schema.TYPE_FP32, [-1]),
        "mask_scores": (schema.TYPE_FP32, [-1]),
        "category_ids": (schema.TYPE_INT64, [-1]),
        "rles": (schema.TYPE_STRING, [-1]),
        "areas": (schema.TYPE_INT64, [-1]),
        "size": (schema.TYPE_INT32, [2]),
        "engine": (schema.TYPE_STRING, [1]),
    }
    values = {name: entry.string_value for name, entry in config.parameters.items()}
    assert json.loads(values.pop("yolact"))["class_names"] == ["cat", "dog", "bird"]
    assert values.pop("yolact_api") == "1"
    assert set(values.values()) == {"auto"} and "engine_threads" in values


def test_an_engine_is_copied_with_its_json(tmp_path: Path) -> None:
    """A server opens it as any other engine, so a batch of one image is the server's as well."""
    engine = fixed_engine(tmp_path, plugin=False)
    folder = write_repository(engine, tmp_path / "repository", "cats")
    assert read_engine(folder / "1" / "model.engine")[1].onnx_file == "m.onnx"
    assert read(folder).max_batch_size == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_the_steps_of_an_ensemble_fit_each_other(batch: int, tmp_path: Path) -> None:
    metadata = dataclasses.replace(RUNTIME, max_batch=batch)
    source = write_onnx(tmp_path / "m.onnx", runtime_arrays(), metadata)
    repository = tmp_path / "repository"
    assert write_repository(source, repository, "cats", TritonOptions(models="all")) == repository / "cats"
    configs = {folder.name: read(folder) for folder in repository.iterdir()}
    assert sorted(configs) == ["cats", "cats_ensemble", "cats_instances", "cats_prepare", "cats_raw"]
    ensemble = configs["cats_ensemble"]
    known: dict[str, Any] = shapes(ensemble.input)
    assert {name: kind for name, (kind, _) in known.items()} == {
        "image": schema.TYPE_STRING,
        "array": schema.TYPE_UINT8,
    }
    for step in ensemble.ensemble_scheduling.step:
        model = configs[step.model_name]
        assert model.max_batch_size == ensemble.max_batch_size == (0 if batch == 1 else batch)
        inputs, outputs = shapes(model.input), shapes(model.output)
        assert {name: inputs[name] for name in step.input_map} == {
            name: known[tensor] for name, tensor in step.input_map.items()
        }
        known |= {tensor: outputs[name] for name, tensor in step.output_map.items()}
    assert shapes(ensemble.output) == {name: known[name] for name in shapes(ensemble.output)}
    metadata_file = repository / "cats_instances" / "1" / "metadata.json"
    assert Metadata.from_props(json.loads(metadata_file.read_text()), metadata_file) == metadata


def test_an_ensemble_needs_a_network_of_single_images(tmp_path: Path) -> None:
    fixed = dataclasses.replace(NATIVE, min_batch=2, max_batch=2)
    source = write_onnx(tmp_path / "m.onnx", native_arrays(), fixed)
    with pytest.raises(UsageError, match="takes 2 images or more in a call"):
        write_repository(source, tmp_path / "repository", "cats", TritonOptions(models="ensemble"))
    assert not (tmp_path / "repository").exists()


def test_one_model_that_exists_keeps_all_from_being_written(model: Path, tmp_path: Path) -> None:
    (tmp_path / "repository" / "cats_prepare").mkdir(parents=True)
    with pytest.raises(YolactError, match="cats_prepare exists"):
        write_repository(model, tmp_path / "repository", "cats", TritonOptions(models="all"))
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["cats_prepare"]
