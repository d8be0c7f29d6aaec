"""A build with whatever TensorRT is at hand.

Versions are told apart by what their API has, never by number: 8.6 has precision flags and no strong typing,
10 has both, 11 has strong typing only, and TensorRT-RTX is 11's API with compute capabilities to choose.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from yolact_export.trt import precision
from yolact_export.trt.errors import build_error, parser_error
from yolact_export.trt.request import Answer, Request
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_path
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

# What happens during a build: ("start", phase, steps), ("step", phase, done) or ("end", phase, 0).
Progress = Callable[[str, str, int], None]


def build(trt: Any, request: Request, progress: Progress) -> Answer:
    """Build an engine and write it to `request.engine`.

    Args:
        trt: The imported library.
        request: What to build.
        progress: Told of what happens, where the library tells it.

    Raises:
        YolactError: the library refuses the graph or the options; one line with node, operator and hint.
    """
    started = time.monotonic()
    notes: list[str] = []
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    if not builder:
        raise YolactError(f"the builder does not start: {build_error(logger.errors, None)}")
    network, typed = _make_network(trt, builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request.onnx):
        raise YolactError(parser_error(parser, _load(request.onnx)))
    if request.plugin:
        _add_plugins(trt, network, request)
    config = builder.create_builder_config()
    if not typed:
        _set_precision(trt, config, network, request.precision)
    _set_options(trt, config, request)
    _add_profile(builder, config, network, request.profile)
    if hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _make_monitor(trt, progress)
    cache_file = _load_timing_cache(trt, config, request, notes)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise YolactError(build_error(logger.errors, _load(request.onnx)))
    Path(request.engine).write_bytes(engine)
    _save_timing_cache(config, cache_file, notes)
    counted = precision.of_network(trt, network)
    compute = _inspect(trt, logger, engine, request.version_compatible)
    if not compute and not typed:
        raise YolactError("the engine cannot be inspected, so its precision is unknown; it is not kept")
    return Answer(
        version=str(trt.__version__),
        compute=compute or counted,
        network=counted,
        inspected="engine" if compute else "network",
        seconds=time.monotonic() - started,
        notes=notes,
    )


def known_capabilities(trt: Any) -> tuple[str, ...]:
    """Compute capabilities, such as "8.6", to choose from; empty where a library has no such choice."""
    names = getattr(getattr(trt, "ComputeCapability", None), "__members__", ())
    return tuple(f"{name[2:-1]}.{name[-1]}" for name in names if re.fullmatch(r"SM\d{2,3}", name))


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Keeps the errors; everything else is for `--debug`."""

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
    """An empty network and whether the graph's types bind it."""
    flags = trt.NetworkDefinitionCreationFlag
    typed = hasattr(flags, "STRONGLY_TYPED")
    wanted = 1 << int(flags.STRONGLY_TYPED) if typed else 0
    if not typed and hasattr(flags, "EXPLICIT_BATCH"):
        wanted |= 1 << int(flags.EXPLICIT_BATCH)
    return builder.create_network(wanted), typed


def _add_plugins(trt: Any, network: Any, request: Request) -> None:
    """Detection by the runtime's kernels, at the end of the network."""
    from yolact_export.trt.plugin import add_detection

    metadata = Metadata.from_props(request.plugin, request.onnx)
    # PTX runs on the capability it is made for and on all later ones.
    capability = "8.0" if request.hardware_compatible else request.capabilities[0]
    add_detection(trt, network, metadata, capability)


def _set_precision(trt: Any, config: Any, network: Any, wanted: str) -> None:
    """Where types do not bind: allow the lower ones, and hold each layer to the graph's type."""
    if wanted == "fp32":
        return
    flags = trt.BuilderFlag
    config.set_flag(flags.FP16 if wanted == "fp16" else flags.INT8)
    if wanted != "fp16":
        return
    # Otherwise box decoding and scores, which the graph keeps in float32, would be halved as well.
    config.set_flag(flags.PREFER_PRECISION_CONSTRAINTS)
    left_alone = {trt.LayerType.CONSTANT, trt.LayerType.SHAPE}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type in left_alone or layer.num_outputs == 0:
            continue
        if layer.get_output(0).dtype == trt.DataType.FLOAT:
            layer.precision = trt.DataType.FLOAT


def _set_options(trt: Any, config: Any, request: Request) -> None:
    flags = trt.BuilderFlag
    if request.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_mib << 20)
    if hasattr(trt, "ProfilingVerbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Without it, 8.6 gives the profile to one execution context; the runtime has one for each batch size.
    sharing = getattr(getattr(trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
    if sharing is not None:
        config.set_preview_feature(sharing, True)
    # It is on by default, and ten bits of mantissa are not what "fp32" promises.
    if hasattr(flags, "TF32") and not request.tf32:
        config.clear_flag(flags.TF32)
    if request.hardware_compatible:
        if not hasattr(trt, "HardwareCompatibilityLevel"):
            raise _lacks(trt, "hardware-compatible")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request.version_compatible:
        if not hasattr(flags, "VERSION_COMPATIBLE"):
            raise _lacks(trt, "version-compatible")
        config.set_flag(flags.VERSION_COMPATIBLE)
    if hasattr(trt, "ComputeCapability") and request.capabilities and request.library == "tensorrt_rtx":
        config.num_compute_capabilities = len(request.capabilities)
        for index, value in enumerate(request.capabilities):
            if value not in (known := known_capabilities(trt)):
                raise YolactError(
                    f"capability {value} is unknown to this version, which has {', '.join(known)}"
                )
            name = "SM" + value.replace(".", "")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _lacks(trt: Any, kind: str) -> YolactError:
    return YolactError(f"version {trt.__version__} has no {kind} engines; leave out --{kind}")


def _add_profile(builder: Any, config: Any, network: Any, profile: tuple[int, int, int]) -> None:
    """Say which batches a dynamic input takes."""
    images = network.get_input(0)
    batch, *rest = tuple(images.shape)
    if batch != -1:
        return
    shapes = builder.create_optimization_profile()
    shapes.set_shape(images.name, *((count, *rest) for count in profile))
    if config.add_optimization_profile(shapes) < 0:
        raise YolactError(f"the library refuses the batch range {profile}")


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Passes on what the builder is doing."""

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


def _load_timing_cache(trt: Any, config: Any, request: Request, notes: list[str]) -> Path | None:
    """Use the times that earlier builds with this version for this device measured; where to keep them."""
    if not (request.timing_cache or request.default_cache) or not hasattr(config, "create_timing_cache"):
        return None
    path = Path(request.timing_cache or f"{request.default_cache}-{trt.__version__}.timing")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:  # it only saves time
        notes.append(f"timing cache {path} cannot be read ({error.strerror or error}); building without it")
        return None
    cache = config.create_timing_cache(data)
    if data and (cache is None or not config.set_timing_cache(cache, False)):
        notes.append(f"timing cache {path} does not fit this library or device; starting a new one")
        cache, data = config.create_timing_cache(b""), b""
    if not data and (cache is None or not config.set_timing_cache(cache, False)):
        return None
    return path


def _save_timing_cache(config: Any, path: Path | None, notes: list[str]) -> None:
    if path is None or (cache := config.get_timing_cache()) is None:
        return
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(cache.serialize())
    except YolactError as error:  # it only saves time
        notes.append(f"the timing cache is not kept: {error}")


def _inspect(trt: Any, logger: Any, engine: Any, version_compatible: bool) -> dict[str, int]:
    """Count what computes in what in the engine; empty where it does not open here or does not tell."""
    kept = list(logger.errors)
    runtime = trt.Runtime(logger)
    # Such an engine brings code for the CPU, which is refused otherwise; this one was just built here.
    if version_compatible and hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True
    opened = runtime.deserialize_cuda_engine(engine)
    logger.errors[:] = kept
    if opened is None or not hasattr(opened, "create_engine_inspector"):
        return {}
    inspector = opened.create_engine_inspector()
    return precision.of_engine(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _load(path: str) -> onnx.ModelProto | None:
    """The graph for its names; None where it cannot be read."""
    try:
        return onnx.load(path, load_external_data=False)
    except Exception:  # protobuf's kinds; the parser's own error is the one to show
        return None
