"""The work that ceilings are measured with, library by library; a missing library has no probes.

A probe is valid until its generator goes on to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from yolact_runtime.engines.openvino import shared_core
from yolact_runtime.errors import YolactError, first_line

log = logging.getLogger(__name__)

# Type of arithmetic or "bandwidth", name, operations or bytes of a run, the run.
Probe = tuple[str, str, int, Callable[[], object]]

SIDE = 1024  # of square matrices
GPU_SIDE = 8192
CHANNELS, CELLS = 256, 64  # of a convolution as large as one of the pyramid's


def numpy_probes(threads: int, size: int) -> Iterator[Probe]:
    """Copies of `size` bytes; no products, as the threads of the BLAS are chosen before NumPy is imported."""
    source, target = np.ones(size // 4, np.float32), np.zeros(size // 4, np.float32)
    shares = [np.array_split(array, threads) for array in (target, source)]
    with ThreadPoolExecutor(threads) as pool:
        yield "bandwidth", "NumPy copy", 2 * size, lambda: list(pool.map(np.copyto, *shares))


def torch_probes(threads: int, size: int) -> Iterator[Probe]:
    """Matrix products, and copies and sums of `size` bytes, by PyTorch on the CPU."""
    try:
        import torch
    except ImportError:
        return
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for name in ("float32", "bfloat16"):
            a, b = (torch.rand(SIDE, SIDE).to(getattr(torch, name)) for _ in range(2))
            yield name, "PyTorch matmul", 2 * SIDE**3, partial(torch.mm, a, b)
        source, target, third = (torch.ones(size // 4) for _ in range(3))
        yield "bandwidth", "PyTorch copy", 2 * size, partial(target.copy_, source)
        yield "bandwidth", "PyTorch triad", 3 * size, partial(torch.add, source, third, alpha=2.0, out=target)
    finally:
        torch.set_num_threads(before)


def ort_probes(threads: int) -> Iterator[Probe]:
    """Matrix products and convolutions, by ONNX Runtime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    for kind, name, operations, model, feed in _models():
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        yield kind, f"ONNX Runtime {name}", operations, partial(session.run, None, feed)


def openvino_probes(threads: int) -> Iterator[Probe]:
    """The same models by OpenVINO on the CPU, and the float ones in bfloat16 where the CPU has it."""
    try:
        core = shared_core()
    except YolactError:  # not installed
        return
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for kind, name, operations, model, feed in _models():
        for delivered in ("float32", "bfloat16") if kind == "float32" and has_bf16 else (kind,):
            settings["INFERENCE_PRECISION_HINT"] = "bf16" if delivered == "bfloat16" else "f32"
            try:
                compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
            except RuntimeError as error:
                log.debug("OpenVINO does not take %s in %s: %s", name, delivered, first_line(error))
                continue
            run = partial(compiled.create_infer_request().infer, feed)
            yield delivered, f"OpenVINO {name}", operations, run


def gpu_probes() -> Iterator[Probe]:
    """Matrix products by PyTorch on the first GPU; float32 without TensorFloat-32.

    Raises:
        YolactError: PyTorch finds no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise YolactError("PyTorch finds no CUDA device here; install a build of it with CUDA")
    torch.backends.cuda.matmul.allow_tf32 = False

    def timed(product: Callable[..., object], a: object, b: object) -> None:
        product(a, b)
        torch.cuda.synchronize()

    for name in ("float32", "float16", "bfloat16", "int8"):
        a, b = (2 * torch.rand(GPU_SIDE, GPU_SIDE, device="cuda") for _ in range(2))
        a, b = (matrix.to(getattr(torch, name)) for matrix in (a, b))
        product = partial(timed, torch._int_mm if name == "int8" else torch.mm, a, b)
        try:
            product()
        except RuntimeError as error:  # older cards
            log.info("no %s matrix product by PyTorch on this GPU: %s", name, first_line(error))
            continue
        yield name, "PyTorch matmul", 2 * GPU_SIDE**3, product


def _models() -> Iterator[tuple[str, str, int, onnx.ModelProto, dict[str, np.ndarray]]]:
    """Type, name, operations, graph and input of each small model."""
    random = np.random.default_rng(0)
    for quantised in (False, True):
        kind = "int8" if quantised else "float32"
        for side in (1, 3):
            weight = random.standard_normal((CHANNELS, CHANNELS, side, side), np.float32)
            x = random.standard_normal((1, CHANNELS, CELLS, CELLS), np.float32)
            model = _graph(x, weight, f"Conv <pads = {[side // 2] * 4}>", quantised)
            yield kind, f"{side}x{side} convolution", 2 * weight.size * CELLS**2, model, {"x": x}
        weight, x = (random.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
        yield kind, "matmul", 2 * SIDE**3, _graph(x, weight, "MatMul", quantised), {"x": x}


def _graph(x: np.ndarray, weight: np.ndarray, operator: str, quantised: bool) -> onnx.ModelProto:
    """x times a weight; quantised as our int8 graphs: unsigned data after a ReLU."""
    weights = {"w": weight}
    nodes = f"y = {operator} (x, w)"
    if quantised:
        scale = np.array(float(np.abs(weight).max()) / 127, np.float32)
        weights = {"w8": (weight / scale).round().astype(np.int8), "ws": scale, "wz": np.array(0, np.int8)}
        weights |= {"xs": np.array(np.abs(x).max() / 255, np.float32), "xz": np.array(0, np.uint8)}
        # ONNX Runtime takes its integer convolution only between two pairs of quantisation.
        nodes = f"""r = Relu (x) q = QuantizeLinear (r, xs, xz) d = DequantizeLinear (q, xs, xz)
            w = DequantizeLinear (w8, ws, wz) p = {operator} (d, w)
            pq = QuantizeLinear (p, xs, xz) y = DequantizeLinear (pq, xs, xz)"""
    outputs = ", ".join("?" * x.ndim)
    head = f'<ir_version: 8, opset_import: ["" : 17]> probe (float{[*x.shape]} x) => (float[{outputs}] y)'
    model = onnx.parser.parse_model(f"{head} {{{nodes}}}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model
