"""Writes a network as an ONNX file and checks the graph."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript import optimizer
from torch import nn

from yolact.engine import describe
from yolact.model import Yolact
from yolact_export.graph import ExportedYolact
from yolact_export.onnx_graph import DATA_DEPENDENT, iterate_nodes, operator_problem, small_constants
from yolact_runtime.errors import UsageError, YolactError

# The newest opset that TensorRT 8.6 reads, the last version for the GTX 1080 Ti.
OPSET = 17


@dataclass(frozen=True)
class OnnxOptions:
    """What to put into the file.

    Attributes:
        detect: "native" for detections, "runtime" for the raw heads.
        batch: Images in every call if `max_batch` is None.
        max_batch: Makes the batch dynamic, 1 to this many.
        input_type: "uint8", or "float32" for images resized without rounding.
        command: The command line, for the metadata.
        weights_sha256: SHA-256 of the checkpoint, for the metadata.
    """

    detect: str = "native"
    batch: int = 1
    max_batch: int | None = None
    input_type: str = "uint8"
    command: str = ""
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        for name in ("batch", "max_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}; allowed: 1 or more")
        if self.max_batch is not None and self.batch > self.max_batch:
            raise UsageError(f"batch {self.batch} is larger than max_batch {self.max_batch}")


def write_onnx(model: Yolact, path: Path, options: OnnxOptions) -> onnx.ModelProto:
    """Write `model` as one self-describing ONNX file and check it.

    Args:
        model: On any device; it is not changed.
        path: Where to write; after a failure the caller deletes what is there.
        options: What to put into the file.

    Returns:
        The graph, with inferred types and metadata.

    Raises:
        UsageError: the configured NMS cannot be exported.
        YolactError: the graph is not valid ONNX, or some backend refuses one of its operators.
    """
    allowed = {"native": ("fast", "cross_class"), "runtime": ("fast",)}[options.detect]
    if model.config.detect.nms not in allowed:
        raise UsageError(
            f"detect.nms is {model.config.detect.nms}; --detect {options.detect} allows {', '.join(allowed)}"
        )
    graph = _trace(ExportedYolact(model, options.detect), path, options)
    metadata = describe(
        model.config,
        detect=options.detect,
        input_dtype=options.input_type,
        min_batch=1 if options.max_batch else options.batch,
        max_batch=options.max_batch or options.batch,
        precision="fp32",
        mask_iou_net=pack_mask_iou_net(model) if options.detect == "runtime" else "",
        weights_sha256=options.weights_sha256,
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "yolact": version("yolact")},
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=options.command,
    )
    onnx.helper.set_model_props(graph, metadata.to_props())
    graph.producer_name, graph.producer_version = "yolact-export", version("yolact")
    check_graph(graph)
    path.write_bytes(graph.SerializeToString())
    return graph


def pack_mask_iou_net(model: Yolact) -> str:
    """The weights of the mask re-scoring network (YOLACT++, Sec. 6.1), for the runtime to evaluate.

    A graph that returns raw heads leaves detection to the runtime, and with it re-scoring.

    Returns:
        base64 of an .npz with weight0, bias0, weight1, ...; "" if the model does not re-score masks.
    """
    if not model.config.model.mask_iou:
        return ""
    convs = [module for module in model.maskiou_net.modules() if isinstance(module, nn.Conv2d)]
    arrays: dict[str, np.ndarray] = {}
    for index, conv in enumerate(convs):
        assert conv.bias is not None
        arrays[f"weight{index}"] = conv.weight.detach().cpu().numpy()
        arrays[f"bias{index}"] = conv.bias.detach().cpu().numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _trace(module: ExportedYolact, path: Path, options: OnnxOptions) -> onnx.ModelProto:
    """Trace the module to an optimised graph with inferred shapes; `path` is overwritten on the way."""
    height, width = module.model.config.model.input_shape
    # Two images for a dynamic batch: with one, a traced size could become a constant.
    batch = 2 if options.max_batch else options.batch
    dtype = torch.uint8 if options.input_type == "uint8" else torch.float32
    images = torch.zeros(batch, height, width, 3, dtype=dtype)
    names = list(module.output_names)
    dynamic = {name: {0: "batch"} for name in ["images", *names]} if options.max_batch else None
    with warnings.catch_warnings(), torch.inference_mode():
        # Sizes that depend on the batch stay symbolic; all others become constants, as intended.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (images,),
            str(path),
            input_names=["images"],
            output_names=names,
            dynamic_axes=dynamic,
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
        outputs = module(images)
    graph = onnx.shape_inference.infer_shapes(optimizer.optimize(onnx.load(path)), data_prop=True)
    for value, output in zip(graph.graph.output, outputs, strict=True):
        # Shape inference loses some sizes; only the batch is really dynamic.
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis or not options.max_batch:
                dim.dim_value = output.shape[axis]
    return graph


def check_graph(model: onnx.ModelProto) -> None:
    """Check that a graph is valid ONNX and has only operators that every backend accepts.

    Raises:
        YolactError: names the first offending node and the reason.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise YolactError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    constants = small_constants(model.graph)
    for node in iterate_nodes(model.graph):
        if problem := operator_problem(node, constants, refused=DATA_DEPENDENT | {"If"}):
            raise YolactError(problem)
