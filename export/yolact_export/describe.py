"""What `yolact-export inspect` prints."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from rich.table import Table

from yolact_export.inspection import by_group, layer_compute, read_graph, shares
from yolact_runtime.commandline import table_console
from yolact_runtime.engines.tensorrt.record import read_engine
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata

log = logging.getLogger(__name__)

_LONGEST = 90


def print_file(path: Path, config: str | None = None) -> None:
    """Print what an ONNX file, a TensorRT engine (from the JSON beside it) or a checkpoint is.

    Raises:
        UsageError: no such file, or an unknown kind of file.
        YolactError: it is damaged.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; give an .onnx, .xml, .engine or .plan file, or a checkpoint")
    kinds = {
        ".onnx": _onnx_tables,
        ".engine": _engine_tables,
        ".plan": _engine_tables,
        ".xml": _openvino_tables,
    }
    console = table_console()
    suffix = path.suffix.lower()
    if suffix in (".pth", ".pt", ".safetensors"):
        tables = _checkpoint_tables(path, config)
    elif suffix in kinds:
        tables = kinds[suffix](path)
    else:
        raise UsageError(
            f"{path}: unknown suffix {suffix!r}; known: {', '.join(kinds)}, .pth, .pt, .safetensors"
        )
    console.print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", highlight=False)
    for table in tables:
        console.print(table)


def _onnx_tables(path: Path) -> list[Table]:
    model = read_graph(path)
    props = {prop.key: prop.value for prop in model.metadata_props}
    tables = []
    try:
        tables.append(_metadata_table(dataclasses.asdict(Metadata.from_props(props, path))))
    except YolactError as error:
        log.warning("%s", error)
    return [*tables, _tensor_table(model), *_compute_tables(model)]


def _openvino_tables(path: Path) -> list[Table]:
    from yolact_runtime.engines.openvino import read_model

    model, metadata = read_model(path)
    table = _ports_table()
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            name = port.element_type.get_type_name()
            table.add_row(
                kind, port.any_name, name, str(port.partial_shape).replace("[", "(").replace("]", ")")
            )
    return [_metadata_table(dataclasses.asdict(metadata)), table]


def _engine_tables(path: Path) -> list[Table]:
    metadata, record = read_engine(path)
    return [
        _metadata_table(dataclasses.asdict(metadata)),
        _metadata_table(dataclasses.asdict(record), "Engine"),
    ]


def _checkpoint_tables(path: Path, config: str | None) -> list[Table]:
    from yolact.engine import describe
    from yolact.weights.load import load_model

    model = load_model(path, config)
    counts = Table(title="Parameters")
    counts.add_column("part")
    counts.add_column("parameters", justify="right")
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    for name, count in (*parts.items(), ("all", sum(parts.values()))):
        counts.add_row(name, f"{count:,}")
    return [_metadata_table(dataclasses.asdict(describe(model.config))), counts]


def _metadata_table(fields: Mapping[str, Any], title: str = "Metadata") -> Table:
    table = Table(title=title, show_header=False)
    table.add_column("field")
    table.add_column("value")
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if text not in ("", "null", "{}"):
            table.add_row(name, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}...")
    return table


def _tensor_table(model: onnx.ModelProto) -> Table:
    table = _ports_table()
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            tensor = value.type.tensor_type
            shape = ", ".join(dim.dim_param or str(dim.dim_value or "?") for dim in tensor.shape.dim)
            name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
            table.add_row(kind, value.name, name, f"({shape})")
    return table


def _ports_table() -> Table:
    table = Table(title="Inputs and outputs")
    for column in ("", "name", "type", "shape"):
        table.add_column(column)
    return table


def _compute_tables(model: onnx.ModelProto) -> list[Table]:
    layers = layer_compute(model)
    total = sum(layer.macs for layer in layers)
    title = f"Compute for one image: {2 * total / 1e9:.2f} GFLOPs in convolutions and matrix products"
    table = Table(title=title)
    table.add_column("layer group")
    for column in ("layers", "GFLOPs", "share"):
        table.add_column(column, justify="right")
    table.add_column("computed in")
    for group, members in by_group(layers).items():
        macs = sum(layer.macs for layer in members)
        table.add_row(
            group,
            str(len(members)),
            f"{2 * macs / 1e9:.3f}",
            f"{macs / total:.1%}" if total else "?",
            _told(shares(members)),
            end_section=members[-1] is layers[-1],
        )
    table.add_row("all", str(len(layers)), f"{2 * total / 1e9:.3f}", "", _told(shares(layers)))
    unknown = sum(not layer.macs for layer in layers)
    if unknown:
        log.warning("%d of %d layers do not say their shapes and are not counted", unknown, len(layers))
    return [table]


def _told(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{kind} {part:.1%}" for kind, part in parts.items())
