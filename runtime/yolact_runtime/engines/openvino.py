"""Runs OpenVINO files (`.xml` with its `.bin`) and ONNX files on CPUs in OpenVINO."""

from __future__ import annotations

import functools
import queue
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.engines.backends import IN_BF16, UNKNOWN
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.compiled import CompiledNetwork
from yolact_runtime.engines.content import content_hashes
from yolact_runtime.engines.onnx_file import check_onnx
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.stored import stored_metadata
from yolact_runtime.engines.threads import AUTO, check_threads, usable_cores
from yolact_runtime.errors import UsageError, YolactError, cause_line, run_failed
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.packages import imports_failed
from yolact_runtime.untrusted import check_regular

# Section of an OpenVINO file's runtime information with our properties, as strings.
SECTION = PREFIX.rstrip(".")
# Property of an OpenVINO file: the SHA-256 of its weights. Files of earlier versions have none.
WEIGHTS_HASH = f"{PREFIX}bin_sha256"
# The output that results keep.
_KEPT = "prototypes"
_PRODUCTS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul"}
_DTYPES = {"u8": "uint8", "f32": "float32"}
_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}


class OpenVinoEngine(Engine):
    """A model written by `yolact-export --to openvino` or `--to onnx`.

    Args:
        path: The `.xml` or `.onnx` file.
        threads: CPU threads, for all streams together; left out, as many as there are cores.
        precision: "bf16" computes an fp32 file in bf16, "int8+bf16" the floating-point part of an int8 file,
            on CPUs with bf16 units. By default OpenVINO does this where it is faster; here only on request.
        streams: Concurrent calls of `detect`, each from its own thread; more wait. "auto" is the number that
            OpenVINO expects the highest throughput of.

    Raises:
        YolactError: the file is missing or not from yolact-export, or the CPU has no bf16.
        UsageError: a precision that such files cannot run in, or less than one thread or stream.
    """

    path: Path

    reuses_outputs = False

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        precision: str | None = None,
        streams: int | str = 1,
    ) -> None:
        """Read, check and compile the file."""
        self.path = Path(path)
        check_threads(threads, streams)
        core = shared_core()
        needed = IN_BF16.get(precision or "")
        if needed and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise YolactError(f"{path}: this CPU has no bf16 arithmetic; use precision {needed}")
        self.threads = threads or usable_cores()
        settings: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "bf16" if needed else "f32",
            "INFERENCE_NUM_THREADS": self.threads,
        }
        if streams != AUTO:
            settings["NUM_STREAMS"] = streams
        compiled, delivered = self._compiled(settings, precision)
        stored = self.metadata.precision
        try:
            self.streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
            if streams != AUTO:
                self.streams = int(streams)
            self._precision = delivered
            if self._precision == UNKNOWN and stored == "fp32" and not needed:
                self._precision = stored  # nothing reduces it
            elif self._precision == UNKNOWN:
                self.unknown_because = "its graph has no convolutions"
            if precision == "int8+bf16" and self._precision == "int8":
                self._precision = precision
            self._requests: queue.SimpleQueue[Any] | None = queue.SimpleQueue()
            for _ in range(self.streams):
                self._requests.put(compiled.create_infer_request())
        except Exception as error:  # OpenVINO raises RuntimeErrors of many lines
            raise YolactError(f"{path}: OpenVINO cannot compile it: {cause_line(error)}") from error

    def _compiled(self, settings: dict[str, object], precision: str | None) -> tuple[Any, str]:
        """The compiled model and the precision that it delivers, from the cache folder if it is there.

        Sets what is known of the model.
        """
        core, needed = shared_core(), IN_BF16.get(precision or "")
        # Releases that import from files only would write another copy of the network at each start.
        takes_memory = "openvino.Tensor" in (type(core).import_model.__doc__ or "")
        kept = CompiledNetwork(self.path, "openvino", _version(), settings) if takes_memory else None
        metadata, memory = stored_metadata(self.path), _Memory()
        entry = kept.read(memory.allocate) if kept else None
        if kept and entry and metadata and not (needed and needed != metadata.precision):
            try:
                compiled = core.import_model(memory.tensor, "CPU", settings)
                delivered = str(entry.value["precision"])
                self.metadata = metadata
                self._check(compiled)
                return compiled, delivered
            except Exception as error:  # OpenVINO raises most of Python's exceptions
                kept.unusable(error)
        model, self.metadata = read_model(self.path)
        if needed and needed != self.metadata.precision:
            raise UsageError(
                f"{self.path}: precision {precision} needs a file in {needed}, but this one is in"
                f" {self.metadata.precision}; leave --precision out, or export it in {needed}"
            )
        self._check(model)
        try:
            compiled = core.compile_model(model, "CPU", settings)
            delivered = delivered_precision(compiled)
        except Exception as error:  # as above, of many lines
            raise YolactError(f"{self.path}: OpenVINO cannot compile it: {cause_line(error)}") from error
        # The next start takes the metadata from the text of the file: it must say the same.
        if kept and metadata == self.metadata and kept.may_be_kept():
            try:
                kept.write({"precision": delivered}, compiled.export_model().getbuffer())
            except Exception as error:  # as above
                kept.unusable(error)
        return compiled, delivered

    def _check(self, model: Any) -> None:
        """Check the inputs and outputs of a model, compiled or not."""
        self._outputs = GraphOutputs(self.metadata, self.path)
        self._outputs.check(_shapes(model.inputs, self.path), _shapes(model.outputs, self.path))
        given = model.inputs[0]
        kind = given.element_type.get_type_name()
        self._outputs.check_input(_shapes([given], self.path)[INPUT], _DTYPES.get(kind, kind))

    @property
    def name(self) -> str:
        return "OpenVINO CPU"

    @property
    def precision(self) -> str:
        return self._precision

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        """Run the model on a free request, waiting for one."""
        requests = self._requests
        if requests is None:
            raise YolactError(f"engine {self.path} is closed; open it again")
        request = requests.get()
        try:
            found = self._infer(request, batch)
            if self.metadata.detect != "runtime":
                return self._outputs.detections(
                    [value if name == _KEPT else np.array(value) for name, value in found.items()]
                )
            with self.timed("detect"):
                # Of the other heads, 9 MB for an image, only the rows of detections are kept.
                return self._outputs.detections(list(found.values()), classes)
        finally:
            requests.put(request)

    def _infer(self, request: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of the graph; the next call of the request overwrites all but `_KEPT`."""
        try:
            found = request.infer({INPUT: np.ascontiguousarray(batch)}, share_inputs=True, share_outputs=True)
            outputs = {name: found[name] for name in self._outputs.names}
            # Its array keeps the tensor, and the next call writes to another: nothing is copied.
            tensor = request.get_tensor(_KEPT)
            request.set_tensor(_KEPT, type(tensor)(tensor.element_type, tensor.shape))
            return outputs
        except Exception as error:  # as above
            raise run_failed(self.path, "OpenVINO", error, len(batch)) from error

    def close(self) -> None:
        self._requests = None


def delivered_precision(compiled: Any) -> str:
    """Precision of most convolutions and matrix products of a compiled model; `UNKNOWN` if it has none."""
    counts = count_precisions(compiled)
    if not counts:
        return UNKNOWN
    kind = counts.most_common(1)[0][0]
    return _TYPES.get(kind, kind)


def count_precisions(compiled: Any) -> Counter[str]:
    """Number of convolutions and matrix products of a compiled model by OpenVINO's name of their type."""
    counts: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) in _PRODUCTS:
            counts[info["runtimePrecision"].astype(str)] += 1
    return counts


def read_model(path: Path) -> tuple[Any, Metadata]:
    """OpenVINO's model of an `.xml` or `.onnx` file, and its metadata.

    Raises:
        YolactError: OpenVINO cannot read the file, or it is not from yolact-export.
    """
    is_onnx = path.suffix.lower() == ".onnx"
    # Before OpenVINO sees the file, which takes data from wherever an ONNX file says.
    props = dict(check_onnx(path).properties) if is_onnx else {}
    if not is_onnx:
        check_regular(path, "OpenVINO file")
        check_regular(path.with_suffix(".bin"), "OpenVINO file")
    core = shared_core()
    try:
        model = core.read_model(path)
        if not is_onnx:
            info = model.get_rt_info()
            names = info[SECTION] if SECTION in info else ()  # noqa: SIM401 - it has no `get`
            props = {f"{PREFIX}{name}": model.get_rt_info([SECTION, name]).astype(str) for name in names}
    except Exception as error:  # it raises most of Python's exceptions, from those of C++
        damaged = "the file" if is_onnx else "the file or its .bin"
        raise YolactError(
            f"{path}: OpenVINO cannot read it; if {damaged} is damaged, copy or export it again"
            f" ({cause_line(error)})"
        ) from error
    if not is_onnx and WEIGHTS_HASH in props:
        _check_weights(path.with_suffix(".bin"), props[WEIGHTS_HASH])
    return model, Metadata.from_props(props, path)


def _shapes(ports: Sequence[Any], path: str | Path) -> dict[str, list[object]]:
    """Names and shapes of inputs or outputs; a side that is not known is "?"; of no known rank, empty."""
    try:
        return {
            port.any_name: [side.get_length() if side.is_static else "?" for side in port.partial_shape]
            if port.partial_shape.rank.is_static
            else []
            for port in ports
        }
    except Exception as error:  # as in `read_model`
        raise YolactError(f"{path}: OpenVINO cannot read it ({cause_line(error)})") from error


def _check_weights(path: Path, expected: str) -> None:
    """Raise a YolactError if a `.bin` is not the one that was written with its `.xml`."""
    (found,) = content_hashes([path])
    if found != expected:
        raise YolactError(
            f"{path} is damaged or of another model: its SHA-256 is {found[:12]}..., its .xml says"
            f" {expected[:12]}...; copy both files again, or export them again"
        )


def _version() -> str:
    import openvino

    return str(openvino.get_version())


class _Memory:
    """Memory of OpenVINO, which uses it after all of Python's objects are gone."""

    tensor: Any = None

    def allocate(self, size: int) -> np.ndarray:
        """A view, (size,) uint8, of a new tensor."""
        import openvino

        self.tensor = openvino.Tensor(openvino.Type.u8, openvino.Shape([size]))
        view: np.ndarray = self.tensor.data
        return view


def shared_core() -> Any:
    """OpenVINO's core, one for the lifetime of the process.

    Each core's CPU plugin sets an alternate signal stack for its thread and removes it at its end. Cores that
    do not end in reverse order leave a dangling stack, and the next signal (Ctrl-C, the end of a child
    process) kills the process.

    Raises:
        YolactError: OpenVINO is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise imports_failed(error, "backend openvino") from error
    return _make_core(openvino)


@functools.cache
def _make_core(openvino: Any) -> Any:
    core = openvino.Core()
    # Memory-mapped weights would change under a running engine if the file is overwritten.
    core.set_property({"ENABLE_MMAP": False})
    core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plugin
    # Makes OpenVINO's table of types: two threads whose first inferences make it at once wait for each other
    # for ever, one for the table and one for Python's lock.
    openvino.Type.f32.to_dtype()
    return core
