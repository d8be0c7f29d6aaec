"""One builder for every TensorRT: what each version's API has is used, what it lacks is done without.

The fakes have the parts of the API that the real ones have; TensorRT-RTX itself is in test_rtx.py.
"""

from __future__ import annotations

import base64
import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from yolact_export.trt.builder import build
from yolact_export.trt.process import BuildRequest
from yolact_runtime.cache import Cache
from yolact_runtime.errors import YolactError


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING = range(3)


class Logger:
    Severity = Severity


class Flags(enum.IntEnum):
    """Builder flags of TensorRT 8.6."""

    FP16, INT8, TF32, PREFER_PRECISION_CONSTRAINTS, VERSION_COMPATIBLE = range(5)


class LaterFlags(enum.IntEnum):
    """Builder flags of TensorRT 11."""

    TF32, VERSION_COMPATIBLE = range(2)


LayerType = enum.Enum("LayerType", "CONVOLUTION MATRIX_MULTIPLY SOFTMAX SHAPE CONSTANT QUANTIZE DEQUANTIZE")
DataType = enum.Enum("DataType", "FLOAT HALF INT8 INT32")


def layer(
    kind: str, given: str, output: str, dtype: str = "FLOAT", out: str | None = None
) -> SimpleNamespace:
    """A layer with one input and one output."""
    tensors = [
        SimpleNamespace(name=given, dtype=DataType[dtype]),
        SimpleNamespace(name=output, dtype=DataType[out or dtype]),
    ]
    return SimpleNamespace(
        type=LayerType[kind],
        num_outputs=1,
        get_input=lambda _: tensors[0],
        get_output=lambda _: tensors[1],
    )


HALF_NETWORK = [
    layer("CONVOLUTION", "a", "b", "HALF"),
    layer("MATRIX_MULTIPLY", "b", "c", "HALF"),
    layer("SHAPE", "b", "s"),
    layer("SOFTMAX", "c", "d", "FLOAT"),
]


class Library(SimpleNamespace):
    """A fake of the module; `seen` collects the calls."""

    def __init__(self, version: str, layers: list[SimpleNamespace], typed: bool, **parts: Any) -> None:
        creation = {"EXPLICIT_BATCH": 0} | ({"STRONGLY_TYPED": 1} if typed else {})
        super().__init__(
            __version__=version,
            seen={"flags": set(), "phases": 0, "saved": None},
            layers=layers,
            log=[],
            errors=[],
            engine=b"engine",
            inspector=None,
            ILogger=Logger,
            LayerType=LayerType,
            DataType=DataType,
            BuilderFlag=Flags,
            NetworkDefinitionCreationFlag=SimpleNamespace(**creation),
            MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
            ProfilingVerbosity=SimpleNamespace(DETAILED="detailed"),
            LayerInformationFormat=SimpleNamespace(JSON="json"),
            HardwareCompatibilityLevel=SimpleNamespace(AMPERE_PLUS="ampere"),
        )
        self.__dict__.update(parts)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        def create_network(flags: int) -> SimpleNamespace:
            self.seen["network"] = flags
            return SimpleNamespace(
                num_layers=len(self.layers),
                get_layer=lambda index: self.layers[index],
                get_input=lambda _: SimpleNamespace(name="images", shape=(-1, 16, 16, 3)),
            )

        def create_profile() -> SimpleNamespace:
            return SimpleNamespace(set_shape=lambda *shapes: self.seen.update(profile=shapes))

        def run(network: Any, config: Any) -> bytes | None:
            for text in self.log:
                logger.log(Severity.ERROR, text)
            if monitor := getattr(config, "progress_monitor", None):
                monitor.phase_start("Tactics", None, 3)
                assert monitor.step_complete("Tactics", 0)
                monitor.phase_finish("Tactics")
            self.seen["config"] = config
            return self.engine

        return SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: Config(self),
            create_optimization_profile=create_profile,
            build_serialized_network=run,
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(
            parse_from_file=lambda path: not self.errors,
            num_errors=len(self.errors),
            get_error=lambda index: self.errors[index],
        )

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        inspector = SimpleNamespace(get_engine_information=lambda form: json.dumps(self.inspector))
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)

        def deserialize(data: bytes) -> SimpleNamespace | None:
            refused = "VERSION_COMPATIBLE" in self.seen["flags"] and not runtime.engine_host_code_allowed
            return None if self.inspector is None or refused else engine

        runtime = SimpleNamespace(deserialize_cuda_engine=deserialize, engine_host_code_allowed=False)
        return runtime


class Config(SimpleNamespace):
    """A builder configuration whose timing cache accepts what begins with b"cache"."""

    def __init__(self, library: Library) -> None:
        super().__init__(seen=library.seen)

    def set_flag(self, flag: Any) -> None:
        self.seen["flags"].add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.seen["flags"].add(f"no {flag.name}")

    def set_preview_feature(self, feature: str, enable: bool) -> None:
        self.seen["preview"] = feature, enable

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.seen["pool"] = pool, size

    def add_optimization_profile(self, profile: Any) -> int:
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        self.seen["loaded"] = data
        return SimpleNamespace(serialize=lambda: b"cache 2") if data[:5] in (b"", b"cache") else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.seen["cache"] = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.seen["cache"]


class Monitor:
    """What a progress monitor derives from, since TensorRT 10."""


TIMING = Cache("timing", "the timing cache", "")
CONVOLUTION = {
    "LayerType": "CaskConvolution",
    "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}],
}
FLOAT_CONVOLUTION = {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    """A request for an existing graph with a node named "second"."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    nodes = [
        helper.make_node("Abs", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["a"], ["y"], name="second"),
    ]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y])), tmp_path / "m.onnx")
    return make_request(tmp_path)


def make_request(folder: Path, **changes: Any) -> BuildRequest:
    values = {
        "library": "tensorrt",
        "onnx": str(folder / "m.onnx"),
        "engine": str(folder / "m.engine"),
        "precision": "fp16",
        "profile": (1, 2, 8),
        "default_cache": "times",
    }
    return BuildRequest(**(values | changes))


def no_progress(kind: str, phase: str, steps: int) -> None:
    pass


def test_tensorrt_8_has_flags_and_constraints(request_: BuildRequest) -> None:
    library = Library("8.6.1", HALF_NETWORK, typed=False, inspector={"Layers": [CONVOLUTION] * 2})
    result = build(library, request_, no_progress)
    assert library.seen["network"] == 1  # explicit batch
    assert library.seen["flags"] == {"FP16", "PREFER_PRECISION_CONSTRAINTS", "no TF32"}
    # What the graph keeps in float32 stays there; the rest is free to be half.
    assert HALF_NETWORK[3].precision is DataType.FLOAT
    assert not any(hasattr(HALF_NETWORK[index], "precision") for index in (0, 1, 2))
    assert (result.compute, result.network, result.inspected) == ({"fp16": 2}, {"fp16": 2}, "engine")
    assert library.seen["profile"] == ("images", *((n, 16, 16, 3) for n in (1, 2, 8)))
    assert Path(request_.engine).read_bytes() == b"engine"


def test_tensorrt_8_in_other_precisions(tmp_path: Path) -> None:
    inspector = {"Layers": [FLOAT_CONVOLUTION, {"LayerType": "Reformat"}, {"LayerType": "NoOp"}]}
    for precision, flags in (("fp32", {"no TF32"}), ("int8", {"INT8", "no TF32"})):
        library = Library("8.6.1", [], typed=False, inspector=inspector)
        result = build(library, make_request(tmp_path, precision=precision), no_progress)
        assert library.seen["flags"] == flags
        assert result.compute == {"fp32": 1}


def test_contexts_share_the_profile_where_that_has_to_be_said(request_: BuildRequest) -> None:
    features = SimpleNamespace(PROFILE_SHARING_0806="sharing")
    library = Library("8.6.1", HALF_NETWORK, typed=False, inspector={"Layers": []}, PreviewFeature=features)
    with pytest.raises(YolactError, match="cannot be inspected"):
        build(library, request_, no_progress)
    assert library.seen["preview"] == ("sharing", True)


def test_an_untyped_engine_that_cannot_be_inspected_is_not_trusted(request_: BuildRequest) -> None:
    with pytest.raises(YolactError, match="cannot be inspected"):
        build(Library("8.6.1", HALF_NETWORK, typed=False), request_, no_progress)


def test_later_versions_are_strongly_typed(request_: BuildRequest) -> None:
    library = Library("11.4.0", HALF_NETWORK, typed=True, IProgressMonitor=Monitor, BuilderFlag=LaterFlags)
    events: list[tuple] = []
    result = build(library, request_, lambda *event: events.append(event))
    assert library.seen["network"] == 2
    assert library.seen["flags"] == {"no TF32"}
    assert events == [("start", "Tactics", 3), ("step", "Tactics", 1), ("end", "Tactics", 0)]
    # Without a GPU no engine opens; the network's types bind it.
    assert (result.compute, result.inspected) == ({"fp16": 2}, "network")


def test_quantised_layers_are_counted_by_what_feeds_them(request_: BuildRequest) -> None:
    layers = [
        layer("QUANTIZE", "a", "q", "FLOAT", "INT8"),
        layer("DEQUANTIZE", "q", "d", "INT8", "FLOAT"),
        layer("CONVOLUTION", "d", "b"),
        layer("CONVOLUTION", "b", "c"),
    ]
    result = build(Library("11.4.0", layers, typed=True), request_, no_progress)
    assert result.compute == {"int8": 1, "fp32": 1}


def test_options(tmp_path: Path) -> None:
    library = Library("10.9.0", [], typed=True)
    options = {"workspace_mib": 64, "tf32": True, "hardware_compatible": True, "version_compatible": True}
    result = build(library, make_request(tmp_path, **options), no_progress)
    assert library.seen["pool"] == ("workspace", 64 << 20)
    assert library.seen["flags"] == {"VERSION_COMPATIBLE"}
    assert library.seen["config"].hardware_compatibility_level == "ampere"
    assert result.notes == []


@pytest.mark.parametrize("kind", ["hardware-compatible", "version-compatible"])
def test_options_that_a_version_lacks_are_refused(kind: str, tmp_path: Path) -> None:
    library = Library("8.5.0", [], typed=True, BuilderFlag=SimpleNamespace())
    del library.HardwareCompatibilityLevel
    request = make_request(tmp_path, **{kind.replace("-", "_"): True})
    with pytest.raises(YolactError, match=rf"8\.5\.0 has no {kind} engines; leave out --{kind}$"):
        build(library, request, no_progress)
    assert not Path(request.engine).exists()


def test_version_compatible_engines_are_inspected_too(tmp_path: Path) -> None:
    library = Library("8.6.1", HALF_NETWORK, typed=False, inspector={"Layers": [CONVOLUTION] * 2})
    result = build(library, make_request(tmp_path, version_compatible=True), no_progress)
    assert result.inspected == "engine"


@pytest.mark.parametrize(
    ("kept", "loaded", "warned"), [(None, b"", False), (b"cache 1", b"cache 1", False), (b"other", b"", True)]
)
def test_the_timing_cache_is_kept(
    request_: BuildRequest, kept: bytes | None, loaded: bytes, warned: bool
) -> None:
    if kept is not None:
        TIMING.write("times", ["times", "10.9.0"], base64.b64encode(kept).decode())
    library = Library("10.9.0", HALF_NETWORK, typed=True)
    notes = build(library, request_, no_progress).notes
    assert library.seen["loaded"] == loaded
    assert TIMING.read("times", ["times", "10.9.0"], base64.b64decode) == b"cache 2"
    assert ["does not fit" in note for note in notes] == [True] * warned


def test_a_damaged_timing_cache_is_not_given_to_the_library(request_: BuildRequest) -> None:
    TIMING.write("times", ["times", "10.9.0"], base64.b64encode(b"cache 1").decode())
    file = TIMING.path("times", ["times", "10.9.0"])
    file.write_text(file.read_text().replace("Y2F", "Y3F"))
    library = Library("10.9.0", HALF_NETWORK, typed=True)
    (note,) = build(library, request_, no_progress).notes
    assert "is damaged (its digest differs); starting a new one" in note
    assert library.seen["loaded"] == b""
    assert TIMING.read("times", ["times", "10.9.0"], base64.b64decode) == b"cache 2"


def test_a_timing_cache_that_the_user_names_is_that_file(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_bytes(b"cache 1")
    library = Library("10.9.0", HALF_NETWORK, typed=True)
    assert build(library, make_request(tmp_path, timing_cache=str(file)), no_progress).notes == []
    assert (library.seen["loaded"], file.read_bytes()) == (b"cache 1", b"cache 2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "mine"]


def test_a_timing_cache_that_cannot_be_read_only_costs_time(tmp_path: Path) -> None:
    request = make_request(tmp_path, timing_cache=str(tmp_path))  # a folder
    (note,) = build(Library("10.9.0", HALF_NETWORK, typed=True), request, no_progress).notes
    assert (
        note.startswith("timing cache ") and "is a folder" in note and note.endswith("; building without it")
    )
    assert Path(request.engine).exists()


def error(text: str, node: int, name: str | None = None, operator: str = "") -> SimpleNamespace:
    """A parser's error; TensorRT 8.6 only numbers the node."""
    new = {"node_name": lambda: name, "node_operator": lambda: operator} if name is not None else {}
    return SimpleNamespace(desc=lambda: text, node=lambda: node, **new)


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([error("Plugin not found", 1)], r"^node second \(Det\): Plugin not found; this library has no such"),
        ([error("no", 0, "pick", "TopK")] * 3, r"^node pick \(TopK\): no \(and 2 more\)$"),
        ([error("Failed to parse the ONNX model.", -1)], "the file is damaged"),
    ],
)
def test_parser_errors_name_node_and_operator(request_: BuildRequest, errors: list, words: str) -> None:
    library = Library("10.9.0", [], typed=True, errors=errors)
    with pytest.raises(YolactError, match=words):
        build(library, request_, no_progress)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (ITopKLayer second: second: K"
            " exceeds the maximum value allowed (3840). In processCheck at /_src/x.cpp:1066 In analyze"
            " at /_src/x.cpp:2825)",
            r"^node second \(Det\): ITopKLayer second: second: K exceeds .* \(3840\)\.?; lower",
        ),
        (
            "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile"
            " operation 'second' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at"
            " /_src/c.cpp:2012)",
            r"^node second \(Det\): .*FP32 GEMM.*; TensorRT-RTX has none on capability 7\.5",
        ),
        ("Error Code 1: Cuda Runtime (In X at Y (cudaError 35: CUDA driver version))", "--backend rtx"),
    ],
)
def test_build_errors_name_node_and_hint(request_: BuildRequest, text: str, words: str) -> None:
    library = Library("10.9.0", [], typed=True, engine=None, log=[text, "another"])
    with pytest.raises(YolactError, match=words):
        build(library, request_, no_progress)
    assert not Path(request_.engine).exists()
