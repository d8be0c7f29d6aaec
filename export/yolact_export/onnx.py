"""Writing the ONNX file and checking what was written."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import onnx
import torch
from onnxscript import optimizer

from yolact.engine import describe
from yolact.model import Yolact
from yolact_export.graph import ExportedYolact
from yolact_export.nodes import MAX_TOPK, describe_node, nodes
from yolact_export.rescoring import pack_mask_iou_net
from yolact_runtime.errors import UsageError, YolactError

# The newest that TensorRT 8.6, the last for the GTX 1080 Ti, reads; it has all that is needed.
OPSET = 17
# Data-dependent shapes: neither CUDA graphs nor TensorRT-RTX take them.
FORBIDDEN = {"NonMaxSuppression", "NonZero", "Loop", "If", "Scan"}


@dataclass(frozen=True)
class OnnxOptions:
    """What is to be in the file.

    Attributes:
        detect: "native" for detections, "runtime" for the raw heads.
        batch: Images in every call, where `max_batch` is None.
        max_batch: Makes the batch dynamic, 1 to this many.
        input_type: "uint8", or "float32" for images resized without rounding.
        command: The command line, for the metadata.
        weights_sha256: Of the checkpoint, for the metadata.
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
        model: Any device; it is left as it is.
        path: To be written; the caller sees to it that a failure leaves nothing under the final name.
        options: What is to be in it.

    Raises:
        YolactError: the graph is not valid ONNX or holds an operator that some backend refuses.
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


def _trace(module: ExportedYolact, path: Path, options: OnnxOptions) -> onnx.ModelProto:
    size = module.model.config.model.input_size
    # Two images where the batch is dynamic: with one, a traced size could pass for a constant.
    batch = 2 if options.max_batch else options.batch
    dtype = torch.uint8 if options.input_type == "uint8" else torch.float32
    images = torch.zeros(batch, size, size, 3, dtype=dtype)
    names = list(module.output_names)
    dynamic = {name: {0: "batch"} for name in ["images", *names]} if options.max_batch else None
    with warnings.catch_warnings(), torch.inference_mode():
        # Sizes that depend on the batch stay symbolic; that all others become constants is intended.
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
        # Inference loses sizes on the way; only the batch is really open.
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis or not options.max_batch:
                dim.dim_value = output.shape[axis]
    return graph


def check_graph(graph: onnx.ModelProto) -> None:
    """Check that `graph` is valid and keeps to what every backend takes.

    Raises:
        YolactError: names the node and why.
    """
    try:
        onnx.checker.check_model(graph, full_check=True)
    except onnx.checker.ValidationError as error:
        raise YolactError(f"the exported graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    constants = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in nodes(graph.graph):
        where = describe_node(node)
        if node.domain not in ("", "ai.onnx"):
            raise YolactError(
                f"{where} is of the domain {node.domain}; only plain ONNX operators are allowed"
            )
        if node.op_type in FORBIDDEN:
            raise YolactError(f"{where} makes shapes depend on data; it is not allowed")
        if node.op_type == "TopK":
            k = constants.get(node.input[1])
            if k is None:
                raise YolactError(f"{where}: k is not a constant")
            value = int(onnx.numpy_helper.to_array(k).item())
            if value > MAX_TOPK:
                raise YolactError(f"{where}: k is {value}; TensorRT allows {MAX_TOPK}")
