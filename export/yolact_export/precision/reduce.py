"""From the float32 graph to the reduced one, with everything that was measured on the way."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from rich.table import Table

from yolact_export.inspection import by_group, delivered, layer_compute, shares
from yolact_export.precision.calibration import CalibrationOptions, batches, calibrate, choose_images
from yolact_export.precision.fp16 import emulate_half, to_half
from yolact_export.precision.int8 import restore_float, to_int8
from yolact_export.precision.layers import check_groups
from yolact_export.precision.measure import Error, HeadReference, tensor_errors, worst
from yolact_export.precision.sensitivity import BOUNDS, Sensitivity, choose
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch

log = logging.getLogger(__name__)

# Images on which errors are measured.
SAMPLES = 4


@dataclass(frozen=True)
class PrecisionOptions:
    """What is asked for.

    Attributes:
        precision: "fp16" or "int8".
        calibration: Needed for int8.
        keep_float: "auto" (measured), "none", or names of layer groups; "auto" may stand beside names.
        allow_fallback: Accept a graph with less of the precision than required.
    """

    precision: str
    calibration: CalibrationOptions | None = None
    keep_float: tuple[str, ...] = ("auto",)
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(
                "--precision int8 needs --calibrate DIR: a folder of images like those of the use"
            )


@dataclass(frozen=True)
class Reduced:
    """A reduced graph and what is known of it.

    Attributes:
        model: The graph that is written.
        stand_in: Computes on a CPU what `model` computes on a device (for int8 `model` itself).
        precision: What was really delivered.
        shortfall: One line where that is less than asked, else "".
        kept: Layer groups left in float32.
        sensitivity: The measured list; None where none was needed or asked for.
        heads: Error of each head, over all priors.
        groups: Error of what each layer group hands on.
    """

    model: onnx.ModelProto
    stand_in: onnx.ModelProto
    precision: str
    shortfall: str
    kept: frozenset[str]
    sensitivity: Sensitivity | None
    heads: dict[str, Error]
    groups: dict[str, Error]


def reduce_graph(model: onnx.ModelProto, options: PrecisionOptions, images: Sequence[np.ndarray]) -> Reduced:
    """Reduce the precision of a graph that `write_onnx` made.

    Args:
        model: The float32 graph with its metadata; it is left alone.
        options: What is asked for.
        images: (H, W, 3) uint8 BGR to measure fp16 on; int8 is measured on calibration images.

    Raises:
        UsageError: an unknown layer group, or no images to calibrate with.
        YolactError: less than asked was delivered, or values are not finite.
    """
    metadata = Metadata.from_props(
        {prop.key: prop.value for prop in model.metadata_props}, "the float32 graph"
    )
    named = check_groups(model, [name for name in options.keep_float if name not in ("auto", "none")])
    if options.precision == "int8":
        assert options.calibration is not None
        chosen = choose_images(options.calibration)
        quantised = to_int8(model, calibrate(model, options.calibration, chosen, metadata))
        step = max(1, len(chosen.paths) // SAMPLES)
        samples = list(batches(chosen.paths[::step][:SAMPLES], metadata))

        def convert(keep_float: Collection[str]) -> onnx.ModelProto:
            return restore_float(quantised, model, keep_float)
    else:
        resized = (
            resize_batch([image], metadata.input_size, metadata.input_dtype) for image in images[:SAMPLES]
        )
        samples = [np.repeat(batch, metadata.min_batch, axis=0) for batch in resized]

        def convert(keep_float: Collection[str]) -> onnx.ModelProto:
            return to_half(model, keep_float)

    def stand_in(keep_float: Collection[str]) -> onnx.ModelProto:
        reduced = convert(keep_float)
        return emulate_half(reduced) if options.precision == "fp16" else reduced

    kept, sensitivity = named, None
    if "auto" in options.keep_float:
        reference, bounds = HeadReference(model, samples, metadata), BOUNDS[options.precision]
        # Half as a whole is nearly always good enough; the list costs a run for every group.
        if options.precision == "int8" or worst(reference.errors(stand_in(named))) > bounds.total:
            sensitivity = choose(model, stand_in, reference, bounds, named)
            kept = sensitivity.kept
    result = convert(kept)
    precision, shortfall = delivered(layer_compute(result), options.precision, named)
    if shortfall and not options.allow_fallback:
        raise YolactError(
            f"{shortfall}; --allow-fallback accepts it, --keep-float says which layers stay float"
        )
    final = emulate_half(result) if options.precision == "fp16" else result
    heads, groups = tensor_errors(model, final, samples)
    broken = [name for name, error in (*groups.items(), *heads.items()) if not np.isfinite(error.difference)]
    if broken:
        raise YolactError(
            f"in {options.precision} {broken[0]} is not finite any more; keep it in float32 with --keep-float"
        )
    return Reduced(result, final, precision, shortfall, kept, sensitivity, heads, groups)


def error_table(reduced: Reduced, precision: str) -> Table:
    """Errors against float32, per output and per layer group, with the types each group computes in."""
    table = Table(title=f"{precision} against float32, tensor by tensor")
    table.add_column("output or layer group")
    table.add_column("computed in")
    for column in ("largest value", "largest difference", "relative error"):
        table.add_column(column, justify="right")
    layers = by_group(layer_compute(reduced.model))
    for name, error in reduced.heads.items():
        table.add_row(name, "", *_figures(error), end_section=name == list(reduced.heads)[-1])
    for group, error in reduced.groups.items():
        kinds = ", ".join(shares(layers.get(group, [])))
        table.add_row(group, kinds, *_figures(error))
    return table


def _figures(error: Error) -> tuple[str, str, str]:
    return f"{error.largest:.4g}", f"{error.difference:.2e}", f"{error.relative:.3%}"
