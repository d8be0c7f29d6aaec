"""The kernels on a GPU: each launch against the time that its bytes take at least.

    python -m yolact_bench.kernels [--config yolact_resnet50] [--batch 1 32] [--half]

The heads are made: a few objects an image, with the wanted number of priors above the threshold around them.
A launch is timed with cold caches. Its floor is the bytes that it has to move, divided by the bandwidth of
copies in the same GPU's memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from yolact import Config, get_config
from yolact_bench.kernel_bytes import WHOLE, detection_bytes, mask_bytes
from yolact_bench.measure.machine import describe_machine
from yolact_bench.measure.protocol import Timing, take_turns
from yolact_runtime.commandline import Parser, run, table_console
from yolact_runtime.cuda.device import Device, DevicePlan
from yolact_runtime.cuda.plans.detection import detection_plan
from yolact_runtime.cuda.plans.masks import MaskShapes, check_sizes, mask_plan
from yolact_runtime.cuda.timing import copy_bandwidth, time_launches
from yolact_runtime.errors import UsageError, missing_extra
from yolact_runtime.files import write_json

OBJECTS = 20
COEFFICIENTS = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m yolact_bench.kernels",
        description="Time the CUDA kernels on this machine's GPU, each against its bytes.",
    )
    parser.add_argument("--config", default="yolact_resnet50", help="whose priors and classes")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32], help="images at once")
    parser.add_argument("--half", action="store_true", help="heads and prototypes in float16")
    parser.add_argument("--candidates", type=int, default=1000, help="priors of an image above the threshold")
    parser.add_argument("--image-size", default="480x640", metavar="HxW", help="of the masks, in pixels")
    parser.add_argument("--repeats", type=int, default=50, help="runs of each plan")
    parser.add_argument("--seed", type=int, default=0, help="of the heads")
    parser.add_argument("--json", metavar="FILE", help="write the figures as JSON")
    return run(_command, parser, argv)


def _command(args: argparse.Namespace) -> int:
    config = get_config(args.config)
    if not re.fullmatch(r"\d+x\d+", args.image_size):
        raise UsageError(f"--image-size is {args.image_size!r}; height x width is needed, such as 480x640")
    height, width = (int(side) for side in args.image_size.split("x"))
    with Device() as device:
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
    _show(report)
    if args.json:
        write_json(args.json, report)
    return 0


def make_inputs(
    config: Config, batch: int, candidates: int, half: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Heads as a trained network's: `OBJECTS` an image, each with the priors around it above the threshold.

    Args:
        config: Whose priors, classes and prototypes.
        batch: N, 1 or more.
        candidates: Priors of each image above the score threshold, 1..P.
        half: In float16, but for the priors.
        seed: Of all that is random.

    Returns:
        `loc` (N, P, 4), `logits` (N, P, C+1), `coefficients` (N, P, M), `priors` (P, 4) and `prototypes`
        (N, Hp, Wp, M).

    Raises:
        UsageError: batch or candidates outside what is allowed.
        YolactError: PyTorch is not installed.
    """
    try:
        from yolact.model.priors import model_priors, prototype_size
    except ImportError as error:
        raise missing_extra(f"making heads (no module {error.name!r})", "train") from error

    priors = model_priors(config.model).numpy()
    if batch < 1 or not 1 <= candidates <= len(priors):
        raise UsageError(
            f"batch {batch} with {candidates} candidates: batch must be 1 or more and candidates"
            f" 1..{len(priors)}"
        )
    rng = np.random.default_rng(seed)
    kind = np.float16 if half else np.float32
    logits = rng.standard_normal((batch, len(priors), config.num_classes + 1), np.float32)
    # At most 3 against 10: the softmax of 80 classes stays below 0.05 wherever no object is.
    np.clip(logits, -3, 3, out=logits)
    logits[..., 0] = 10
    for image in logits:
        classes = rng.integers(1, config.num_classes + 1, OBJECTS)
        # Of all priors those nearest to some object, in place and in size.
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
    """Rows of both plans, and detection against PyTorch's where that has the GPU."""
    loc, logits, prototypes = (inputs[name] for name in ("loc", "logits", "prototypes"))
    batch, priors, classes = logits.shape
    settings = config.detect
    plan = detection_plan(
        batch, priors, classes - 1, prototypes.shape[3],
        score_threshold=settings.score_threshold, iou_threshold=settings.iou_threshold,
        top_k=settings.nms_top_k, limit=settings.max_detections,
        loc_dtype=loc.dtype, logits_dtype=logits.dtype, coefficients_dtype=loc.dtype,
    )  # fmt: skip
    with device.load(plan) as kernels:
        for buffer in plan.inputs:
            kernels.upload(buffer.name, inputs[buffer.name])
        times = time_launches(kernels, repeats)
        found = {name: kernels.download(name) for name in ("boxes", "kept_coefficients", "count")}
        candidates = int(kernels.download("candidate_counts").sum())
        needed = detection_bytes(plan, candidates, int(found["count"].sum()))
        rows = _rows("detection", times, needed, bandwidth)
        eager = _against_eager(kernels, config, inputs)
    rows_down, columns = prototypes.shape[1:3]
    limit, depth = found["kept_coefficients"].shape[1:]
    shapes = MaskShapes(batch, limit, depth, rows_down, columns, *size, prototypes.dtype)
    plan = mask_plan(shapes)
    given = found | {"prototypes": prototypes, "sizes": check_sizes(shapes, [size] * batch)}
    with device.load(plan) as kernels:
        for buffer in plan.inputs:
            kernels.upload(buffer.name, given[buffer.name])
        times = time_launches(kernels, repeats)
        edges = int(kernels.download("offsets")[:, -1].sum())
        needed = mask_bytes(plan, found["boxes"], found["count"], kernels.download("regions"), edges)
        rows += _rows("masks", times, needed, bandwidth)
    return {
        "batch": batch,
        "candidates": candidates / batch,
        "detections": int(found["count"].sum()) / batch,
        "rows": rows,
        "eager": eager,
    }


def _rows(
    plan: str, times: Mapping[str, Sequence[float]], needed: Mapping[str, int], bandwidth: float
) -> list[dict[str, Any]]:
    """One for each kernel, and their sum; times in microseconds."""
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
    kernels: DevicePlan, config: Config, inputs: Mapping[str, np.ndarray]
) -> dict[str, Any] | None:
    """Times of detection by kernels and by PyTorch in turns, on the host's clock; None without the latter."""
    eager = _eager(config, inputs)
    if eager is None:
        return None

    def ours() -> None:
        kernels.run()
        kernels.synchronize()

    images = len(inputs["loc"])
    taken, _ = take_turns({"kernels": ours, "PyTorch eager": eager})
    return {name: dataclasses.asdict(Timing.of(seconds, images)) for name, seconds in taken.items()}


def _eager(config: Config, inputs: Mapping[str, np.ndarray]) -> Callable[[], None] | None:
    import torch

    from yolact.model import YolactOutput
    from yolact.model.detect import detect

    if not torch.cuda.is_available():
        return None
    tensors = {name: torch.from_numpy(array).cuda() for name, array in inputs.items()}
    heads = {name: tensors[name] for name in ("loc", "logits", "coefficients", "prototypes")}
    # The kernels do not re-score; of the network, `detect` then takes no more than this.
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, mask_iou=False))
    model: Any = SimpleNamespace(priors=tensors["priors"], config=plain)
    output = YolactOutput(**heads)

    def task() -> None:
        with torch.inference_mode():
            detect(model, output)
        torch.cuda.synchronize()

    return task


def _show(report: Mapping[str, Any]) -> None:
    console = table_console()
    gpu = report["gpu"]
    kind = "float16" if report["half"] else "float32"
    versions = ", ".join(f"{name} {found}" for name, found in report["machine"]["versions"].items())
    console.print(f"{gpu['name']}, compute capability {gpu['capability']}, CUDA {gpu['cuda']}")
    console.print(f"copies move {report['bandwidth'] / 1e9:.0f} GB/s, read and written; {versions}")
    for one in report["runs"]:
        table = Table(
            title=f"{report['config']}, {kind}, batch {one['batch']}: {one['candidates']:.0f} candidates,"
            f" {one['detections']:.0f} detections an image"
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
            console.print(f"detection by {name}: {1000 * timing['median']:.1f} us on the host's clock")


if __name__ == "__main__":
    sys.exit(main())
