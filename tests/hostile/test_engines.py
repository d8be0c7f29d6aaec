"""Engine files and libraries that are missing, broken, changed while running, or in another precision."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_onnx import BOXES, NATIVE, RUNTIME, SCORES, int8_file, native_arrays, runtime_arrays, write_onnx

from yolact_export.cli import main as export_main
from yolact_runtime import YolactError, load_engine
from yolact_runtime.engines import load as module
from yolact_runtime.engines.openvino import shared_core
from yolact_runtime.engines.tensorrt.record import EngineRecord, record_path, to_json
from yolact_runtime.errors import UsageError
from yolact_runtime.files import sha256, write_json

pytest.importorskip("openvino")

WHITE = np.full((20, 30, 3), 255, np.uint8)
CPU_BACKENDS = ["onnxruntime", "openvino"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def fails(message: str, path: Path, kind: type[YolactError] = YolactError, **options: object) -> str:
    """The message of `load_engine`, which is one line and matches."""
    with pytest.raises(kind, match=message) as raised:
        load_engine(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("name", ["m.onnx", "m.xml", "m.engine", "m.plan"])
def test_a_file_of_zero_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    message = fails("is empty", path)
    assert message == f"engine {path} is empty (0 bytes); copy or export it again"


@pytest.mark.parametrize("name", ["m.onnx", "m.engine", "models"])
def test_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    fails(rf"{name} is a folder; give a file ending in \.engine, \.onnx, ", tmp_path / name)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".onnx", "m\0.onnx", "\ud800.onnx"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    fails("does not exist|no published weights", Path(name))


@pytest.mark.parametrize("suffix", ["onnx", "xml", "engine"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    os.mkfifo(path)
    fails(rf"^engine {path} is a pipe, not a file$", path)


def test_weights_in_a_pipe_are_not_waited_for(network: Path, tmp_path: Path) -> None:
    shutil.copy(network.with_suffix(".xml"), tmp_path)
    os.mkfifo(tmp_path / "m.bin")
    fails(r"m\.bin is a pipe, not a file$", tmp_path / "m.xml")


@pytest.mark.parametrize("options", [{"threads": 100_000}, {"threads": -1}, {"streams": 100_000}])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_more_threads_than_allowed(model: Path, backend: str, options: dict) -> None:
    fails("it must be 1 or more", model, UsageError, backend=backend, **options)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_fixed_batch_that_the_metadata_does_not_have(model: Path, backend: str) -> None:
    graph = onnx.load(model)
    graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(graph, model)
    fails("the graph has 2 images in each call, its metadata 1 to 3", model, backend=backend)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_outputs_of_another_kind(tmp_path: Path, backend: str) -> None:
    for name, array in (
        ("logits", np.zeros((1, 4, 4, 1), np.float32)),
        ("loc", np.zeros((1, 4, 4), np.int32)),
    ):
        path = write_onnx(tmp_path / f"{name}.onnx", {**runtime_arrays(), name: array}, RUNTIME)
        with (
            load_engine(path, backend=backend) as engine,
            pytest.raises(YolactError, match=f"output {name} is"),
        ):
            engine.predict([WHITE])


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize("part", ["half", "all but one byte", "text"])
def test_a_file_cut_short_or_of_another_kind(
    model: Path, backend: str, part: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = model.read_bytes()
    model.write_bytes(
        {"half": data[: len(data) // 2], "all but one byte": data[:-1], "text": b"hello, I am text"}[part]
    )
    fails(rf"^{model} is damaged or not an ONNX file .*; copy or export it again$", model, backend=backend)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("backend", [None, *CPU_BACKENDS])
def test_an_onnx_file_of_somebody_else(tmp_path: Path, backend: str | None) -> None:
    path = write_onnx(tmp_path / "foreign.onnx", native_arrays(), NATIVE, props={"producer": "other"})
    fails(
        r"foreign\.onnx: metadata field yolact\.config is missing.*run yolact-export", path, backend=backend
    )


@pytest.mark.parametrize("backend", CPU_BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"yolact.class_names": None}, r"yolact\.class_names is missing"),
        ({"yolact.class_names": '"cat"'}, r"yolact\.class_names is '\"cat\"', not a tuple"),
        ({"yolact.max_batch": '"many"'}, r"yolact\.max_batch is '\"many\"', not a int"),
        ({"yolact.std": "{"}, r"yolact\.std is '\{', not a tuple"),
        ({"yolact.input_size": "32"}, r"its input is \(N, 16, 16, 3\) uint8, .* \(N, 32, 32, 3\) uint8"),
        (
            {"yolact.input_size": "[16, 32]"},
            r"its input is \(N, 16, 16, 3\) uint8, .* \(N, 16, 32, 3\) uint8",
        ),
        (
            {"yolact.input_size": "[32, 16]"},
            r"its input is \(N, 16, 16, 3\) uint8, .* \(N, 32, 16, 3\) uint8",
        ),
        ({"yolact.input_size": "[16, 16, 3]"}, r"yolact\.input_size is '\[16, 16, 3\]', not a "),
        ({"yolact.input_dtype": '"float32"'}, r"its input is \(N, 16, 16, 3\) uint8, .* 3\) float32"),
        ({"yolact.mask_iou": "true"}, r"it lacks the outputs mask_scores"),
    ],
)
def test_metadata_that_is_missing_or_of_another_kind(
    tmp_path: Path, backend: str, changes: dict[str, str | None], message: str
) -> None:
    props = {**NATIVE.to_props(), **changes}
    kept = {key: value for key, value in props.items() if value is not None}
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE, props=kept)
    fails(rf"m\.onnx: .*{message}.*export", path, backend=backend)


@pytest.mark.parametrize(
    ("suffix", "backend"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("xml", "openvino")]
)
@pytest.mark.parametrize("harm", ["overwritten", "truncated", "deleted", "replaced"])
def test_the_file_changes_under_a_running_engine(
    network: Path, tmp_path: Path, suffix: str, backend: str, harm: str
) -> None:
    """An open engine continues to work, also with a batch size that is new to it."""
    for file in network.parent.iterdir():
        shutil.copy(file, tmp_path)
    images = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    with load_engine(tmp_path / f"m.{suffix}", backend=backend) as engine:
        before = engine.detect(images[:1])
        for file in tmp_path.glob("m.*"):
            size = file.stat().st_size
            if harm == "deleted":
                file.unlink()
            elif harm == "replaced":
                other = tmp_path / "other"
                other.write_bytes(b"another file")
                other.replace(file)
            else:
                with file.open("r+b") as opened:
                    opened.write(os.urandom(size)) if harm == "overwritten" else opened.truncate(10)
        after, three = engine.detect(images[:1]), engine.detect(images)
    assert before.prototypes.std() > 0
    np.testing.assert_array_equal(after.prototypes, before.prototypes)
    np.testing.assert_allclose(three.prototypes[:1], before.prototypes, rtol=1e-5)


def test_damaged_weights_of_the_right_size(network: Path, tmp_path: Path) -> None:
    for file in network.parent.iterdir():
        shutil.copy(file, tmp_path)
    path, weights = tmp_path / "m.xml", tmp_path / "m.bin"
    load_engine(path).close()
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    message = rf"^{weights} is damaged or of another model: its SHA-256 is \w+\.\.\., .*export them again$"
    fails(message, path)
    assert export_main(["inspect", str(path)]) == 1


def test_weights_without_a_hash_open(network: Path, tmp_path: Path) -> None:
    """Files of earlier versions."""
    for file in network.parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / "m.xml"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if "bin_sha256" not in line]
    assert len(kept) == len(lines) - 1
    path.write_text("".join(kept), "utf-8")
    load_engine(path).close()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine whose prototypes are a convolution of the image, as `m.onnx` and as `m.xml`."""
    from onnx import TensorProto, helper, numpy_helper

    from yolact_export.openvino import write_openvino

    meta = dataclasses.replace(NATIVE, input_size=8)
    path = tmp_path_factory.mktemp("network") / "m.onnx"
    write_onnx(path, native_arrays(), meta)
    model = onnx.load(path)
    graph = model.graph
    index = next(i for i, node in enumerate(graph.node) if list(node.output) == ["prototypes"])
    del graph.node[index]
    weight = np.random.default_rng(1).normal(size=(64, 3, 3, 3)).astype(np.float32)
    project = np.random.default_rng(2).normal(size=(2, 64, 1, 1)).astype(np.float32)
    graph.initializer.extend(
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(project, "project")]
    )
    nodes = [
        helper.make_node("Transpose", ["float_images"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight"], ["features"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["features", "project"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["prototypes"], perm=[0, 2, 3, 1]),
    ]
    graph.node.extend(nodes)
    assert graph.output[5].type.tensor_type.elem_type == TensorProto.FLOAT
    onnx.checker.check_model(model)
    onnx.save(model, path)
    write_openvino(path, path.with_suffix(".xml"))
    return path


class Session:
    """A fake ONNX Runtime session that fell back to the CPU, or fails."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]

    def disable_fallback(self) -> None:
        pass


@pytest.fixture
def cuda_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime offers CUDA, and its sessions silently fall back to the CPU."""
    real = onnxruntime.InferenceSession

    def open_(path: str, options: object, providers: list, **more: object) -> object:
        cpu = providers[0][0] == "CPUExecutionProvider"
        return real(path, options, providers=providers, **more) if cpu else Session()

    monkeypatch.setattr(onnxruntime, "InferenceSession", open_)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )


@pytest.mark.parametrize("options", [{"backend": "cuda"}, {"providers": ["cuda"]}, {"providers": ["cuda:1"]}])
def test_a_provider_that_does_not_load(model: Path, cuda_that_does_not_load: None, options: dict) -> None:
    message = (
        r"m\.onnx: provider cuda(:1)? does not load on this machine .*fell back to CPUExecutionProvider\)"
    )
    fails(message + "; install its libraries, or use --backend onnxruntime", model, **options)


def test_the_automatic_choice_goes_past_cuda_that_does_not_load(
    model: Path,
    cuda_that_does_not_load: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "cuda_may_load", lambda: True)
    with load_engine(model) as engine:
        (result,) = engine.predict([WHITE])
    np.testing.assert_array_equal(result.relative_boxes, BOXES)
    assert "provider cuda does not load on this machine" in caplog.text
    assert "; using the CPU" in caplog.text


def test_no_such_provider(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    fails("^provider 'cuda' is not in this ONNX Runtime; it has cpu$", model, UsageError, backend="cuda")
    fails("^provider 'dml' is not in this", model, UsageError, providers=["dml"])


@pytest.mark.parametrize(
    ("backend", "library", "message"),
    [
        ("openvino", "openvino", r'no module \'openvino\'\) needs .* pip install "yolact\[openvino\]"$'),
        ("onnxruntime", "onnxruntime", r"no module 'onnxruntime'\) needs .* pip install yolact$"),
        ("cuda", "onnxruntime", r"backend cuda \(no module 'onnxruntime'\) needs"),
    ],
)
def test_a_backend_that_is_not_installed(
    model: Path, monkeypatch: pytest.MonkeyPatch, backend: str, library: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    fails(message, model, backend=backend)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 4096"),
        RuntimeError("CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("Exception from src/core.cpp:1:\nstd::bad_alloc\n"),
        MemoryError(),
    ],
    ids=["arena", "cuda", "bad_alloc", "python"],
)
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_out_of_memory(model: Path, backend: str, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with load_engine(model, backend=backend) as engine:
        if backend == "openvino":
            kept = engine._requests.get()  # type: ignore[attr-defined]
            engine._requests.put(SimpleNamespace(infer=fail))  # type: ignore[attr-defined]
        else:
            kept, engine._session = engine._session, SimpleNamespace(run=fail)  # type: ignore[attr-defined]
        message = rf"^{model}: .* ran out of memory with 3 images in one call; use a smaller batch"
        for _ in range(2):  # the second call waits for nothing that the first has lost
            with pytest.raises(YolactError, match=message) as raised:
                engine.detect(np.zeros((3, 16, 16, 3), np.uint8))
            assert "\n" not in str(raised.value) and "Exception from" not in str(raised.value)
        if backend == "openvino":
            engine._requests.get()  # type: ignore[attr-defined]
            engine._requests.put(kept)  # type: ignore[attr-defined]
        else:
            engine._session = kept  # type: ignore[attr-defined]
        np.testing.assert_array_equal(engine.predict([WHITE])[0].scores, SCORES)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_an_input_of_another_size(model: Path, backend: str) -> None:
    with load_engine(model, backend=backend) as engine:
        with pytest.raises(YolactError, match=rf"^{model}: .* failed: ") as raised:
            engine.detect(np.zeros((1, 9, 9, 3), np.uint8))
        assert "\n" not in str(raised.value)
        assert len(engine.predict([WHITE])[0]) == 2


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_closed_engine(model: Path, backend: str) -> None:
    engine = load_engine(model, backend=backend)
    engine.close()
    engine.close()
    with pytest.raises(YolactError, match=r"m\.onnx is closed; open it again$"):
        engine.predict([WHITE])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "int8"},
            "int8 was asked for, but .* delivers fp32; .* --precision int8 --calib",
        ),
        ({"precision": "fp16"}, "precision fp16 .* yolact-export --weights W --to onnx --precision fp16$"),
        ({"precision": "int4"}, "^precision 'int4'; allowed: fp32, fp16, bf16, int8, int8\\+bf16$"),
        ({"precision": "bf16", "backend": "onnxruntime"}, "does not compute in it; use --backend openvino"),
        (
            {"precision": "bf16", "providers": ["cpu"]},
            "bf16 was asked for, but ONNX Runtime CPU delivers fp32",
        ),
    ],
)
def test_a_precision_that_is_not_delivered(model: Path, options: dict, message: str) -> None:
    fails(message, model, UsageError, **options)


def test_bf16_of_a_file_in_integers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = int8_file(tmp_path / "m.onnx", relu=True)
    with load_engine(path, precision="int8") as engine:
        assert (engine.name, engine.precision) == ("OpenVINO CPU", "int8")
    if "BF16" in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        fails("needs a file in fp32, but this one is in int8", path, UsageError, precision="bf16")
        with load_engine(path, precision="int8+bf16") as engine:
            assert (engine.name, engine.precision) == ("OpenVINO CPU", "int8+bf16")
    else:
        fails("this CPU has no bf16 arithmetic", path, precision="bf16")
        fails("this CPU has no bf16 arithmetic; use precision int8", path, precision="int8+bf16")


def test_openvino_does_not_confirm_a_precision_that_it_has_not_computed_in(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "m.onnx", native_arrays(), dataclasses.replace(NATIVE, precision="int8"))
    message = "precision int8 was asked for, and what OpenVINO CPU computes in is not known: its graph has no"
    fails(message, path, UsageError, precision="int8", backend="openvino")


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_an_engine_is_not_sent_to_another_process(model: Path, backend: str) -> None:
    advice = rf"^\w+Engine cannot be pickled or copied; open it in each process: load_engine\('{model}'\)$"
    with load_engine(model, backend=backend) as engine:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match=advice):
                attempt(engine)
        assert len(engine.predict([WHITE])[0]) == 2


def test_the_rest_in_bf16_of_a_file_that_is_not_in_integers(model: Path) -> None:
    message = "int8.bf16 needs a file in int8, but this one is in fp32|this CPU has no bf16"
    fails(message, model, YolactError, precision="int8+bf16")


def test_bf16_is_what_runs_or_is_refused(network: Path) -> None:
    """The reported precision is read from the compiled network."""
    images = np.random.default_rng(0).integers(0, 255, (1, 8, 8, 3)).astype(np.uint8)
    with load_engine(network, backend="openvino") as plain:
        assert plain.precision == "fp32"
        expected = plain.detect(images).prototypes
    if "BF16" not in shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        fails("this CPU has no bf16 arithmetic; use precision fp32", network, precision="bf16")
        return
    with load_engine(network, precision="bf16") as engine:
        assert (engine.name, engine.precision) == ("OpenVINO CPU", "bf16")
        found = engine.detect(images).prototypes
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-5 < apart < 2e-2  # bf16 keeps 8 bits


@pytest.mark.parametrize(
    ("name", "backend", "message"),
    [
        (
            "m.xml",
            "onnxruntime",
            r"backend onnxruntime opens \.onnx files; for \.xml use --backend openvino$",
        ),
        ("m.engine", "openvino", r"opens \.onnx, \.xml files; for \.engine use --backend tensorrt$"),
        ("m.xml", "tensorrt", r"opens \.engine, \.plan, \.onnx files; for \.xml use --backend openvino$"),
        ("m.pth", "cuda", "leave --backend out, or export it: yolact-export --weights .*m.pth --to onnx$"),
        ("m.onnx", "tflite", "^backend 'tflite'; allowed: onnxruntime, openvino, cuda, tensorrt$"),
    ],
)
def test_a_backend_for_other_files(tmp_path: Path, name: str, backend: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"content")
    fails(message, tmp_path / name, UsageError, backend=backend)


@pytest.fixture
def built(model: Path) -> Path:
    """A TensorRT engine in the folder of the ONNX file that it was built from."""
    path = model.with_suffix(".engine")
    path.write_bytes(b"engine")
    record = EngineRecord(
        library="tensorrt", library_version="10.9.0.34", capabilities=("8.6",), gpu="", cuda="",
        profile=(1, 1, NATIVE.max_batch), compute={}, inspected="engine", engine_sha256=sha256(path),
        engine_bytes=6, onnx_file="m.onnx",
    )  # fmt: skip
    write_json(record_path(path), to_json(dataclasses.replace(NATIVE, onnx_sha256=sha256(model)), record))
    return path


def test_tensorrt_opens_the_engine_built_from_an_onnx_file(
    model: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    found = SimpleNamespace(name="TensorRT", metadata=NATIVE, precision="fp32", threads=None, streams=1)
    monkeypatch.setattr(
        "yolact_runtime.engines.tensorrt.open.open_engine", lambda path: opened.append(path) or found
    )
    load_engine(model, backend="tensorrt")
    load_engine(built, streams="auto")
    assert opened == [built, built]


def test_tensorrt_without_an_engine_or_with_that_of_another_file(model: Path, built: Path) -> None:
    write_onnx(model, native_arrays(), dataclasses.replace(NATIVE, config="other"))
    fails(
        rf"^{built}: it was built from another m\.onnx than {model}; build it again: yolact-export --weights",
        model,
        backend="tensorrt",
    )
    built.unlink()
    fails(
        rf"there is no m\.engine in its folder; build it: yolact-export --weights {model} --to trt"
        rf" --output {built}$",
        model,
        backend="tensorrt",
    )


def test_the_choice_is_logged(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "yolact_runtime")
    load_engine(model, backend="onnxruntime", threads=1).close()
    assert caplog.messages[-1] == "m.onnx: ONNX Runtime CPU, fp32, 1 thread"
    load_engine(model).close()
    assert "(chosen: " in caplog.messages[-1]
