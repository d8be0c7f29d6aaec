"""Every CUDA kernel against the runtime's NumPy implementation, wherever a plan can be run.

`kernel_cases` has the plans with inputs; `KernelCase.check` compares what a runner returns: `on_device` on a
GPU, and in the tests g++ on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from yolact_bench.gpu_checks.inputs import DIGITS, Heads, indices_of, make_heads, make_masks
from yolact_runtime import masks
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan, read_regions
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.plans.preprocess import pack, preprocess_plan
from yolact_runtime.cuda.plans.visible import class_words, visible_plan
from yolact_runtime.detect import detect
from yolact_runtime.metadata import Metadata
from yolact_runtime.preprocess import resize_batch

Arrays = Mapping[str, np.ndarray]
Runner = Callable[[Plan, Arrays], dict[str, np.ndarray]]
KINDS = ("resize", "detection", "masks", "rle", "visible")
BATCHES = (1, 8)
# The exponential of a GPU differs from NumPy's in the last bits, and products may be fused with sums.
ROUNDING = 1e-5
# An edge moves by a pixel where a mask's value is within rounding of one half.
MOVED_EDGES = 1e-3


class MismatchError(Exception):
    """A kernel or an engine on the GPU computes something else than the CPU; says what and by how much."""


def worse(worst: float, apart: np.ndarray) -> float:
    """The largest of deviations, at least `worst`; NaN if one is, which Python's `max` would drop."""
    return float(np.maximum(worst, np.max(apart, initial=0)))


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are: of a network, and of an image."""

    priors: int = 19248
    classes: int = 80
    detections: int = 100
    cells: tuple[int, int] = (138, 138)
    input_size: tuple[int, int] = (550, 550)
    image: tuple[int, int] = (480, 640)


SMALL = Sizes(700, 5, 20, (17, 20), (60, 70), (77, 131))
SMALLEST = Sizes(1, 1, 1, (1, 1), (1, 1), (2, 3))


@dataclass(frozen=True)
class KernelCase:
    """A plan with inputs, and how its outputs are compared with NumPy.

    Attributes:
        name: Such as "detection, batch 8, float16".
        plan: Its outputs are compared.
        inputs: By buffer name.
        compare: Takes the outputs; returns the worst deviations by name, or raises a MismatchError.
    """

    name: str
    plan: Plan
    inputs: Arrays
    compare: Callable[[Arrays], dict[str, float]]

    def check(self, run: Runner) -> dict[str, float]:
        """Run the plan and compare.

        Raises:
            MismatchError: an output differs by more than rounding; names the case.
        """
        try:
            return self.compare(run(self.plan, self.inputs))
        except MismatchError as error:
            raise MismatchError(f"{self.name}: {error}") from error


def kernel_cases(
    kind: str, sizes: Sizes = Sizes(), batches: tuple[int, ...] = BATCHES
) -> Iterator[KernelCase]:
    """The cases of one of `KINDS`, each batch and type in turn."""
    make = {"resize": _resize, "detection": _detection, "masks": _masks, "rle": _rle, "visible": _visible}
    types = {"resize": ("uint8", "float32", "float16"), "visible": ("float32",)}
    for batch in batches:
        for dtype in types.get(kind, ("float32", "float16")):
            yield make[kind](f"{kind}, batch {batch}, {dtype}", sizes, batch, dtype)


def on_device(device: Any, plan: Plan, inputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs of the second of two runs on a GPU, which must not depend on the first.

    Args:
        device: With its context current.
        plan: Any.
        inputs: By buffer name.

    Raises:
        MismatchError: the two runs differ.
        YolactError: no compiler for this GPU is installed, or the driver failed.
    """
    from yolact_runtime.cuda.launch import LoadedPlan

    with LoadedPlan(device, plan) as loaded:
        for name, array in inputs.items():
            loaded.upload(name, array)
        runs = []
        for _ in range(2):
            loaded.run()
            runs.append({buffer.name: loaded.download(buffer.name) for buffer in plan.outputs})
    first, second = runs
    for name, array in first.items():
        # What lies past the last edge is not written.
        if name != "edges" and array.tobytes() != second[name].tobytes():
            raise MismatchError(f"{name} differs between two runs with the same inputs")
    return second


# ---- resize ----


def _resize(name: str, sizes: Sizes, batch: int, dtype: str) -> KernelCase:
    """Images enlarged, shrunk and turned on their side."""
    rng = np.random.default_rng(5)
    height, width = sizes.image
    shapes = [(height, width), (width, height), (-(-height // 3), -(-width // 5)), (height, width)]
    images = [rng.integers(0, 256, (*shapes[i % 4], 3), np.uint8) for i in range(batch)]
    mean, std = (104.0, 117.0, 124.0), (57.0, 57.0, 58.0)
    capacity = sum(image.size for image in images)
    plan = preprocess_plan(batch, sizes.input_size, capacity, dtype, mean=mean, std=std)
    inputs = {buffer.name: np.zeros(buffer.shape, buffer.dtype) for buffer in plan.inputs}
    pack(images, inputs["pixels"], inputs["table"])
    expected = resize_batch(images, sizes.input_size)
    if dtype != "uint8":
        normal = (expected.astype(np.float32) - np.array(mean, np.float32)) / np.array(std, np.float32)
        expected = normal[..., ::-1].transpose(0, 3, 1, 2).astype(dtype)
    return KernelCase(name, plan, inputs, partial(_compare_images, expected))


def _compare_images(expected: np.ndarray, out: Arrays) -> dict[str, float]:
    """Bytes are OpenCV's to the bit; a division of the GPU may round the other way."""
    got = out["images"]
    apart = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    allowed = {"uint8": 0.0, "float32": 1e-6, "float16": 4e-3}[str(expected.dtype)]
    worst = float(apart.max()) if np.isfinite(got).all() else float("inf")
    if not worst <= allowed:
        raise MismatchError(f"pixels differ from NumPy's by up to {worst:g}, {allowed:g} is allowed")
    return {"pixel error": worst}


# ---- detection ----


@dataclass(frozen=True)
class Found:
    """Detections of one image: (n,) classes, scores and prior indices, (n, 4) boxes."""

    classes: np.ndarray
    scores: np.ndarray
    indices: np.ndarray
    boxes: np.ndarray

    @cached_property
    def rows(self) -> dict[tuple[int, int], int]:
        """(class, prior) of each row, which no two rows share, to the row."""
        keys = zip(self.classes.tolist(), self.indices.tolist(), strict=True)
        return {key: row for row, key in enumerate(keys)}


def numpy_detections(heads: Heads, limit: int = 100, **settings: Any) -> list[Found]:
    """Detections by the runtime's NumPy implementation; `settings` are those of its metadata."""
    names = tuple(map(str, range(heads.logits.shape[2] - 1)))
    meta = Metadata(
        config="", class_names=names, category_ids=tuple(range(len(names))), input_size=550,
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), max_detections=limit, **settings,
    )  # fmt: skip
    loc, logits = heads.loc.astype(np.float32), heads.logits.astype(np.float32)
    prototypes = np.zeros((len(loc), 1, 1, DIGITS), np.float32)
    out = detect(loc, logits, heads.coefficients.astype(np.float32), prototypes, heads.priors, meta)
    return [
        Found(out.classes[i, :n], out.scores[i, :n], indices_of(out.coefficients[i, :n]), out.boxes[i, :n])
        for i, n in enumerate(out[0].tolist())
    ]


def _detection(name: str, sizes: Sizes, batch: int, dtype: str) -> KernelCase:
    heads = make_heads(7, sizes.priors, sizes.classes, batch, background=5.0)
    heads = heads.half() if dtype == "float16" else heads
    kinds: dict[str, Any] = {f"{head}_dtype": dtype for head in ("loc", "logits", "coefficients")}
    plan = detection_plan(batch, sizes.priors, sizes.classes, DIGITS, limit=sizes.detections, **kinds)
    return KernelCase(name, plan, heads.buffers, partial(_compare_detections, heads, sizes.detections))


def _compare_detections(heads: Heads, limit: int, out: Arrays) -> dict[str, float]:
    """Which rows there are, and how far scores and boxes are from NumPy's."""
    expected = numpy_detections(heads, limit + 50)
    # Rounding decides about rows that are kept or not under these.
    close = [numpy_detections(heads, limit + 50, iou_threshold=0.5 + s * ROUNDING) for s in (-1, 1)]
    close += [numpy_detections(heads, limit + 50, score_threshold=0.05 * (1 + s * ROUNDING)) for s in (-1, 1)]
    close += [numpy_detections(_shaken(heads, seed), limit + 50) for seed in (0, 1)]
    worst = {"score error": 0.0, "box error": 0.0}
    for n, (ours, others) in enumerate(zip(expected, zip(*close, strict=True), strict=True)):
        count = int(out["count"][n])
        if not 0 <= count <= limit:
            raise MismatchError(f"image {n} has {count} detections, outside 0..{limit}")
        rows = slice(0, count)
        if not np.isfinite(out["kept_coefficients"][n, rows]).all():
            raise MismatchError(f"coefficients of image {n} are not finite")
        got = Found(
            out["classes"][n, rows], out["scores"][n, rows], indices_of(out["kept_coefficients"][n, rows]),
            out["boxes"][n, rows],
        )  # fmt: skip
        _compare_rows(n, got, ours, others, limit)
        for name in ("boxes", "scores", "classes", "kept_coefficients"):
            if out[name][n, count:].any():
                raise MismatchError(f"{name} of image {n} is not zero past its {count} detections")
        both = [(row, ours.rows[key]) for key, row in got.rows.items() if key in ours.rows]
        mine, theirs = np.array(both, int).reshape(-1, 2).T
        scores = ours.scores[theirs]
        apart = np.abs(got.scores[mine] - scores) / np.maximum(scores, 1e-12)
        worst["score error"] = worse(worst["score error"], apart)
        boxes = ours.boxes[theirs]
        apart = np.abs(got.boxes[mine] - boxes) / np.maximum(np.abs(boxes), 1)
        worst["box error"] = worse(worst["box error"], apart)
    for name, error in worst.items():
        if not error <= ROUNDING:
            raise MismatchError(f"{name} is {error:.2g}, and {ROUNDING:g} is allowed")
    return worst


def _compare_rows(n: int, got: Found, expected: Found, close: tuple[Found, ...], limit: int) -> None:
    """Which detections there are, and their order; `expected` and `close` have more rows than the limit."""
    keys = set(got.rows)
    if len(keys) != len(got.scores) or not (np.diff(got.scores) <= 0).all():
        raise MismatchError(f"detections of image {n} are not in order, or there twice")
    allowed = set(expected.rows).union(*(one.rows for one in close))
    last = expected.scores[min(limit, len(expected.scores)) - 1] if len(expected.scores) else 0.0
    sure = {key for key, row in expected.rows.items() if expected.scores[row] > last * (1 + ROUNDING)}
    sure = sure.intersection(*(one.rows for one in close))
    if missing := sure - keys:
        raise MismatchError(f"{len(missing)} detections of image {n} are missing")
    if more := keys - allowed:
        raise MismatchError(f"image {n} has {len(more)} detections that NumPy does not find")


def _shaken(heads: Heads, seed: int) -> Heads:
    """With logits and offsets moved by rounding errors."""
    rng = np.random.default_rng(seed)
    loc, logits = (
        array.astype(np.float32) * (1 + 1e-6 * rng.choice(np.array([-1, 1], np.float32), array.shape))
        for array in (heads.loc, heads.logits)
    )
    return Heads(loc.astype(np.float32), logits.astype(np.float32), heads.priors)


# ---- masks ----


def _mask_inputs(sizes: Sizes, batch: int, dtype: str) -> tuple[MaskShapes, dict[str, np.ndarray]]:
    height, width = sizes.image
    images = [(max(1, height - 3 * (n % 4)), max(1, width - 7 * (n % 3))) for n in range(batch)]
    inputs = make_masks(3, images, sizes.detections, sizes.cells, dtype)
    # Random masks have more edges than those of a network.
    capacity = sizes.detections * (width * sizes.cells[0] + 1)
    depth = inputs["prototypes"].shape[3]
    return MaskShapes(batch, sizes.detections, depth, *sizes.cells, height, width, dtype, capacity), inputs


def _masks(name: str, sizes: Sizes, batch: int, dtype: str) -> KernelCase:
    shapes, inputs = _mask_inputs(sizes, batch, dtype)
    del inputs["sizes"]
    return KernelCase(name, mask_plan(shapes, "masks"), inputs, partial(_compare_masks, inputs))


def _compare_masks(inputs: Arrays, out: Arrays) -> dict[str, float]:
    """Masks at the size of the prototypes."""
    worst = 0.0
    for n, count in enumerate(inputs["count"].tolist()):
        kept, boxes = (inputs[name][n, :count] for name in ("kept_coefficients", "boxes"))
        expected = masks.assemble(kept, inputs["prototypes"][n].astype(np.float32), boxes)
        worst = worse(worst, np.abs(out["masks"][n, :count] - expected))
        if out["masks"][n, count:].any():
            raise MismatchError(f"masks of image {n} are not zero past its {count} detections")
    if not worst <= ROUNDING:
        raise MismatchError(f"mask values differ from NumPy's by up to {worst:g}, {ROUNDING:g} is allowed")
    return {"mask error": worst}


def _rle(name: str, sizes: Sizes, batch: int, dtype: str) -> KernelCase:
    shapes, inputs = _mask_inputs(sizes, batch, dtype)
    return KernelCase(name, mask_plan(shapes), inputs, partial(_compare_edges, inputs))


def _compare_edges(inputs: Arrays, out: Arrays) -> dict[str, float]:
    """Edges of the masks at image size, and the pixels of their RLE as pycocotools decodes them."""
    count, sizes = inputs["count"], inputs["sizes"]
    found = read_regions(count, sizes, out["regions"], out["offsets"], out["edges"])
    moved = total = pixels = 0
    for n, (regions, (height, width)) in enumerate(zip(found, sizes.tolist(), strict=True)):
        kept, boxes = (inputs[name][n, : count[n]] for name in ("kept_coefficients", "boxes"))
        prototypes = inputs["prototypes"][n].astype(np.float32)
        expected = masks.box_masks(kept, prototypes, boxes, height, width)
        for k, (got, other) in enumerate(zip(regions, expected, strict=True)):
            moved += len(np.setxor1d(got.edges, other.edges))
            total += len(other.edges)
            if not (np.diff(got.edges) > 0).all() or got.edges.max(initial=0) > height * width:
                raise MismatchError(f"edges of mask {k} of image {n} are not ascending within the image")
        rles = [
            {"size": rle["size"], "counts": rle["counts"].encode()}
            for rle in masks.encode(regions, height, width)
        ]
        full = masks.full_masks(expected, height, width)
        for rle, mask in zip(rles, full, strict=True):
            pixels += int(np.count_nonzero(coco_mask.decode(rle).view(bool) != mask))
    if moved > MOVED_EDGES * total + 2 or pixels > moved:
        raise MismatchError(
            f"{moved} of {total} edges differ from NumPy's, and {pixels} pixels; {MOVED_EDGES:g} of the edges"
            " may, each by a pixel"
        )
    return {"edges": total, "moved edges": moved, "moved pixels": pixels}


# ---- which rows are shown ----


def _visible(name: str, sizes: Sizes, batch: int, dtype: str) -> KernelCase:
    """Every second class is wanted, a quarter of the rows at most, and one box is no number."""
    rng, shape = np.random.default_rng(9), (batch, sizes.detections)
    inputs = {
        "boxes": rng.uniform(0, 1, (*shape, 4)).astype(np.float32),
        "kept_coefficients": rng.normal(size=(*shape, 32)).astype(np.float32),
        "scores": -np.sort(-rng.uniform(0, 1, shape), axis=1).astype(np.float32),
        "mask_scores": rng.uniform(0, 1, shape).astype(np.float32),
        "count": rng.integers(0, sizes.detections + 1, batch).astype(np.int32),
        "classes": rng.integers(0, sizes.classes, shape).astype(np.int32),
        "wanted": class_words(set(range(0, sizes.classes, 2)), sizes.classes),
        "limits": np.array([0.3, sizes.detections // 4], np.float32),
    }
    inputs["boxes"][:, 3:4, 1] = np.nan
    plan = visible_plan(batch, sizes.detections, 32, sizes.classes)
    return KernelCase(name, plan, inputs, partial(_compare_visible, inputs))


def _compare_visible(inputs: Arrays, out: Arrays) -> dict[str, float]:
    """The number of rows and their boxes, exactly."""
    threshold, most = inputs["limits"]
    for n, count in enumerate(inputs["count"].tolist()):
        scores, boxes = inputs["scores"][n, :count], inputs["boxes"][n, :count]
        shown = (scores > threshold) & (inputs["classes"][n, :count] % 2 == 0)
        shown &= np.isfinite(boxes).all(axis=1)
        rows = np.flatnonzero(shown)[: int(most)]
        stop = int(rows[-1]) + 1 if len(rows) else 0
        if (got := int(out["visible"][n])) != stop:
            raise MismatchError(f"{got} rows of image {n} are to be shown, and {stop} are right")
        expected = np.where(shown[:stop, None], boxes[:stop], np.float32(np.nan))
        if not np.array_equal(out["mask_boxes"][n, :stop], expected, equal_nan=True):
            raise MismatchError(f"boxes of the rows to show of image {n} are wrong")
    return {}
