"""Real engines, built by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from fake_onnx import NATIVE
from onnx import TensorProto, helper, numpy_helper

from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train.checkpoint import save_checkpoint
from yolact_export.cli import main
from yolact_export.onnx import OnnxOptions, write_onnx
from yolact_export.precision.fp16 import to_half
from yolact_export.trt.engine import build_engine
from yolact_export.trt.options import BuildOptions
from yolact_export.trt.process import BuildRequest, BuildResult, run_build
from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.engines.tensorrt.open import open_engine
from yolact_runtime.engines.tensorrt.record import read_engine, record_path
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import sha256
from yolact_runtime.metadata import PREFIX

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason='TensorRT-RTX is not installed; pip install "yolact[rtx]"',
)


def rtx(*capabilities: str, **options: object) -> BuildOptions:
    return BuildOptions("rtx", capabilities, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """yolact_tiny by detection and largest batch."""
    folder = tmp_path_factory.mktemp("graphs")
    torch.manual_seed(0)
    model = Yolact(get_config("yolact_tiny")).eval()
    found = {}
    for detect in ("native", "runtime"):
        for batch in (1, 8):
            path = found[detect, batch] = folder / f"{detect}_{batch}.onnx"
            write_onnx(model, path, OnnxOptions(detect=detect, max_batch=batch if batch > 1 else None))
    return found


@pytest.mark.parametrize(
    ("detect", "batch", "capabilities"),
    [
        ("native", 1, ("7.5",)),
        ("native", 8, ("8.6",)),
        ("runtime", 1, ("8.9",)),
        ("runtime", 8, ("12.0",)),
        ("native", 8, ("8.6", "8.9", "12.0")),
        ("runtime", 1, ()),
    ],
)
def test_float_engines(
    graphs: dict[tuple[str, int], Path],
    detect: str,
    batch: int,
    capabilities: tuple[str, ...],
    tmp_path: Path,
) -> None:
    source, output = graphs[detect, batch], tmp_path / "m.engine"
    build_engine(source, output, rtx(*capabilities), command="yolact-export ...")
    metadata, record = read_engine(output)
    assert (record.library, record.capabilities) == ("tensorrt_rtx", capabilities)
    assert record.profile == (1, batch, batch) == (metadata.min_batch, metadata.max_batch, batch)
    assert (metadata.detect, metadata.precision, metadata.config) == (detect, "fp32", "yolact_tiny")
    assert metadata.onnx_sha256 == sha256(source)
    assert metadata.versions["tensorrt_rtx"] == record.library_version
    assert metadata.command == "yolact-export ..."
    # The graph's own convolutions, counted by ONNX; MobileNet's and the head's for each of five levels.
    nodes = onnx.load(source).graph.node
    assert record.compute == {"fp32": sum(node.op_type in ("Conv", "ConvTranspose") for node in nodes)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.engine.json"]


@pytest.mark.parametrize(
    ("detect", "batch", "capability"), [("native", 8, "7.5"), ("native", 1, "12.0"), ("runtime", 8, "8.6")]
)
def test_half_engines(
    graphs: dict[tuple[str, int], Path], detect: str, batch: int, capability: str, tmp_path: Path
) -> None:
    model = to_half(onnx.load(graphs[detect, batch]))
    for item in model.metadata_props:
        if item.key == f"{PREFIX}precision":
            item.value = '"fp16"'
    onnx.save(model, tmp_path / "m.onnx")
    record = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", rtx(capability), precision="fp16")
    assert record.compute == {"fp16": sum(node.op_type == "Conv" for node in model.graph.node)}
    assert read_engine(tmp_path / "m.engine")[0].precision == "fp16"
    with pytest.raises(UsageError, match="is in fp16, not int8"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", rtx(capability), precision="int8")


def test_the_command_from_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "yolact_tiny_0_1.pth"
    torch.manual_seed(0)
    save_checkpoint(weights, Yolact(get_config("yolact_tiny")).eval(), 0, 1, None)
    words = [
        "--to",
        "trt",
        "--backend",
        "rtx",
        "--device-capability",
        "8.9",
        "--detect",
        "runtime",
        "--no-verify",
    ]
    assert main(["--weights", str(weights), *words]) == 0
    (engine,) = tmp_path.glob("yolact_tiny_0_1*.engine")
    metadata, record = read_engine(engine)
    assert (metadata.detect, record.onnx_file) == ("runtime", f"{engine.stem}.onnx")
    assert metadata.onnx_sha256 == sha256(tmp_path / record.onnx_file)
    assert main(["inspect", str(engine)]) == 0
    assert record.library_version in capsys.readouterr().out
    for wrong in (
        ["--to", "onnx", "--detect", "plugin"],
        [*words[:4], "--detect", "plugin"],
        [*words, "--workspace", "0"],
    ):
        assert main(["--weights", str(weights), *wrong]) == 2


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["onnxruntime"] = None
from yolact_export.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_from_an_onnx_file_needs_no_pytorch(
    graphs: dict[tuple[str, int], Path], tmp_path: Path
) -> None:
    words = (
        f"--weights {graphs['runtime', 1]} --to trt --backend rtx --output {tmp_path / 'm.engine'}".split()
    )
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_engine(tmp_path / "m.engine")[1].capabilities == ()


def test_the_best_batch_and_the_timing_cache(graphs: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    options = rtx("8.6", opt_batch=2, workspace_mib=256, timing_cache=tmp_path / "times")
    for _ in range(2):
        assert build_engine(graphs["runtime", 8], tmp_path / "m.plan", options).profile == (1, 2, 8)
    cache = tmp_path / "times"
    assert cache.stat().st_size > 0
    cache.write_bytes(b"damaged")
    build_engine(graphs["runtime", 8], tmp_path / "m.plan", options)
    with pytest.raises(UsageError, match="--opt-batch 9; the graph takes 1 to 8"):
        build_engine(graphs["runtime", 8], tmp_path / "m.plan", rtx("8.6", opt_batch=9))


@pytest.mark.skipif(current_gpu() is not None, reason="this machine has a GPU")
def test_an_engine_says_what_runs_instead(graphs: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(graphs["runtime", 1].read_bytes())
    build_engine(source, tmp_path / "m.engine", rtx("8.6"))
    with pytest.raises(YolactError, match=r"need an NVIDIA GPU.*--engine .*m\.onnx"):
        open_engine(tmp_path / "m.engine")


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    shape: Sequence[int] = (1, 4000),
    precision: str = "fp32",
) -> Path:
    """A graph of `nodes` from "x" to "y", both float32, that says it computes in `precision`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    initial = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(list(nodes), "g", [x], [y], initial),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)],
        ir_version=8,
    )
    helper.set_model_props(
        model,
        dataclasses.replace(NATIVE, min_batch=shape[0], max_batch=shape[0], precision=precision).to_props(),
    )
    onnx.save(model, path)
    return path


def convolution(path: Path, delivered: str, asked: str) -> Path:
    """One convolution that computes in `delivered`."""
    weight = np.ones((16, 16, 3, 3), np.float32)
    make = helper.make_node
    constants: dict[str, np.ndarray] = {"w": weight}
    if delivered == "fp16":
        constants = {"w": weight.astype(np.float16)}
        nodes = [
            make("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            make("Conv", ["h", "w"], ["c"], name="conv"),
            make("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
        ]
    elif delivered == "int8":
        constants = {
            "w": weight.astype(np.int8),
            "s": np.array(0.1, np.float32),
            "z": np.array(0, np.int8),
            "ws": np.full(16, 0.1, np.float32),
            "wz": np.zeros(16, np.int8),
        }
        nodes = [
            make("QuantizeLinear", ["x", "s", "z"], ["q"]),
            make("DequantizeLinear", ["q", "s", "z"], ["d"]),
            make("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
            make("Conv", ["d", "wd"], ["y"], name="conv"),
        ]
    else:
        nodes = [make("Conv", ["x", "w"], ["y"], name="conv")]
    return write_graph(path, nodes, constants, (1, 16, 8, 8), asked)


@pytest.mark.parametrize("capability", ["7.5", "8.6", "12.0"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_what_was_delivered_is_read_from_the_network(precision: str, capability: str, tmp_path: Path) -> None:
    source = convolution(tmp_path / "m.onnx", precision, precision)
    record = build_engine(source, tmp_path / "m.engine", rtx(capability))
    assert (record.compute, record.inspected) == ({precision: 1}, "network")
    assert read_engine(tmp_path / "m.engine")[0].precision == precision


def test_less_than_asked_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = convolution(tmp_path / "m.onnx", "fp32", "fp16")
    output = tmp_path / "out" / "m.engine"
    with pytest.raises(YolactError, match=r"fp16 was requested, .* 1 in fp32; nothing was written"):
        build_engine(source, output, rtx("8.6"))
    assert list(output.parent.iterdir()) == []
    build_engine(source, output, rtx("8.6", allow_fallback=True))
    assert read_engine(output)[0].precision == "fp32"
    assert "1 in fp32" in caplog.text


MAKE = helper.make_node
TOPK = [MAKE("TopK", ["x", "k"], ["y", "i"], name="pick")]
REFUSED = {
    "topk": (TOPK, {"k": np.array([3841])}, "8.6", r"node pick \(TopK\).*3840"),
    "matmul": (
        [MAKE("MatMul", ["x", "w"], ["y"], name="pick")],
        {"w": np.ones((4000, 8), np.float32)},
        "7.5",
        r"node pick \(MatMul\)",
    ),
    "domain": ([MAKE("Mystery", ["x"], ["y"], name="pick", domain="com.example")], {}, "8.6", "Mystery"),
    "nonzero": (
        [MAKE("NonZero", ["x"], ["i"], name="pick"), MAKE("Cast", ["i"], ["y"], to=TensorProto.FLOAT)],
        {},
        "8.6",
        r"node pick \(NonZero\)",
    ),
}


def build_unchecked(source: Path, capability: str) -> BuildResult:
    """What the library itself says of a graph."""
    engine = source.with_suffix(".engine")
    return run_build(
        BuildRequest("tensorrt_rtx", str(source), str(engine), "fp32", (1, 1, 1), (capability,)), "RTX"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_the_checks_refuse_what_the_library_refuses(name: str, tmp_path: Path) -> None:
    nodes, constants, capability, words = REFUSED[name]
    source = write_graph(tmp_path / "m.onnx", nodes, constants)
    output = tmp_path / "out" / "m.engine"
    with pytest.raises(YolactError, match=f"TensorRT-RTX cannot build this graph: .*{words}"):
        build_engine(source, output, rtx(capability))
    assert not output.parent.exists()
    with pytest.raises(YolactError, match=words):
        build_unchecked(source, capability)


def test_the_checks_allow_what_the_library_takes(tmp_path: Path) -> None:
    limit = write_graph(tmp_path / "topk.onnx", TOPK, {"k": np.array([3840])})
    build_engine(limit, tmp_path / "topk.engine", rtx("8.6"))
    nodes, constants, _, _ = REFUSED["matmul"]
    build_engine(write_graph(tmp_path / "m.onnx", nodes, constants), tmp_path / "m.engine", rtx("8.6"))


def test_a_parser_error_is_one_line(tmp_path: Path) -> None:
    source = write_graph(tmp_path / "m.onnx", [MAKE("Det", ["x"], ["y"], name="det")], {}, (4, 4))
    with pytest.raises(YolactError, match=r"cannot build .*m\.onnx: node det \(Det\): ") as caught:
        build_engine(source, tmp_path / "m.engine", rtx("8.6"))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_capability_that_the_library_does_not_know(tmp_path: Path) -> None:
    source = convolution(tmp_path / "m.onnx", "fp32", "fp32")
    with pytest.raises(UsageError, match=r"capability 9\.0: this TensorRT-RTX builds for 7\.5, 8\.0"):
        build_engine(source, tmp_path / "m.engine", rtx("9.0"))
    with pytest.raises(YolactError, match=r"capability 9\.0 is unknown to this version; known: 7\.5, 8\.0"):
        build_unchecked(source, "9.0")


@pytest.mark.parametrize("content", [b"", b"hello", "cut"])
def test_damaged_graphs(content: bytes | str, tmp_path: Path) -> None:
    source = convolution(tmp_path / "m.onnx", "fp32", "fp32")
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)
    with pytest.raises(YolactError, match="is damaged or not an ONNX file"):
        build_engine(source, tmp_path / "m.engine", rtx("8.6"))
    with pytest.raises(YolactError, match="does not exist"):
        build_engine(tmp_path / "none.onnx", tmp_path / "m.engine", rtx("8.6"))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full to stand for a full disk")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    source = convolution(tmp_path / "m.onnx", "fp32", "fp32")
    request = BuildRequest("tensorrt_rtx", str(source), "/dev/full", "fp32", (1, 1, 1), ("8.6",))
    with pytest.raises(YolactError, match="the engine cannot be written: No space left"):
        run_build(request, "TensorRT-RTX")


def test_what_was_there_stays_when_a_build_fails(tmp_path: Path) -> None:
    output = tmp_path / "m.engine"
    build_engine(convolution(tmp_path / "m.onnx", "fp32", "fp32"), output, rtx("8.6"))
    before = output.read_bytes(), record_path(output).read_bytes()
    with pytest.raises(YolactError):
        build_engine(convolution(tmp_path / "n.onnx", "fp32", "int8"), output, rtx("8.6"))
    assert (output.read_bytes(), record_path(output).read_bytes()) == before


@pytest.mark.parametrize("before", [True, False])
def test_both_files_are_placed_or_neither(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = convolution(tmp_path / "m.onnx", "fp32", "fp32")
    output = tmp_path / "out" / "m.engine"
    if before:
        build_engine(source, output, rtx("8.6"))
    held = {path.name: path.read_bytes() for path in output.parent.glob("*")}
    replace, placed = Path.replace, []

    def fail_for_json(path: Path, target: Path) -> Path:
        if Path(target) == record_path(output):
            raise OSError(28, "No space left on device")
        placed.append(Path(target))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", fail_for_json)
    with pytest.raises(YolactError, match=r"cannot write .*m\.engine\.json: No space left"):
        build_engine(source, output, rtx("8.9"))
    assert output in placed
    assert {path.name: path.read_bytes() for path in output.parent.iterdir()} == held


@pytest.mark.parametrize("name", ["m.engine", "m.engine.json"])
def test_a_folder_is_no_output(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=rf"--output .*{name} is a folder"):
        build_engine(tmp_path / "none.onnx", tmp_path / "m.engine", rtx("8.6"))


@pytest.mark.slow
def test_resnet50_at_full_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = tmp_path / "m.onnx"
    write_onnx(Yolact(get_config("yolact_resnet50")).eval(), source, OnnxOptions())
    record = build_engine(source, tmp_path / "m.engine", rtx("12.0"))
    assert record.compute["fp32"] > 80
    assert record.engine_bytes > 100e6
