"""Int8 calibration: the ranges of the inputs of the convolutions, measured on images and cached."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx

from yolact_export.precision.measure import run_graph
from yolact_export.precision.placement import quantisable, roundings
from yolact_runtime.cache import Cache
from yolact_runtime.commandline import track
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch
from yolact_runtime.sources.images import list_images, read_image

log = logging.getLogger(__name__)

# ONNX Runtime's class and options. With its default of 128 bins, entropy cannot cut anything off.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "entropy": ("EntropyCalibrater", {"num_bins": 4096, "num_quantized_bins": 128}),
    "percentile": ("PercentileCalibrater", {"num_bins": 4096, "percentile": 99.99}),
    "minmax": ("MinMaxCalibrater", {}),
}

# Of all three `auto` compares these: entropy needs far more images than are usual.
AUTO, COMPARED = "auto", ("percentile", "minmax")

# Images for the means and largest values of channels, at most.
_CHANNEL_IMAGES = 16

Ranges = dict[str, tuple[float, float]]

_CACHE = Cache("calibration", "the calibration", "calibrating again")


@dataclass(frozen=True)
class CalibrationOptions:
    """How to calibrate.

    Attributes:
        folder: Images like those that the model will see.
        method: One of `METHODS`, or `AUTO`: that of `COMPARED` with the smaller error of the heads.
        images: Use at most this many, evenly spaced over the folder.
    """

    folder: Path
    method: str = AUTO
    images: int = 128

    def __post_init__(self) -> None:
        if self.method not in (AUTO, *METHODS):
            raise UsageError(f"--calibration-method {self.method}; allowed: {AUTO}, {', '.join(METHODS)}")
        if self.images < 1:
            raise UsageError(f"--calibration-images {self.images}; allowed: 1 or more")


class CalibrationImages(NamedTuple):
    """The readable images, and the SHA-256 of their contents."""

    paths: tuple[Path, ...]
    digest: str


def choose_images(options: CalibrationOptions) -> CalibrationImages:
    """At most `options.images` readable images, evenly spaced over the folder.

    Raises:
        UsageError: the folder does not exist or holds no image.
        YolactError: none of its images can be read.
    """
    found = list_images([options.folder])
    count = min(options.images, len(found))
    chosen = [found[index * len(found) // count] for index in range(count)]
    digest, paths = hashlib.sha256(), []
    for path in chosen:
        try:
            read_image(path)
        except YolactError as error:
            log.warning("%s; left out of the calibration", error)
            continue
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        paths.append(path)
    if not paths:
        raise YolactError(f"--calibrate {options.folder}: none of its images can be read")
    return CalibrationImages(tuple(paths), digest.hexdigest())


def calibrate(
    model: onnx.ModelProto, options: CalibrationOptions, images: CalibrationImages, metadata: Metadata
) -> Ranges:
    """Measure the range of every tensor that int8 rounds, or read it from the cache.

    The cache key is a hash of the graph, the images, the method and the version of ONNX Runtime. Ranges that
    cannot be right are measured again.

    Args:
        model: The float32 graph.
        options: How to calibrate, by one method.
        images: What `choose_images` found.
        metadata: Of the graph.

    Returns:
        Smallest and largest value by tensor name.
    """
    names = sorted({one.range_of for one in roundings(model).values()})
    method, inputs = options.method, [*_inputs(model, options, images), names]
    cached = _CACHE.read(method, inputs, lambda value: _check_ranges(value, names))
    if cached is not None:
        log.info("read the calibration of %d tensors from %s", len(names), _CACHE.path(method, inputs))
        return cached
    ranges = _collect_ranges(model, names, options, images, metadata)
    _CACHE.write(method, inputs, ranges)
    return ranges


def channel_means(
    model: onnx.ModelProto, images: CalibrationImages, metadata: Metadata
) -> dict[str, np.ndarray]:
    """The mean of each channel of what enters convolutions, (C,) float64, measured or read from the cache."""
    names = sorted({node.input[0] for node in quantisable(model)})
    found = _of_channels("means", model, names, images, metadata)
    return {name: np.mean(values, axis=0) for name, values in found.items()}


def channel_largest(
    model: onnx.ModelProto, names: Sequence[str], images: CalibrationImages, metadata: Metadata
) -> dict[str, np.ndarray]:
    """The largest absolute value of each channel of some tensors, (C,) float64; else as `channel_means`."""
    found = _of_channels("largest", model, names, images, metadata)
    return {name: np.max(values, axis=0) for name, values in found.items()}


def _of_channels(
    kind: str, model: onnx.ModelProto, names: Sequence[str], images: CalibrationImages, metadata: Metadata
) -> dict[str, np.ndarray]:
    """A number of each channel in each image, (images, C) float64, measured or read from the cache.

    At most `_CHANNEL_IMAGES` of the images are used: they suffice for means, and for sizes of channels.
    """
    step = -(-len(images.paths) // _CHANNEL_IMAGES)
    inputs = [_graph_hash(model), images.digest, step, _library_version(), *names]
    cached = _CACHE.read(kind, inputs, lambda value: _check_channels(value, names))
    if cached is not None:
        return cached
    paths = images.paths[::step]
    steps = track(batches(map(read_image, paths), metadata), "measuring channels", len(paths))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for values in run_graph(model, names, steps):
        for name, value in values.items():
            axes = tuple(axis for axis in range(value.ndim) if axis != 1)
            found = value.mean(axes, np.float64) if kind == "means" else np.abs(value).max(axes)
            rows[name].append(found.astype(np.float64))
    _CACHE.write(kind, inputs, {name: [row.tolist() for row in found] for name, found in rows.items()})
    return {name: np.array(found) for name, found in rows.items()}


def _check_channels(value: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The cached numbers of the tensors `names`; a ValueError if they cannot be numbers of channels."""
    if sorted(value) != sorted(names):
        raise ValueError("it has other tensors")
    found = {name: np.array(one, np.float64) for name, one in value.items()}
    for name, numbers in found.items():
        if numbers.ndim != 2 or not numbers.size or not np.isfinite(numbers).all():
            raise ValueError(f"the numbers of {name} are not one finite number a channel")
    return found


def batches(images: Iterable[np.ndarray], metadata: Metadata) -> Iterator[np.ndarray]:
    """Each (H, W, 3) uint8 BGR image as the smallest batch that the graph accepts, (n, H, W, 3)."""
    for image in images:
        batch = resize_batch([image], metadata.input_size, metadata.input_dtype)
        yield np.repeat(batch, metadata.min_batch, axis=0)


def _inputs(model: onnx.ModelProto, options: CalibrationOptions, images: CalibrationImages) -> list[Any]:
    """All that the ranges depend on."""
    return [_graph_hash(model), images.digest, METHODS[options.method], _library_version()]


def _graph_hash(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True)).hexdigest()


def _library_version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _check_ranges(value: Any, names: Sequence[str]) -> Ranges:
    """The cached ranges of the tensors `names`; a ValueError if they cannot be ranges of these."""
    if sorted(value) != list(names):
        raise ValueError("it has other tensors")
    ranges = {name: (float(low), float(high)) for name, (low, high) in value.items()}
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ValueError(f"the range of {name} is {low} to {high}")
    return ranges


def _collect_ranges(
    model: onnx.ModelProto,
    names: Sequence[str],
    options: CalibrationOptions,
    images: CalibrationImages,
    metadata: Metadata,
) -> Ranges:
    """Run the graph on the images with ONNX Runtime's calibrater and return the range of each tensor."""
    from onnxruntime.quantization import calibrate as ort

    kind, settings = METHODS[options.method]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        source = Path(folder) / "model.onnx"
        onnx.save(model, source)
        augmented = str(Path(folder) / "augmented.onnx")
        calibrater = getattr(ort, kind)(source, augmented_model_path=augmented, symmetric=True, **settings)
        infos = {value.name: value for value in calibrater.model.graph.value_info}
        # Only what is quantised: by default it collects the outputs too.
        calibrater.select_tensors_to_calibrate = lambda _: (set(names), infos)
        calibrater.augment_graph()
        calibrater.create_inference_session()
        steps = track(
            batches(map(read_image, images.paths), metadata),
            f"calibrating ({options.method})",
            len(images.paths),
        )
        for batch in steps:
            # One image per call, because the calibrater keeps all tensors of a call in memory.
            reader = SimpleNamespace(get_next=iter([{"images": batch}, None]).__next__)
            calibrater.collect_data(reader)
        if options.method == "entropy":
            # Its own search loops over all bins in Python, which takes seconds for each tensor.
            calibrater.collector.get_entropy_threshold = entropy_threshold
        data = calibrater.compute_data()
    return {name: (float(np.min(data[name].lowest)), float(np.max(data[name].highest))) for name in names}


def entropy_threshold(histogram: Sequence[np.ndarray], levels: int) -> tuple[np.ndarray, np.ndarray]:
    """The range that loses the least information when it is cut off and rounded to `levels` steps.

    Minimises the Kullback-Leibler divergence between the distribution of absolute values, cut off at a
    threshold, and the same after rounding (S. Migacz, 8-bit inference with TensorRT, GTC 2017).

    Args:
        histogram: Counts (n,) and edges (n+1,) of equal bins, symmetric about 0; smallest and largest value.
        levels: Number of steps on the positive side; twice as many if no value is negative.

    Returns:
        Lowest and highest value of the range.
    """
    counts, edges, smallest, largest = histogram[:4]
    levels *= 1 if smallest < 0 else 2
    half = len(counts) // 2
    folded = (counts[-half:] + counts[:half][::-1]).astype(np.float64)  # (half,), from 0 outwards
    # Zeros from ReLU are exact in any range, and would outweigh all other values.
    folded[0] = folded[1]
    best, chosen = np.inf, half
    for bins in range(levels, half + 1, max(1, half // 512)):
        reference = folded[:bins].copy()
        filled = reference > 0
        reference[-1] += folded[bins:].sum()
        starts = np.arange(levels) * bins // levels
        totals = np.add.reduceat(folded[:bins], starts)
        members = np.add.reduceat(filled, starts, dtype=np.int64)
        level = np.repeat(np.arange(levels), np.diff(np.append(starts, bins)))
        rounded = np.where(filled, (totals / np.maximum(members, 1))[level], 0)
        divergence = _divergence(reference, rounded)
        if divergence < best:
            best, chosen = divergence, bins
    limit = edges[-half - 1 + chosen]
    return np.maximum(-limit, smallest), np.minimum(limit, largest)


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Kullback-Leibler divergence of two histograms; bins empty only in `q` count as nearly empty."""
    if not q.sum():
        return np.inf
    p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())
