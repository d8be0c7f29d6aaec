"""The runtime's detection kernels as TensorRT plugins, chained inside the engine.

An ahead-of-time plugin (TensorRT 10.8 and later) is one kernel launch: its PTX and launch parameters are
stored in the engine, which then runs without Python. Each launch of the plan becomes a plugin, and the plan's
buffers become the tensors between the plugins.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from yolact_runtime.cuda import nvrtc
from yolact_runtime.cuda.compile import compile_kernels, parse_capability
from yolact_runtime.cuda.gpu import current_gpu
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.plan import Buffer, Launch, Plan
from yolact_runtime.errors import YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.priors import make_priors

NAMESPACE = "yolact"
# Outputs of the plan that have another name in an engine, because a head has theirs here.
_OUTPUT_NAMES = {"kept_coefficients": "coefficients"}
# Numbers make names unique: a process keeps every plugin that it registers.
_numbers = itertools.count()


def load_plugin_api(trt: Any) -> Any:
    """`tensorrt.plugin` with ahead-of-time plugins.

    Raises:
        YolactError: this version has none.
    """
    try:
        api = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        api = None
    if not hasattr(api, "aot_impl"):
        raise YolactError(
            f"{trt.__name__} {trt.__version__} has no ahead-of-time plugins (TensorRT 10.8 and later);"
            " use --detect runtime, which runs the same kernels after the engine"
        )
    return api


def add_detection(trt: Any, network: Any, metadata: Metadata, capability: str) -> None:
    """Replace the raw heads in the outputs of a network by detections.

    Args:
        trt: TensorRT, 10.8 or later.
        network: A network with the outputs of `--detect runtime`: loc (N, P, 4), logits (N, P, C+1),
            coefficients (N, P, M) and prototypes.
        metadata: Thresholds and priors.
        capability: Compute capability to compile the kernels' PTX for, such as "8.6"; it also runs on later
            ones.

    Raises:
        YolactError: this version has no such plugins, or the network has other outputs.
    """
    api = load_plugin_api(trt)
    outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    heads = {name: outputs[name] for name in ("loc", "logits", "coefficients") if name in outputs}
    if len(heads) < 3 or metadata.priors is None:
        raise YolactError(
            "detection plugins need a graph whose outputs are raw heads; export it with --detect plugin"
        )
    spec = metadata.priors
    priors = make_priors(
        spec.levels, spec.scales, spec.aspect_ratios, metadata.input_size, spec.square
    ).astype(np.float32)
    types = _types(trt)
    dtypes = {dtype: name for name, dtype in types.items() if name != np.dtype(np.uint32)}

    def plan_for(batch: int) -> Plan:
        """The detection plan for a batch."""
        return detection_plan(
            batch,
            len(priors),
            heads["logits"].shape[2] - 1,
            heads["coefficients"].shape[2],
            score_threshold=metadata.score_threshold,
            iou_threshold=metadata.iou_threshold,
            top_k=metadata.nms_top_k,
            limit=metadata.max_detections,
            loc_dtype=dtypes[heads["loc"].dtype],
            logits_dtype=dtypes[heads["logits"].dtype],
            coefficients_dtype=dtypes[heads["coefficients"].dtype],
        )

    if tuple(heads["loc"].shape)[1:] != (len(priors), 4):
        raise YolactError(
            f"loc is {tuple(heads['loc'].shape)}, the metadata has {len(priors)} priors; export again"
        )
    tensors = heads | {"priors": network.add_constant(priors.shape, priors).get_output(0)}
    made = add_plan(trt, api, network, plan_for, tensors, capability)
    for name, tensor in heads.items():
        network.unmark_output(tensor)
        tensor.name = f"head_{name}"
    for buffer in plan_for(1).outputs:
        made[buffer.name].name = _OUTPUT_NAMES.get(buffer.name, buffer.name)
        network.mark_output(made[buffer.name])


def add_plan(
    trt: Any,
    api: Any,
    network: Any,
    plan_for: Callable[[int], Plan],
    tensors: Mapping[str, Any],
    capability: str,
) -> dict[str, Any]:
    """Add the launches of a plan to a network, one plugin each.

    Args:
        trt: TensorRT.
        api: `tensorrt.plugin`.
        network: The network to extend.
        plan_for: Returns the plan for a batch. Sizes that depend on the batch have to be proportional to it.
        tensors: The plan's inputs by name.
        capability: As for `add_detection`.

    Returns:
        All tensors by buffer name.

    Raises:
        ValueError: the plan cannot be expressed as plugins.
    """
    one, two = plan_for(1), plan_for(2)
    buffers = {a.name: (a, b) for a, b in zip(one.buffers, two.buffers, strict=True)}
    number, gpu = parse_capability(capability), current_gpu()
    # A driver rejects PTX of a newer CUDA than its own, also of the same major.
    newest = map(int, gpu.cuda.split(".")) if gpu else None
    compiler = nvrtc.choose(number, *newest) if newest else None
    modules = {
        source: compile_kernels(source, one.kernels(source), number, ptx=True, library=compiler)
        for source in one.sources
    }
    found = dict(tensors)
    for launches in zip(one.launches, two.launches, strict=True):
        kernel = _Kernel(*launches, buffers, set(found))
        module = modules[kernel.launch.source]
        entry = module.names[kernel.launch.kernel]
        plugin = kernel.register(trt, api, entry, module.image.decode())
        layer = network.add_plugin(plugin(*(found[name] for name in kernel.reads)), aot=True)
        if layer is None:
            raise YolactError(f"TensorRT does not accept the kernel {kernel.launch.kernel} as a plugin")
        layer.name = f"{NAMESPACE}/{kernel.launch.kernel}"
        for index, name in enumerate(kernel.writes):
            found[name] = layer.get_output(index)
    return found


@dataclass(frozen=True)
class _Size:
    """A size that is constant or proportional to the batch."""

    value: int
    of_batch: bool

    @classmethod
    def between(cls, one: int, two: int) -> _Size:
        """The size from its values for one and for two images."""
        if one == two:
            return cls(int(one), False)
        if two != 2 * one:
            raise ValueError(f"{one} for one image and {two} for two is neither constant nor proportional")
        return cls(int(one), True)

    def expression(self, batch: Any) -> Any:
        """The size as a number, or in terms of TensorRT's symbol for the batch."""
        if not self.of_batch:
            return self.value
        return batch if self.value == 1 else batch * self.value


class _Kernel:
    """One launch as a plugin; launches for one and for two images show which sizes depend on the batch."""

    def __init__(
        self, launch: Launch, twice: Launch, buffers: Mapping[str, tuple[Buffer, Buffer]], known: set[str]
    ) -> None:
        """Sort the arguments into tensors read, scalars and tensors written, and check their order."""
        self.launch = launch
        self.buffers = buffers
        names = [item for item in launch.arguments if isinstance(item, str)]
        self.reads = [name for name in names if name in known]
        self.writes = [name for name in names if name not in known]
        self.scalars = [item for item in launch.arguments if not isinstance(item, str)]
        # TensorRT passes inputs, then scalars, then outputs.
        if [*self.reads, *self.scalars, *self.writes] != list(launch.arguments):
            raise ValueError(f"{launch.kernel}: its arguments are not in the order of TensorRT's plugins")
        if twice.arguments != launch.arguments or twice.block != launch.block:
            raise ValueError(f"{launch.kernel}: its arguments or its block depend on the batch")
        self.grid = [_Size.between(*sizes) for sizes in zip(launch.grid, twice.grid, strict=True)]

    def shape(self, name: str) -> list[_Size]:
        """The sizes of a buffer."""
        one, two = self.buffers[name]
        return [_Size.between(*sides) for sides in zip(one.shape, two.shape, strict=True)]

    def batch(self, described: tuple[Any, ...]) -> Any:
        """TensorRT's symbol for the batch, from the descriptions of the kernel's inputs."""
        for name, tensor in zip(self.reads, described, strict=True):
            if self.shape(name)[0] == _Size(1, True):
                return tensor.shape_expr[0]
        raise ValueError(f"{self.launch.kernel}: none of its inputs has a batch")

    def register(self, trt: Any, api: Any, entry: str, ptx: str) -> Any:
        """Register the plugin; returns the function that creates it from input tensors."""
        name = "_".join([*re.findall(r"\w+", self.launch.kernel), str(next(_numbers))])
        types = _types(trt)

        def describe(*described: Any) -> Any:
            """Shapes and types of the outputs."""
            batch = self.batch(described)
            return tuple(
                api.from_shape_expr(
                    tuple(size.expression(batch) for size in self.shape(written)),
                    types[self.buffers[written][0].dtype],
                )
                for written in self.writes
            )

        def implement(*arguments: Any) -> Any:
            """Kernel, PTX, launch parameters and scalars."""
            *described, _, _ = arguments  # inputs, then outputs and tactic
            batch = self.batch(tuple(described))
            parameters = api.KernelLaunchParams()
            for axis, size, threads in zip("xyz", self.grid, self.launch.block, strict=True):
                setattr(parameters, f"grid_{axis}", size.expression(batch))
                setattr(parameters, f"block_{axis}", threads)
            parameters.shared_mem = self.launch.shared_bytes
            extra = api.SymIntExprs(len(self.scalars))
            for index, scalar in enumerate(self.scalars):
                # TensorRT passes only integers; the kernel reads the four bytes of a float scalar as a float.
                extra[index] = api.SymInt32(int(scalar.view(np.int32)))
            return entry, ptx, parameters, extra

        # TensorRT reads names and types from the signature.
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        inputs = [inspect.Parameter(item, kind, annotation=api.TensorDesc) for item in self.reads]
        returned = tuple.__class_getitem__((api.TensorDesc,) * len(self.writes))
        describe.__signature__ = inspect.Signature(inputs, return_annotation=returned)  # type: ignore[attr-defined]
        more = [inspect.Parameter(item, kind) for item in ("outputs", "tactic")]
        answer = tuple[str, str, api.KernelLaunchParams, api.SymIntExprs]
        implement.__signature__ = inspect.Signature([*inputs, *more], return_annotation=answer)  # type: ignore[attr-defined]

        api.register(f"{NAMESPACE}::{name}")(describe)
        api.aot_impl(f"{NAMESPACE}::{name}")(implement)
        return getattr(getattr(api.op, NAMESPACE), name)


def _types(trt: Any) -> dict[np.dtype, Any]:
    """TensorRT's types by NumPy's; it has no uint32, and int32 has the same size."""
    return {
        np.dtype(np.float32): trt.DataType.FLOAT,
        np.dtype(np.float16): trt.DataType.HALF,
        np.dtype(np.int32): trt.DataType.INT32,
        np.dtype(np.uint32): trt.DataType.INT32,
    }
