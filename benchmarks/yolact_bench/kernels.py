"""`yolact-bench kernels`: each kernel launch against the time that its bytes need at least.

The heads are synthetic: a few objects per image, with the given number of priors above the threshold around
them. A launch is timed with cold caches. Its floor is the bytes that it has to move, divided by the bandwidth
of copies in the same GPU's memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from yolact import Config, get_config
from yolact_bench.machine import describe_machine
from yolact_bench.protocol import Timing, take_turns
from yolact_runtime.commandline import table_console
from yolact_runtime.cuda.device import Device
from yolact_runtime.cuda.launch import LoadedPlan
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, mask_plan
from yolact_runtime.cuda.plans.plan import Buffer, Plan
from yolact_runtime.cuda.timing import copy_bandwidth, time_launches
from yolact_runtime.errors import UsageError, missing_extra
from yolact_runtime.files import write_json
from yolact_runtime.masks import crop_bounds

OBJECTS = 20
COEFFICIENTS = 32
WHOLE = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench kernels`."""
    parser.add_argument("--config", default="yolact_resnet50", help="use the priors and classes of this one")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images in one call")
    parser.add_argument("--half", action="store_true", help="heads and prototypes in float16")
    parser.add_argument("--candidates", type=int, default=1000, help="priors per image above the threshold")
    parser.add_argument("--image-size", default="480x640", metavar="HxW", help="size of the masks in pixels")
    parser.add_argument("--repeats", type=int, default=50, help="runs of each plan")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic heads")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")


def command(args: argparse.Namespace) -> int:
    """Measure the kernels, print tables and write the JSON; returns the exit code.

    Raises:
        UsageError: an option is outside what is allowed.
        YolactError: there is no GPU, or a package is missing.
    """
    config = get_config(args.config)
    if not re.fullmatch(r"\d+x\d+", args.image_size):
        raise UsageError(f"--image-size is {args.image_size!r}; height x width is needed, such as 480x640")
    height, width = (int(side) for side in args.image_size.split("x"))
    with Device() as device, device.current:
        bandwidth = copy_bandwidth(device)
        runs = []
        for batch in args.batch:
            inputs = make_inputs(config, batch, args.candidates, args.half, args.seed)
            runs.append(_measure(device, config, inputs, (height, width), args.repeats, bandwidth))
        report = {
            "gpu": dataclasses.asdict(device.gpu),
            "bandwidth": bandwidth,
            "config": args.config,
            "half": args.half,
            "image_size": [height, width],
            "machine": describe_machine(),
            "runs": runs,
        }
    _print(report)
    if args.json:
        write_json(args.json, report)
    return 0


def make_inputs(
    config: Config, batch: int, candidates: int, half: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Synthetic heads: `OBJECTS` objects per image, with the priors around them above the threshold.

    Args:
        config: Determines priors, classes and prototypes.
        batch: N, 1 or more.
        candidates: Priors of each image above the score threshold, 1..P.
        half: Whether all but the priors are float16.
        seed: Seed of everything random.

    Returns:
        `loc` (N, P, 4), `logits` (N, P, C+1), `coefficients` (N, P, M), `priors` (P, 4) and `prototypes`
        (N, Hp, Wp, M).

    Raises:
        UsageError: batch or candidates is outside its range.
        YolactError: PyTorch is not installed.
    """
    try:
        from yolact.model.priors import model_priors, prototype_size
    except ImportError as error:
        raise missing_extra(f"making synthetic heads (no module {error.name!r})", "train") from error

    priors = model_priors(config.model).numpy()
    if batch < 1 or not 1 <= candidates <= len(priors):
        raise UsageError(
            f"batch {batch} with {candidates} candidates: batch must be 1 or more and candidates"
            f" 1..{len(priors)}"
        )
    rng = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    logits = rng.standard_normal((batch, len(priors), config.num_classes + 1), np.float32)
    # At most 3 against 10: the softmax of 80 classes stays below 0.05 where there is no object.
    np.clip(logits, -3, 3, out=logits)
    logits[..., 0] = 10
    for image in logits:
        classes = rng.integers(1, config.num_classes + 1, OBJECTS)
        # The priors nearest to an object, in position and in size.
        distance = np.stack(
            [_distance(priors, priors[middle]) for middle in rng.choice(len(priors), OBJECTS)]
        )  # (objects, P)
        nearest = distance.argmin(axis=0)
        chosen = np.argsort(distance.min(axis=0), kind="stable")[:candidates]
        image[chosen, classes[nearest[chosen]]] = 10 + rng.uniform(-2, 4, candidates)
    rows, columns = prototype_size(config.model.input_size)
    coarse = np.maximum(rng.standard_normal((batch * COEFFICIENTS, 18, 18), np.float32), 0)
    planes = np.stack([cv2.resize(plane, (columns, rows)) for plane in coarse])
    prototypes = planes.reshape(batch, COEFFICIENTS, rows, columns).transpose(0, 2, 3, 1)  # (N, Hp, Wp, M)
    return {
        "loc": (0.5 * rng.standard_normal((batch, len(priors), 4), np.float32)).astype(kind),
        "logits": logits.astype(kind),
        "coefficients": np.tanh(rng.standard_normal((batch, len(priors), COEFFICIENTS), np.float32)).astype(
            kind
        ),
        "priors": priors,
        "prototypes": np.ascontiguousarray(prototypes, kind),
    }


def _distance(priors: np.ndarray, middle: np.ndarray) -> np.ndarray:
    apart = ((priors[:, :2] - middle[:2]) / middle[2:]) ** 2
    return apart.sum(axis=1) + (np.log(priors[:, 2:] / middle[2:]) ** 2).sum(axis=1)


def _measure(
    device: Device, config: Config, inputs: Mapping[str, np.ndarray], size: tuple[int, int], repeats: int,
    bandwidth: float,
) -> dict[str, Any]:  # fmt: skip
    """Time both plans, and detection against PyTorch's if PyTorch can use the GPU."""
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
        for buffer in plan.inputs:
            loaded.upload(buffer.name, inputs[buffer.name])
        times = time_launches(loaded, repeats)
        found = {name: loaded.download(name) for name in ("boxes", "kept_coefficients", "count")}
        candidates = int(loaded.download("candidate_counts").sum())
        needed = detection_bytes(plan, candidates, int(found["count"].sum()))
        rows = _rows("detection", times, needed, bandwidth)
        eager = _against_eager(loaded, config, inputs)
    rows_down, columns = prototypes.shape[1:3]
    limit, depth = found["kept_coefficients"].shape[1:]
    shapes = MaskShapes(batch, limit, depth, rows_down, columns, *size, prototypes.dtype)
    plan = mask_plan(shapes)
    given = found | {"prototypes": prototypes, "sizes": np.array([size] * batch, np.int32)}
    with LoadedPlan(device, plan) as loaded:
        for buffer in plan.inputs:
            loaded.upload(buffer.name, given[buffer.name])
        times = time_launches(loaded, repeats)
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


def detection_bytes(plan: Plan, candidates: int, detections: int) -> dict[str, int]:
    """Bytes that the kernels of a detection plan have to move: what they need of each buffer, counted once.

    Args:
        plan: A plan of `detection_plan`.
        candidates: Number of priors above the score threshold, in all images.
        detections: Number of detections, in all images.

    Returns:
        Kernel -> bytes read and written; `WHOLE` -> bytes of the whole plan without its workspace.
    """
    sizes = _by_name(plan)
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
    """Bytes that the kernels of a mask plan have to move: what they need of each buffer, counted once.

    Args:
        plan: A plan of `mask_plan(shapes, "edges")`.
        boxes: (N, K, 4) relative x1 y1 x2 y2.
        count: (N,) number of detections.
        regions: (N, K, 4) x, y, width and height in pixels of the part that each mask may set, from the plan.
        edges: Number of edges, in all images.

    Returns:
        Kernel -> bytes read and written; `WHOLE` -> bytes of the whole plan without its workspace.
    """
    sizes = _by_name(plan)
    prototypes = sizes["prototypes"]
    images, rows, columns, depth = prototypes.shape
    seen = np.zeros((images, rows, columns), bool)
    cells = words = 0
    for n, number in enumerate(count.tolist()):
        for x1, y1, x2, y2 in crop_bounds(boxes[n, :number], rows, columns).tolist():
            seen[n, y1:y2, x1:x2] = True
            cells += max(x2 - x1, 0) * max(y2 - y1, 0)
        for _, y, across, down in regions[n, :number].tolist():
            words += across * (-(-(y + down) // 32) - y // 32) if across and down else 0
    detections = int(count.sum())
    read = int(seen.sum()) * depth * prototypes.dtype.itemsize
    # Boxes and counts; then also the sizes of the images.
    where = detections * 16 + 4 * images
    sized = where + 8 * images
    totals, masks, bits = sizes["totals"].nbytes, 4 * cells, 4 * words
    written = sizes["offsets"].nbytes + 4 * edges
    vectors = detections * depth * 4
    each = {
        "assemble_masks": read + vectors + where + masks,
        "mask_bits": masks + sized + bits,
        "count_edges": bits + sized + sizes["regions"].nbytes + totals,
        "write_edges": bits + sized + totals + written,
    }
    return _by_kernel(plan, each) | {WHOLE: read + vectors + sized + sizes["regions"].nbytes + written}


def _by_name(plan: Plan) -> dict[str, Buffer]:
    return {buffer.name: buffer for buffer in plan.buffers}


def _by_kernel(plan: Plan, each: dict[str, int]) -> dict[str, int]:
    return {launch.kernel: each[launch.kernel.partition("<")[0]] for launch in plan.launches}


def _rows(
    plan: str, times: Mapping[str, Sequence[float]], needed: Mapping[str, int], bandwidth: float
) -> list[dict[str, Any]]:
    """A table row for each kernel and one for their sum; times in microseconds."""
    all_times = {**times, WHOLE: np.sum(list(times.values()), axis=0).tolist()}
    rows = []
    for kernel, milliseconds in all_times.items():
        median, floor = 1000 * float(np.median(milliseconds)), 1e6 * needed[kernel] / bandwidth
        rows.append(
            {
                "plan": plan,
                "kernel": kernel,
                "microseconds": median,
                "bytes": needed[kernel],
                "floor_microseconds": floor,
                "ratio": median / floor if floor else None,
            }
        )
    return rows


def _against_eager(
    loaded: LoadedPlan, config: Config, inputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Times of detection by kernels and by PyTorch, interleaved; None if PyTorch has no GPU."""
    eager = _eager(config, inputs)
    if eager is None:
        return None

    def ours() -> None:
        loaded.run()
        loaded.synchronize()

    images = len(inputs["loc"])
    taken, _ = take_turns({"kernels": ours, "PyTorch eager": eager})
    return {name: dataclasses.asdict(Timing.of(seconds, images)) for name, seconds in taken.items()}


def _eager(config: Config, inputs: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
    """Detection by PyTorch on the GPU, as a task to time; None if PyTorch has no GPU."""
    import torch

    from yolact.model import YolactOutput
    from yolact.model.detect import detect

    if not torch.cuda.is_available():
        return None
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    heads = {name: tensors[name] for name in ("loc", "logits", "coefficients", "prototypes")}
    # The kernels do not re-score masks; without that, this is all that `detect` needs of the network.
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, mask_iou=False))
    model: Any = SimpleNamespace(priors=tensors["priors"], config=plain)
    output = YolactOutput(**heads)

    def task() -> None:
        with torch.inference_mode():
            detect(model, output)
        torch.cuda.synchronize()

    return task


def _print(report: Mapping[str, Any]) -> None:
    """Print one table per batch size."""
    console = table_console()
    gpu = report["gpu"]
    kind = "float16" if report["half"] else "float32"
    versions = ", ".join(f"{name} {found}" for name, found in report["machine"]["versions"].items())
    console.print(f"{gpu['name']}, compute capability {gpu['capability']}, CUDA {gpu['cuda']}")
    console.print(f"copies move {report['bandwidth'] / 1e9:.0f} GB/s, read and written; {versions}")
    for one in report["runs"]:
        table = Table(
            title=f"{report['config']}, {kind}, batch {one['batch']}: {one['candidates']:.0f} candidates,"
            f" {one['detections']:.0f} detections per image"
        )
        table.add_column("kernel")
        for title in ("median us", "bytes", "floor us", "times the floor"):
            table.add_column(title, justify="right")
        for row in one["rows"]:
            whole = row["kernel"] == WHOLE
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
            table.add_row(
                f"{row['plan']}, all" if whole else row["kernel"],
                f"{row['microseconds']:.1f}",
                f"{row['bytes']:,}",
                f"{row['floor_microseconds']:.1f}",
                ratio,
                end_section=whole,
            )
        console.print(table)
        for name, timing in (one["eager"] or {}).items():
            console.print(f"detection by {name}: {1000 * timing['median']:.1f} us by the host's clock")
