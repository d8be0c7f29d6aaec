"""Builds an engine with any version of TensorRT; as a program, the build process of `process.run_build`.

Features are detected, not version numbers: 8.6 has precision flags and no strong typing, 10 has both, 11 has
only strong typing, and TensorRT-RTX has 11's API with a choice of compute capabilities.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import importlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from yolact_export.trt.compute import count_engine, count_network
from yolact_export.trt.errors import build_error, parser_error
from yolact_export.trt.int8 import has_unsigned, signed_int8
from yolact_export.trt.process import BuildRequest, BuildResult
from yolact_runtime.cache import Cache
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.metadata import Metadata
from yolact_runtime.untrusted import read_bytes

log = logging.getLogger(__name__)

# Called during a build with ("start", phase, steps), ("step", phase, done) or ("end", phase, 0).
Progress = Callable[[str, str, int], None]


def build(trt: Any, request: BuildRequest, progress: Progress) -> BuildResult:
    """Build an engine and write it to `request.engine`.

    Args:
        trt: The imported library.
        request: What to build.
        progress: Called with the progress, if the library reports any.

    Raises:
        YolactError: the library refuses the graph or the options; one line with node, operator and remedy.
    """
    started = time.monotonic()
    notes: list[str] = []
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    if not builder:
        raise YolactError(f"the builder does not start: {build_error(logger.errors, None)}")
    network, typed = _make_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    parsed, model = _parse(parser, request)
    if not parsed:
        raise YolactError(parser_error(parser, model))
    if request.plugin:
        _add_plugins(trt, network, request)
    config = builder.create_builder_config()
    if not typed:
        _set_precision(trt, config, network, request.precision)
    _set_options(trt, config, request)
    _add_profile(builder, config, network, request.profile)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _make_monitor(trt, progress)
    timing = _TimingCache(trt, request, notes)
    timing.load(config)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise YolactError(build_error(logger.errors, model))
    Path(request.engine).write_bytes(engine)
    timing.save(config)
    counted = count_network(trt, network)
    compute = _inspect(trt, logger, engine, request.version_compatible)
    if not compute and not typed:
        raise YolactError("the engine cannot be inspected, so its precision is unknown; nothing was written")
    inspected, seconds = "engine" if compute else "network", time.monotonic() - started
    return BuildResult(str(trt.__version__), compute or counted, inspected, seconds, counted, notes)


def _parse(parser: Any, request: BuildRequest) -> tuple[bool, onnx.ModelProto | None]:
    """Read the graph of the request, with signed bytes; also the graph that was read."""
    model = _load(request.onnx)
    if model is None or not has_unsigned(model):
        return bool(parser.parse_from_file(request.onnx)), model
    signed = signed_int8(onnx.load(request.onnx))  # with weights from other files, which the bytes then hold
    return bool(parser.parse(signed.SerializeToString())), signed


def known_capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities, such as "8.6", that a library can build for; empty if it offers no choice."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", ())
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in names if re.fullmatch(r"SM\d{2,3}", name))


def _make_logger(trt: Any) -> Any:
    """A logger of the library's own type."""

    class Logger(trt.ILogger):
        """Collects errors, and passes all messages on as debug records."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            kinds = trt.ILogger.Severity
            if severity in (kinds.ERROR, kinds.INTERNAL_ERROR):
                self.errors.append(text)
            log.debug("%s", text)

    return Logger()


def _make_network(trt: Any, builder: Any) -> tuple[Any, bool]:
    """An empty network, and whether it is strongly typed."""
    flags = trt.NetworkDefinitionCreationFlag
    typed = hasattr(flags, "STRONGLY_TYPED")
    flag = getattr(flags, "STRONGLY_TYPED" if typed else "EXPLICIT_BATCH", None)
    return builder.create_network(0 if flag is None else 1 << int(flag)), typed


def _add_plugins(trt: Any, network: Any, request: BuildRequest) -> None:
    """Add detection by the runtime's kernels to the end of the network."""
    from yolact_export.trt.plugin import add_detection

    metadata = Metadata.from_props(request.plugin, request.onnx)
    # PTX runs on the capability that it is compiled for and on all later ones.
    capability = "8.0" if request.hardware_compatible else request.capabilities[0]
    add_detection(trt, network, metadata, capability)


def _set_precision(trt: Any, config: Any, network: Any, precision: str) -> None:
    """Without strong typing: allow the lower precision, and bind float32 layers of the graph to float32."""
    if precision == "fp32":
        return
    flags = trt.BuilderFlag
    config.set_flag(flags.FP16 if precision == "fp16" else flags.INT8)
    if precision != "fp16":
        return
    # Otherwise box decoding and scores, which the graph keeps in float32, would be in half as well.
    config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
    unbound = {trt.LayerType.CONSTANT, trt.LayerType.SHAPE}
    for layer in map(network.get_layer, range(network.num_layers)):
        if layer.type in unbound or not layer.num_outputs:
            continue
        if layer.get_output(0).dtype == trt.DataType.FLOAT:
            layer.precision = trt.DataType.FLOAT


def _set_options(trt: Any, config: Any, request: BuildRequest) -> None:
    """Pass the options of the request to the builder, or refuse those that this version lacks."""
    flags = trt.BuilderFlag
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # In 8.6 only one execution context can use the profile otherwise; the runtime has one per batch size.
    sharing = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    # TF32 is on by default, and has only ten bits of mantissa.
    if hasattr(flags, "TF32") and not request.tf32:
        config.clear_flag(flags.TF32)
    for wanted, kind, supported in (
        (request.hardware_compatible, "hardware-compatible", hasattr(trt, "HardwareCompatibilityLevel")),
        (request.version_compatible, "version-compatible", hasattr(flags, "VERSION_COMPATIBLE")),
    ):
        if wanted and not supported:
            raise YolactError(f"version {trt.__version__} has no {kind} engines; leave out --{kind}")
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if hasattr(trt, "ComputeCapability") and request.capabilities and request.library == "tensorrt_rtx":
        config.num_compute_capabilities = len(request.capabilities)
        for index, value in enumerate(request.capabilities):
            if value not in (known := known_capabilities(trt)):
                raise YolactError(f"capability {value} is unknown to this version; known: {', '.join(known)}")
            name = "SM" + value.replace(".", "")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _add_profile(builder: Any, config: Any, network: Any, profile: tuple[int, int, int]) -> None:
    """Set the batch sizes of a dynamic input."""
    images = network.get_input(0)
    batch, *rest = tuple(images.shape)
    if batch != -1:
        return
    shapes = builder.create_optimization_profile()
    shapes.set_shape(images.name, *((count, *rest) for count in profile))
    if config.add_optimization_profile(shapes) < 0:
        raise YolactError(f"the library refuses the batch range {profile}")


def _make_monitor(trt: Any, progress: Progress) -> Any:
    """A progress monitor of the library's own type."""

    class Monitor(trt.IProgressMonitor):
        """Passes the builder's progress on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress("start", phase, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            progress("step", phase, step + 1)
            return True

        def phase_finish(self, phase: str) -> None:
            progress("end", phase, 0)

    return Monitor()


class _TimingCache:
    """The measured times of earlier builds, which only save time: whatever fails is a note."""

    def __init__(self, trt: Any, request: BuildRequest, notes: list[str]) -> None:
        self._file = Path(request.timing_cache) if request.timing_cache else None
        self._label, self._inputs = request.default_cache, [request.default_cache, str(trt.__version__)]
        self._notes = notes
        what = "the timing cache"
        self._cache = Cache("timing", what, "starting a new one", notes.append)
        self._used = bool(self._file or self._label)

    def load(self, config: Any) -> None:
        """Give the builder the earlier times, if there are any."""
        if not self._used or not hasattr(config, "create_timing_cache"):
            self._used = False
            return
        data = self._read()
        if data is None:
            self._used = False
            return
        cache = config.create_timing_cache(data)
        if data and (cache is None or not config.set_timing_cache(cache, False)):
            name = self._file or self._cache.path(self._label, self._inputs)
            self._notes.append(f"timing cache {name} does not fit this library or device; starting a new one")
            cache, data = config.create_timing_cache(b""), b""
        if not data and (cache is None or not config.set_timing_cache(cache, False)):
            self._used = False

    def save(self, config: Any) -> None:
        """Keep the times of this build with the earlier ones."""
        if not self._used or (cache := config.get_timing_cache()) is None:
            return
        data = bytes(cache.serialize())
        if self._file is None:
            self._cache.write(self._label, self._inputs, base64.b64encode(data).decode())
            return
        try:
            with atomic_path(self._file) as temporary:
                temporary.write_bytes(data)
        except YolactError as error:
            self._notes.append(f"the timing cache is not saved: {error}")

    def _read(self) -> bytes | None:
        """The earlier times, b"" if there are none; None if their file cannot be read."""
        if self._file is None:
            decode = functools.partial(base64.b64decode, validate=True)
            return self._cache.read(self._label, self._inputs, decode) or b""
        try:
            return read_bytes(self._file, "timing cache") if self._file.exists() else b""
        except YolactError as error:
            self._notes.append(f"{error}; building without it")
            return None


def _inspect(trt: Any, logger: Any, engine: Any, version_compatible: bool) -> dict[str, int]:
    """Count the engine's layers by type; empty if it does not open on this machine or lists no types."""
    before = list(logger.errors)
    runtime = trt.Runtime(logger)
    # Such an engine holds code for the CPU, which is refused by default; this one was just built here.
    if version_compatible and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    opened = runtime.deserialize_cuda_engine(engine)
    logger.errors[:] = before
    if opened is None or not hasattr(opened, "create_engine_inspector"):
        return {}
    inspector = opened.create_engine_inspector()
    return count_engine(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _load(path: str) -> onnx.ModelProto | None:
    """The graph, for the names of its nodes; None if it cannot be read."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception:  # protobuf has its own exceptions; the parser's error is the one to report
        return None


def main() -> int:
    """Build one engine, as `yolact_export.trt.process` describes; the library's own output goes to stderr."""
    events = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")

    def send(**event: object) -> None:
        events.write(json.dumps(event) + "\n")

    def progress(kind: str, phase: str, steps: int) -> None:
        send(progress=[kind, phase, steps])

    request = BuildRequest.from_text(sys.stdin.read())
    try:
        try:
            library = importlib.import_module(request.library)
        except (ImportError, OSError) as error:
            raise YolactError(f"{request.library} does not load: {error}") from error
        send(result=dataclasses.asdict(build(library, request, progress)))
    except YolactError as error:
        send(error=str(error))
    except OSError as error:
        send(error=f"the engine cannot be written: {error.strerror or error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
