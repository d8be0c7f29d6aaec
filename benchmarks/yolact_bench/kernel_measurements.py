"""Time the plans of detection and masks on synthetic heads, and count the bytes that their kernels need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from yolact import Config
from yolact_bench.measure.protocol import Timing, take_turns
from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Plan
from yolact_runtime.cuda.timing import time_launches
from yolact_runtime.errors import UsageError
from yolact_runtime.masks import crop_bounds
from yolact_runtime.packages import require

OBJECTS = 20
COEFFICIENTS = 32
WHOLE = "all"  # the row of a whole plan


def make_inputs(
    config: Config, batch: int, candidates: int, half: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Synthetic heads: `OBJECTS` objects per image, with the priors around them above the threshold.

    Args:
        config: Determines priors, classes and prototypes.
        batch: N, 1 or more.
        candidates: Priors of each image above the score threshold, 1..P.
        half: Whether all but the priors are float16.
        seed: Of everything random.

    Returns:
        `loc` (N, P, 4), `logits` (N, P, C+1), `coefficients` (N, P, M), `priors` (P, 4) and `prototypes`
        (N, Hp, Wp, M).

    Raises:
        UsageError: batch or candidates is outside its range.
        YolactError: PyTorch is not installed.
    """
    require("synthetic heads", "train", "torch")
    from yolact.model.priors import model_priors, prototype_size

    priors = model_priors(config.model).numpy()
    if batch < 1 or not 1 <= candidates <= len(priors):
        limits = f"batch must be 1 or more and candidates 1..{len(priors)}"
        raise UsageError(f"batch {batch} with {candidates} candidates: {limits}")
    rng = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    logits = rng.standard_normal((batch, len(priors), config.num_classes + 1), np.float32)
    # At most 3 against 10: the softmax of 80 classes stays below 0.05 where there is no object.
    np.clip(logits, -3, 3, out=logits)
    logits[..., 0] = 10
    for image in logits:
        classes = rng.integers(1, config.num_classes + 1, OBJECTS)
        # The priors nearest to an object, in position and in size.
        middles = priors[rng.choice(len(priors), OBJECTS), None]
        apart = (priors[:, :2] - middles[..., :2]) / middles[..., 2:]
        scales = np.log(priors[:, 2:] / middles[..., 2:])
        distance = (apart**2 + scales**2).sum(axis=2)  # (objects, P)
        nearest = distance.argmin(axis=0)
        chosen = np.argsort(distance.min(axis=0), kind="stable")[:candidates]
        image[chosen, classes[nearest[chosen]]] = 10 + rng.uniform(-2, 4, candidates)
    rows, columns = prototype_size(config.model.input_size, config.model.proto_scale)
    coarse = np.maximum(rng.standard_normal((batch, 18, 18, COEFFICIENTS), np.float32), 0)
    prototypes = np.stack([cv2.resize(image, (columns, rows)) for image in coarse])  # (N, Hp, Wp, M)
    loc = 0.5 * rng.standard_normal((batch, len(priors), 4), np.float32)
    coefficients = np.tanh(rng.standard_normal((batch, len(priors), COEFFICIENTS), np.float32))
    heads = {"loc": loc, "logits": logits, "coefficients": coefficients, "prototypes": prototypes}
    return {name: head.astype(kind) for name, head in heads.items()} | {"priors": priors}


def measure(
    device: Device, config: Config, inputs: Mapping[str, np.ndarray], size: tuple[int, int], repeats: int,
    bandwidth: float,
) -> dict[str, Any]:  # fmt: skip
    """The entry of one batch in the JSON report: both plans, and PyTorch's detection if it can use the GPU.

    Args:
        device: With its context current.
        config: Determines the settings of detection.
        inputs: From `make_inputs`.
        size: Height and width of the images in pixels.
        repeats: Runs of each plan.
        bandwidth: Of the GPU's memory in bytes per second.
    """
    loc, logits, prototypes = (inputs[name] for name in ("loc", "logits", "prototypes"))
    batch, priors, classes = logits.shape
    settings = config.detect
    plan = detection_plan(
        batch, priors, classes - 1, prototypes.shape[3],
        score_threshold=settings.score_threshold, iou_threshold=settings.iou_threshold,
        top_k=settings.nms_top_k, limit=settings.max_detections,
        loc_dtype=loc.dtype, logits_dtype=logits.dtype, coefficients_dtype=loc.dtype,
    )  # fmt: skip
    with LoadedPlan(device, plan) as loaded:
        times = _timed(loaded, inputs, repeats)
        found = {name: loaded.download(name) for name in ("boxes", "kept_coefficients", "count")}
        candidates = int(loaded.download("candidate_counts").sum())
        needed = detection_bytes(plan, candidates, int(found["count"].sum()))
        rows = _rows("detection", times, needed, bandwidth)
        eager = _against_eager(loaded, config, inputs)
    _, limit, depth = found["kept_coefficients"].shape
    _, rows_down, columns, _ = prototypes.shape
    height, width = size
    plan = mask_plan(MaskShapes(batch, limit, depth, rows_down, columns, height, width, prototypes.dtype))
    given = found | {"prototypes": prototypes, "sizes": np.array([size] * batch, np.int32)}
    with LoadedPlan(device, plan) as loaded:
        times = _timed(loaded, given, repeats)
        edges = int(loaded.download("offsets")[:, -1].sum())
        needed = mask_bytes(plan, found["boxes"], found["count"], loaded.download("regions"), edges)
        rows += _rows("masks", times, needed, bandwidth)
    return {
        "batch": batch,
        "candidates": candidates / batch,
        "detections": int(found["count"].sum()) / batch,
        "rows": rows,
        "eager": eager,
    }


def _timed(loaded: LoadedPlan, inputs: Mapping[str, np.ndarray], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run of each kernel on these inputs."""
    for buffer in loaded.plan.inputs:
        loaded.upload(buffer.name, inputs[buffer.name])
    return time_launches(loaded, repeats)


def detection_bytes(plan: Plan, candidates: int, detections: int) -> dict[str, int]:
    """Bytes that the kernels of a detection plan have to move: what they need of each buffer, counted once.

    Args:
        plan: A plan of `detection_plan`.
        candidates: Priors above the score threshold, in all images.
        detections: In all images.

    Returns:
        Kernel -> bytes read and written; `WHOLE` -> bytes of the whole plan without its workspace.
    """
    sizes = {buffer.name: buffer for buffer in plan.buffers}
    logits, coefficients = sizes["logits"], sizes["coefficients"]
    images, _, width = logits.shape
    counts = 4 * images
    # The offsets of a candidate, and its prior, which the images share.
    boxes = candidates * 4 * sizes["loc"].dtype.itemsize + min(16 * candidates, sizes["priors"].nbytes)
    kept = detections * coefficients.shape[2] * coefficients.dtype.itemsize
    written = sum(buffer.nbytes for buffer in plan.outputs)
    words, keys = sizes["words"].nbytes, sizes["kept_keys"].nbytes
    each = {
        # Written per candidate: maximum and sum of its softmax, and its box.
        "filter_scores": logits.nbytes + boxes + words + candidates * (8 + 16),
        "list_candidates": words + candidates * 4 + counts,
        # Read per candidate: prior, maximum and sum, box, and all logits but the background's.
        "class_nms": candidates * (4 + 8 + 16 + (width - 1) * logits.dtype.itemsize)
        + counts + keys + detections * 4,
        "keep_best": keys + detections * (4 + 16) + kept + written,
    }  # fmt: skip
    return _by_kernel(plan, each) | {WHOLE: logits.nbytes + boxes + kept + written}


def mask_bytes(
    plan: Plan, boxes: np.ndarray, count: np.ndarray, regions: np.ndarray, edges: int
) -> dict[str, int]:
    """Bytes that the kernels of a mask plan have to move, as `detection_bytes` counts them.

    Args:
        plan: A plan of `mask_plan(shapes, "edges")`.
        boxes: (N, K, 4) relative x1 y1 x2 y2.
        count: (N,) number of detections.
        regions: (N, K, 4) x, y, width and height in pixels of the part that each mask may set, from the plan.
        edges: Of all images.
    """
    sizes = {buffer.name: buffer for buffer in plan.buffers}
    prototypes = sizes["prototypes"]
    images, rows, columns, depth = prototypes.shape
    seen = np.zeros((images, rows, columns), int)
    words = 0
    for n, number in enumerate(count.tolist()):
        for x1, y1, x2, y2 in crop_bounds(boxes[n, :number], rows, columns).tolist():
            seen[n, y1:y2, x1:x2] += 1
        for _, y, across, down in regions[n, :number].tolist():
            words += across * (-(-(y + down) // 32) - y // 32) if down else 0
    detections = int(count.sum())
    read = int(np.count_nonzero(seen)) * depth * prototypes.dtype.itemsize
    # Boxes and counts; then also the sizes of the images.
    where = detections * 16 + 4 * images
    sized = where + 8 * images
    totals, masks, bits = sizes["totals"].nbytes, 4 * int(seen.sum()), 4 * words
    written = sizes["offsets"].nbytes + 4 * edges
    vectors = detections * depth * 4
    each = {
        "assemble_masks": read + vectors + where + masks,
        "mask_bits": masks + sized + bits,
        "count_edges": bits + sized + sizes["regions"].nbytes + totals,
        "write_edges": bits + sized + totals + written,
    }
    return _by_kernel(plan, each) | {WHOLE: read + vectors + sized + sizes["regions"].nbytes + written}


def _by_kernel(plan: Plan, each: dict[str, int]) -> dict[str, int]:
    return {launch.kernel: each[launch.kernel.partition("<")[0]] for launch in plan.launches}


def _rows(
    plan: str, times: Mapping[str, Sequence[float]], needed: Mapping[str, int], bandwidth: float
) -> list[dict[str, Any]]:
    """A table row for each kernel and one for their sum; times in microseconds."""
    all_times = {**times, WHOLE: np.sum(list(times.values()), axis=0)}
    medians = {kernel: 1000 * float(np.median(milliseconds)) for kernel, milliseconds in all_times.items()}
    floors = {kernel: 1e6 * needed[kernel] / bandwidth for kernel in medians}
    return [
        {
            "plan": plan,
            "kernel": kernel,
            "microseconds": median,
            "bytes": needed[kernel],
            "floor_microseconds": floors[kernel],
            "ratio": median / floors[kernel] if floors[kernel] else None,
        }
        for kernel, median in medians.items()
    ]


def _against_eager(
    loaded: LoadedPlan, config: Config, inputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Times of detection by kernels and by PyTorch, interleaved; None if PyTorch has no GPU."""
    import torch

    from yolact.model import YolactOutput
    from yolact.model.detect import detect

    if not torch.cuda.is_available():
        return None
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    # The kernels do not re-score masks; without that, this is all that `detect` needs of the network.
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, mask_iou=False))
    model: Any = SimpleNamespace(priors=tensors.pop("priors"), config=plain)
    output = YolactOutput(**tensors)

    def kernels() -> None:
        loaded.run()
        loaded.synchronize()

    def eager() -> None:
        with torch.inference_mode():
            detect(model, output)
        torch.cuda.synchronize()

    images = len(inputs["loc"])
    taken, _ = take_turns({"kernels": kernels, "PyTorch eager": eager})
    return {name: dataclasses.asdict(Timing.of(seconds, images)) for name, seconds in taken.items()}
