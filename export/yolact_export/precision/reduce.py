"""Reduces the precision of a float32 graph and measures the errors."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from yolact_export.onnx_graph import graph_metadata
from yolact_export.precision.calibration import (
    AUTO,
    COMPARED,
    CalibrationImages,
    CalibrationOptions,
    batches,
    calibrate,
    channel_largest,
    channel_means,
    choose_images,
)
from yolact_export.precision.compute import by_group, delivered, layer_compute, shares
from yolact_export.precision.equalise import equalise, link_tensors
from yolact_export.precision.fp16 import emulate_half, to_half
from yolact_export.precision.int8 import quantise
from yolact_export.precision.layers import check_groups
from yolact_export.precision.measure import Error, HeadReference, tensor_errors, worst
from yolact_export.precision.sensitivity import BOUNDS, Convert, Sensitivity, measure_sensitivity
from yolact_runtime.commandline import Table
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.sources.images import read_image

log = logging.getLogger(__name__)

# Images on which errors are measured.
SAMPLES = 4


@dataclass(frozen=True)
class PrecisionOptions:
    """The requested precision.

    Attributes:
        precision: "fp16" or "int8".
        calibration: Required for int8.
        keep_float: "auto" (measured), "none", or names of layer groups, which "auto" can be combined with.
        allow_fallback: Accept a graph with less of the precision than required.
    """

    precision: str
    calibration: CalibrationOptions | None = None
    keep_float: tuple[str, ...] = ("auto",)
    allow_fallback: bool = False

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.calibration is None:
            raise UsageError("--precision int8 needs --calibrate DIR: a folder of images like the real input")


@dataclass(frozen=True)
class Reduced:
    """A reduced graph and its errors.

    Attributes:
        model: The graph to write.
        emulated: Computes on a CPU what `model` computes on a GPU; for int8 `model` itself, of
            which TensorRT gets a form with half the steps after a ReLU.
        precision: The precision that `model` really has.
        shortfall: One line if that is less than requested, else "".
        kept: Layer groups in float32.
        sensitivity: Errors by layer group; None if they did not have to be measured.
        heads: Error of each head, over all priors.
        groups: Error of the outputs of each layer group.
    """

    model: onnx.ModelProto
    emulated: onnx.ModelProto
    precision: str
    shortfall: str
    kept: frozenset[str]
    sensitivity: Sensitivity | None
    heads: dict[str, Error]
    groups: dict[str, Error]


def reduce_graph(model: onnx.ModelProto, options: PrecisionOptions, images: Sequence[np.ndarray]) -> Reduced:
    """Reduce the precision of a graph from `write_onnx`.

    Args:
        model: The float32 graph with its metadata; it is not changed.
        options: The requested precision.
        images: (H, W, 3) uint8 BGR to measure fp16 on; int8 is measured on calibration images.

    Raises:
        UsageError: a layer group is unknown, or there are no images to calibrate with.
        YolactError: the graph has less of the precision than requested, or values are not finite.
    """
    metadata = graph_metadata(model, "the float32 graph")
    named = check_groups(model, [name for name in options.keep_float if name not in ("auto", "none")])
    if options.precision == "int8":
        assert options.calibration is not None
        chosen = choose_images(options.calibration)
        step = max(1, len(chosen.paths) // SAMPLES)
        samples = list(batches(map(read_image, chosen.paths[::step][:SAMPLES]), metadata))
        model = equalise(model, channel_largest(model, link_tensors(model), chosen, metadata))
        convert: Convert = _calibrated(model, options.calibration, chosen, metadata, samples, named)
    else:
        samples = list(batches(images[:SAMPLES], metadata))
        convert = functools.partial(to_half, model)

    def emulated(keep_float: Collection[str]) -> onnx.ModelProto:
        reduced = convert(keep_float)
        return emulate_half(reduced) if options.precision == "fp16" else reduced

    kept, sensitivity = named, None
    if "auto" in options.keep_float:
        reference, bounds = HeadReference(model, samples, metadata), BOUNDS[options.precision]
        # The whole network in half is nearly always good enough; measuring costs one run for each group.
        if options.precision == "int8" or worst(reference.errors(emulated(named))) > bounds.total:
            sensitivity = measure_sensitivity(model, emulated, reference, bounds, named)
            kept = sensitivity.kept
    result = convert(kept)
    precision, shortfall = delivered(layer_compute(result), options.precision, named)
    if shortfall and not options.allow_fallback:
        raise YolactError(
            f"{shortfall}; accept it with --allow-fallback, or choose the float32 layers with --keep-float"
        )
    final = emulate_half(result) if options.precision == "fp16" else result
    heads, groups = tensor_errors(model, final, samples)
    broken = [name for name, error in (*groups.items(), *heads.items()) if not np.isfinite(error.difference)]
    if broken:
        raise YolactError(
            f"{broken[0]} is not finite in {options.precision}; keep it in float32 with --keep-float"
        )
    return Reduced(result, final, precision, shortfall, kept, sensitivity, heads, groups)


def _calibrated(
    model: onnx.ModelProto,
    options: CalibrationOptions,
    images: CalibrationImages,
    metadata: Metadata,
    samples: Sequence[np.ndarray],
    named: Collection[str],
) -> Convert:
    """What quantises the graph with the ranges of the method; "auto": of that with the smallest error."""
    means = channel_means(model, images, metadata)
    found: dict[str, Convert] = {}
    for method in COMPARED if options.method == AUTO else (options.method,):
        ranges = calibrate(model, replace(options, method=method), images, metadata)
        found[method] = functools.partial(quantise, model, ranges, means=means)
    if len(found) == 1:
        return found[options.method]
    reference = HeadReference(model, samples, metadata)
    errors = {method: worst(reference.errors(convert(named))) for method, convert in found.items()}
    best = min(errors, key=errors.__getitem__)
    texts = ", ".join(f"{method} {error:.2%}" for method, error in errors.items())
    log.info("calibration method: %s (error of the heads: %s)", best, texts)
    return found[best]


def error_table(reduced: Reduced, precision: str) -> Table:
    """Errors of each head and layer group against float32, and the types that each group computes in."""
    title = f"{precision} against float32, tensor by tensor"
    numbers = ("largest value", "largest difference", "relative error")
    layers = by_group(layer_compute(reduced.model))
    rows: list[list[str]] = []
    for errors in (reduced.heads, reduced.groups):
        rows += [[]] if rows else []
        for name, error in errors.items():
            kinds = ", ".join(shares(layers.get(name, [])))
            figures = f"{error.largest:.4g}", f"{error.difference:.2e}", f"{error.relative:.3%}"
            rows.append([name, kinds, *figures])
    return Table(title, ("output or layer group", "computed in", *numbers), rows, text_columns=2)
