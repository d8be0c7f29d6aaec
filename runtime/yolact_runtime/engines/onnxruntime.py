"""Runs ONNX files in ONNX Runtime."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from yolact_runtime.detections import Detections
from yolact_runtime.engines.backends import UNKNOWN
from yolact_runtime.engines.base import Engine
from yolact_runtime.engines.compiled import CompiledNetwork
from yolact_runtime.engines.io_binding import BoundSession
from yolact_runtime.engines.onnx_file import check_onnx, read_nodes
from yolact_runtime.engines.outputs import INPUT, GraphOutputs
from yolact_runtime.engines.threads import AUTO, check_threads, usable_cores
from yolact_runtime.errors import UsageError, YolactError, first_line, run_failed
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.untrusted import MIB

_CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# Providers that take a device number, as in `cuda:1`.
_NUMBERED = {CUDA, "TensorrtExecutionProvider", "DmlExecutionProvider", "ROCMExecutionProvider"}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
_FLOAT_PRODUCTS = {"Conv", "FusedConv", "NhwcFusedConv", "MatMul", "FusedMatMul", "Gemm", "FusedGemm"}
_INTEGER_PRODUCTS = {
    *("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
}
# Bytes of an fp32 file above which its optimised graph is not kept.
_LARGE = 32 * MIB
# More concurrent calls gain little, and each has its own working memory.
_MOST_STREAMS = 8


class OnnxRuntimeEngine(Engine):
    """An ONNX file written by yolact-export.

    Args:
        path: The file.
        providers: ONNX Runtime's execution providers, best first, as "CUDAExecutionProvider" or short
            "cuda", "cuda:1" for the second device; the CPU provider runs what the others cannot. Left
            out: the CPU.
        threads: CPU threads, for all streams together; left out, as many as there are cores.
        streams: Concurrent calls of `detect`, each from its own thread. A call computes on its own thread
            and on threads that are not streams, so with as many streams as threads each call has one.
            "auto" is that (at most 8), or 1 on a GPU.

    Raises:
        YolactError: not an ONNX file from yolact-export, or a named provider does not load.
        UsageError: an unknown provider, or less than one thread or stream.
    """

    path: Path

    reuses_outputs = False

    def __init__(
        self,
        path: str | Path,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        streams: int | str = 1,
    ) -> None:
        """Open the file and check it."""
        import onnxruntime

        self.path = Path(path)
        check_threads(threads, streams)
        properties = check_onnx(self.path).properties
        available = onnxruntime.get_available_providers()
        wanted = [_provider(name, available) for name in providers or ["cpu"]]
        asked, first = (providers or ["cpu"])[0], wanted[0][0]
        if first == _CPU:
            self.threads = threads or usable_cores()
            self.streams = min(self.threads, _MOST_STREAMS) if streams == AUTO else int(streams)
            threads = max(1, self.threads - self.streams + 1)
        else:
            self.streams = 1 if streams == AUTO else int(streams)
        self._session: Any = None
        stored = properties.get(f"{PREFIX}precision", "").strip('"')
        self._session, self._delivered = self._open_inspected(wanted, threads, stored)
        delivered = self._session.get_providers()[0]
        if delivered != first:
            raise YolactError(
                f"{self.path}: provider {asked} does not load on this machine (ONNX Runtime fell back to"
                f" {delivered}); install its libraries, or use --backend onnxruntime --providers cpu"
            )
        self.metadata = Metadata.from_props(properties, self.path)
        self._outputs = GraphOutputs(self.metadata, self.path)
        inputs, outputs = (
            {value.name: value.shape for value in values}
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        self._outputs.check(inputs, outputs)
        kind = self._session.get_inputs()[0].type
        self._outputs.check_input(inputs[INPUT], _DTYPES.get(kind, kind))
        # On the CPU the session returns new arrays without copying: binding saves nothing.
        self._bound = (
            BoundSession(self._session, INPUT, self._outputs.names, self.streams) if first == CUDA else None
        )

    @property
    def name(self) -> str:
        if self._session is None:
            return "ONNX Runtime"
        return f"ONNX Runtime {self._session.get_providers()[0].removesuffix('ExecutionProvider')}"

    @property
    def precision(self) -> str:
        return self._delivered

    def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
        session, bound = self._session, self._bound
        if session is None:
            raise YolactError(f"engine {self.path} is closed; open it again")
        try:
            values = bound.run(batch) if bound else session.run(self._outputs.names, {INPUT: batch})
        except Exception as error:  # the exceptions of ONNX Runtime have no other common base
            raise run_failed(self.path, "ONNX Runtime", error, len(batch)) from error
        if self.metadata.detect != "runtime":
            return self._outputs.detections(values)
        with self.timed("detect"):
            return self._outputs.detections(values, classes)

    def close(self) -> None:
        self._session = self._bound = None

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._session is None

    def values(self) -> list[Any]:
        """The input and the outputs that are used, as the session describes them."""
        outputs = {value.name: value for value in self._session.get_outputs()}
        return [*self._session.get_inputs(), *(outputs[name] for name in self._outputs.names)]

    def open_session(self, providers: Sequence[str], options: dict[str, str], threads: int | None) -> Any:
        """Another session of the file, with more options of its first provider.

        Raises:
            YolactError: it cannot be opened.
        """
        import onnxruntime

        (name, own), *rest = [_provider(one, onnxruntime.get_available_providers()) for one in providers]
        return _open_session(self.path, [(name, own | options), *rest], threads)

    def _open_inspected(
        self, providers: list[tuple[str, dict[str, str]]], threads: int | None, stored: str
    ) -> tuple[Any, str]:
        """A session and the precision that it computes in, as its optimised graph shows.

        Args:
            providers, threads: As in `_open_session`.
            stored: The precision of the file.
        """
        inspected = stored in ("fp16", "int8")
        if not inspected and stored != "fp32":
            self.unknown_because = "the metadata cannot be read from the file"
            return _open_session(self.path, providers, threads), UNKNOWN
        kept = self._kept(providers, stored)
        if kept and (entry := kept.read()):
            try:
                session = _open_session(self.path, providers, threads, content=bytes(entry.data))
                computed, self.unknown_because = str(entry.value["precision"]), str(entry.value["unknown"])
                return session, computed
            except (YolactError, LookupError) as error:
                kept.unusable(error)
        keep = kept is not None and kept.may_be_kept()
        if not inspected and not keep:
            return _open_session(self.path, providers, threads), stored
        try:
            with tempfile.TemporaryDirectory() as folder:
                written = Path(folder) / "optimised.onnx"
                session = _open_session(self.path, providers, threads, written)
                computed = delivered_precision(read_nodes(written), stored) if inspected else stored
                self.unknown_because = "its graph has no convolutions" if computed == UNKNOWN else ""
                if kept and keep:
                    value = {"precision": computed, "unknown": self.unknown_because}
                    kept.write(value, written.read_bytes())
        except (YolactError, OSError, ValueError) as error:
            # A full disk, or a provider that compiles the graph; a broken file fails again.
            session, computed = _open_session(self.path, providers, threads), UNKNOWN if inspected else stored
            reason = (isinstance(error, OSError) and error.strerror) or first_line(error.__cause__ or error)
            if inspected:
                self.unknown_because = (
                    f"its optimised graph cannot be written to {_temporary()} ({reason}); if that folder is"
                    " full, set TMPDIR to another"
                )
        return session, computed

    def _kept(self, providers: list[tuple[str, dict[str, str]]], stored: str) -> CompiledNetwork | None:
        """Where the optimised graph is kept.

        None if it is not kept: other providers compile it themselves, weights in other files would be looked
        for in the cache folder, and of a large file without conversions reading takes as long as optimising.
        """
        import onnxruntime

        if any(name != _CPU for name, _ in providers) or check_onnx(self.path).external:
            return None
        if stored == "fp32" and self.path.stat().st_size > _LARGE:
            return None
        # It is the same for any number of threads.
        return CompiledNetwork(self.path, "onnxruntime", onnxruntime.__version__, [])


def _open_session(
    path: Path,
    providers: list[tuple[str, dict[str, str]]],
    threads: int | None,
    written: Path | None = None,
    content: bytes | None = None,
) -> Any:
    """A session; `written` receives its optimised graph, and `content` is one that was written before."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if content is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if written is not None:
        options.optimized_model_filepath = str(written)
    # Fatal messages only: exceptions and the provider check report errors.
    options.log_severity_level = 4
    # Otherwise its threads keep spinning while masks are computed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    names = [name for name, _ in providers]
    if _CPU not in names:
        providers = [*providers, (_CPU, {})]
    if CUDA in names and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(
            content or str(path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # as above
        raise YolactError(
            f"{path}: ONNX Runtime cannot open it with {', '.join(names)}; if the file is"
            f" damaged, copy or export it again ({first_line(error)})"
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(2)
    # Otherwise the CPU silently replaces a provider that fails later.
    session.disable_fallback()
    return session


def delivered_precision(nodes: Iterable[tuple[str, str]], stored: str) -> str:
    """The precision that ONNX Runtime's optimised graph computes in.

    Without a kernel for a type, ONNX Runtime inserts casts or dequantisation before a float32 kernel.

    Args:
        nodes: Name and operator of each node.
        stored: The precision of the file, "fp16" or "int8".

    Returns:
        "fp32", "fp16" or "int8"; `UNKNOWN` if there are no convolutions or matrix products.
    """
    nodes = list(nodes)
    integers, products = count_products(kind for _, kind in nodes)
    if integers:
        return "int8" if 2 * integers >= products else "fp32"
    if not products:
        return UNKNOWN
    widened = any(name.startswith("InsertedPrecisionFreeCast") for name, _ in nodes)
    return "fp32" if widened or stored == "int8" else stored


def count_products(kinds: Iterable[str]) -> tuple[int, int]:
    """Convolutions and matrix products that are computed in integers, and all, of these operators."""
    kinds = list(kinds)
    integers = sum(kind in _INTEGER_PRODUCTS for kind in kinds)
    return integers, integers + sum(kind in _FLOAT_PRODUCTS for kind in kinds)


def optimised_operators(path: Path) -> list[str]:
    """The operators of an ONNX file as ONNX Runtime computes it on this CPU.

    Raises:
        YolactError: ONNX Runtime cannot open it, or its graph cannot be written to the temporary folder.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "optimised.onnx"
            _open_session(path, [(_CPU, {})], None, written)
            return [kind for _, kind in read_nodes(written)]
    except OSError as error:
        raise YolactError(f"{path}: ONNX Runtime's graph cannot be written: {error}") from error


def _temporary() -> str:
    """The folder for temporary files; its variable if there is none that can be written to."""
    try:
        return tempfile.gettempdir()
    except OSError:
        return "$TMPDIR"


def _provider(text: str, available: list[str]) -> tuple[str, dict[str, str]]:
    """ONNX Runtime's name and options for a provider named by the user."""
    name, colon, device = text.partition(":")
    wanted = name.lower().removesuffix("executionprovider")
    short = {provider.lower().removesuffix("executionprovider"): provider for provider in available}
    if wanted not in short:
        raise UsageError(f"provider {name!r} is not in this ONNX Runtime; it has {', '.join(short)}")
    provider = short[wanted]
    # By default it rounds float32 convolutions to TensorFloat-32.
    options = {"use_tf32": "0"} if provider == CUDA else {}
    if not colon:
        return provider, options
    if provider not in _NUMBERED or not re.fullmatch(r"\d+", device):
        raise UsageError(f"provider {text!r}: only GPU providers take a device number, as in cuda:1")
    return provider, {"device_id": device, **options}
