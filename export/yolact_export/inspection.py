"""`yolact-export inspect`: what an exported file or a checkpoint is."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import onnx

from yolact_export.onnx_graph import graph_metadata, read_graph
from yolact_export.precision.compute import by_group, layer_compute, percentages, shares
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.engines.onnxruntime import count_products, optimised_operators
from yolact_runtime.engines.tensorrt.record import read_engine
from yolact_runtime.engines.trial import try_engine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_file

log = logging.getLogger(__name__)

_LONGEST = 90


def print_file(path: Path, config: str | None = None, class_names: str | None = None) -> None:
    """Print the metadata, inputs, outputs and compute of a file.

    Args:
        path: An ONNX file, an OpenVINO model, a TensorRT engine (with its JSON next to it) or a checkpoint.
        config: Configuration of a checkpoint that does not name its own.
        class_names: The same for its class names; see `yolact.weights.state.parse_classes`.

    Raises:
        UsageError: there is no such file, or its suffix is unknown.
        YolactError: the file is damaged.
    """
    if not is_file(path):
        raise UsageError(f"{path} is not a file; give an .onnx, .xml, .engine or .plan file, or a checkpoint")
    readers = {
        ".onnx": _onnx_tables,
        ".xml": _openvino_tables,
        **dict.fromkeys((".engine", ".plan"), _engine_tables),
        **dict.fromkeys(
            (".pth", ".pt", ".safetensors"), lambda path: _checkpoint_tables(path, config, class_names)
        ),
    }
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise UsageError(f"{path}: unknown suffix {suffix!r}; known: {', '.join(readers)}")
    tables = readers[suffix](path)
    print_line(f"{path}: {path.stat().st_size / 1e6:.2f} MB", sys.stdout)
    for table in tables:
        table.show()


def _onnx_tables(path: Path) -> list[Table]:
    """Metadata, inputs, outputs and compute of an ONNX file."""
    model = read_graph(path)
    tables = []
    try:
        tables.append(_fields_table(graph_metadata(model, path)))
    except YolactError as error:
        log.warning("%s", error)
    ports = []
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            shape = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
            name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            ports.append([kind, value.name, name, f"({shape})"])
    return [*tables, _ports_table(ports), _compute_table(model), *_integers(path, model)]


def _integers(path: Path, model: onnx.ModelProto) -> list[Table]:
    """How many layers of a quantised graph ONNX Runtime computes in integers, which is up to its fusions."""
    if not any(node.op_type == "DequantizeLinear" for node in model.graph.node):
        return []
    try:
        try_engine(path, "onnxruntime")
        integers, products = count_products(optimised_operators(path))
    except YolactError as error:
        log.warning("%s", error)
        return []
    text = f"{integers} of {products} convolutions and matrix products"
    return [Table("ONNX Runtime on this CPU", ("", ""), [["in integers", text]], text_columns=2)]


def _openvino_tables(path: Path) -> list[Table]:
    """Metadata, inputs and outputs of an OpenVINO model."""
    from yolact_runtime.engines.openvino import read_model

    try_engine(path, "openvino")
    model, metadata = read_model(path)
    rows = []
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            shape = str(port.partial_shape).replace("[", "(").replace("]", ")")
            rows.append([kind, port.any_name, port.element_type.get_type_name(), shape])
    return [_fields_table(metadata), _ports_table(rows)]


def _engine_tables(path: Path) -> list[Table]:
    metadata, record = read_engine(path)
    return [_fields_table(metadata), _fields_table(record, "Engine")]


def _checkpoint_tables(path: Path, config: str | None, class_names: str | None) -> list[Table]:
    """Metadata and number of parameters of a checkpoint."""
    from yolact.engine import describe
    from yolact.weights.load import load_model

    model = load_model(path, config, class_names)
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    counts = [[name, f"{count:,}"] for name, count in (*sizes.items(), ("all", sum(sizes.values())))]
    return [_fields_table(describe(model.config)), Table("Parameters", ("module", "parameters"), counts)]


def _ports_table(rows: list[list[str]]) -> Table:
    return Table("Inputs and outputs", ("", "name", "type", "shape"), rows, text_columns=4)


def _fields_table(content: Any, title: str = "Metadata") -> Table:
    """The fields of a dataclass that are not empty, long values cut off."""
    rows = []
    for name, value in dataclasses.asdict(content).items():
        text = value if isinstance(value, str) else json.dumps(value)
        if text not in ("", "null", "{}"):
            rows.append([name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."])
    return Table(title, ("", ""), rows, text_columns=2)


def _compute_table(model: onnx.ModelProto) -> Table:
    """GFLOPs and types of each layer group."""
    layers = layer_compute(model)
    total = sum(layer.macs for layer in layers)
    title = f"Compute for one image: {2 * total / 1e9:.2f} GFLOPs in convolutions and matrix products"
    rows: list[list[str]] = []
    for group, members in by_group(layers).items():
        macs = sum(layer.macs for layer in members)
        share = f"{macs / total:.1%}" if total else "?"
        kinds = percentages(shares(members))
        rows.append([group, kinds, str(len(members)), f"{2 * macs / 1e9:.3f}", share])
    rows.append([])
    rows.append(["all", percentages(shares(layers)), str(len(layers)), f"{2 * total / 1e9:.3f}", ""])
    unknown = sum(not layer.macs for layer in layers)
    if unknown:
        log.warning("%d of %d layers have no known shapes and are not counted", unknown, len(layers))
    return Table(title, ("layer group", "computed in", "layers", "GFLOPs", "share"), rows, text_columns=2)
