"""`yolact-bench masks`: masks at image size, inside their boxes only against whole images.

Both variants start from the same coefficients, prototypes and boxes and end in COCO RLE of the same
masks. "whole" assembles every mask at prototype resolution, enlarges it to the image by OpenCV, thresholds it
and encodes it with pycocotools; "boxes" is the runtime's way, which follows the outlines only. The two are
interleaved. A 4K image is `--size 2160x3840`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from typing import Any

from yolact_bench.options import check_number, parse_size
from yolact_runtime.commandline import Table, print_line
from yolact_runtime.errors import YolactError, counted

MOST_PIXELS = 2**31  # of all masks together: some GB of memory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `yolact-bench masks`."""
    parser.add_argument("--detections", type=int, default=100, help="masks in the image")
    parser.add_argument("--size", default="480x640", help="image height x width in pixels")
    parser.add_argument("--threads", type=int, default=2, help="for NumPy's matrix products and OpenCV")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each variant")


def command(args: argparse.Namespace) -> int:
    """Print the medians of both variants and their ratio; 1 if the masks differ."""
    for name, high in (("detections", "candidates"), ("threads", "threads"), ("repeats", "runs")):
        check_number(f"--{name}", getattr(args, name), 1, high)
    height, width = parse_size("--size", args.size)
    check_number("--detections times --size", args.detections * height * width, 1, MOST_PIXELS)
    # NumPy's libraries read these when they are first imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

    from yolact_bench.measure.protocol import take_turns
    from yolact_runtime import masks

    cv2.setNumThreads(args.threads)
    case = mask_case(args.detections)
    regions = masks.box_masks(*case, height, width)
    variants = {
        "whole": lambda: whole_masks(*case, height, width),
        "boxes": lambda: masks.encode(masks.box_masks(*case, height, width), height, width),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}

    def timed(name: str) -> Any:
        marks = [time.process_time(), time.perf_counter()]
        found = variants[name]()
        taken[name].append((time.process_time() - marks[0], time.perf_counter() - marks[1]))
        return found

    encoded = take_turns({name: partial(timed, name) for name in variants}, float("inf"), args.repeats)[1]
    # (rounds, CPU and wall), without those to warm up.
    times = {name: 1000 * np.array(some[-args.repeats :]) for name, some in taken.items()}
    share = sum(one.width * one.height for one in regions) / (args.detections * height * width)
    whole, boxes = (coco_mask.decode(rles[0]) for rles in encoded.values())
    if not whole.any():
        raise YolactError(f"no mask has a pixel at {args.size}, so nothing can be compared; raise --size")
    different = float((whole != boxes).sum() / np.sum(whole))
    threads, rounds = counted(args.threads, "thread"), counted(args.repeats, "round")
    title = f"{counted(args.detections, 'mask')} at {width} x {height}, {threads}, {rounds}"
    rows = [_row(name, some) for name, some in times.items()]
    ratios = np.median(times["whole"], axis=0) / np.median(times["boxes"], axis=0)
    rows.append(["ratio", f"{ratios[0]:.1f}", "", f"{ratios[1]:.1f}", ""])
    note = f"The masks' bounding boxes cover {share:.1%} of the whole images."
    columns = ("", "CPU ms", "quartiles", "wall ms", "quartiles")
    Table(title, columns, rows, note).show()
    print_line(f"pixels that differ: {different:.2e} of the set ones", sys.stdout)
    return 0 if different < 1e-4 else 1


def _row(name: str, times: Any) -> list[str]:
    """Medians and quartiles of times (rounds, 2) in ms."""
    import numpy as np

    cells = [name]
    for low, median, high in np.percentile(times, (25, 50, 75), axis=0).T:
        cells += [f"{median:.2f}", f"{low:.2f} to {high:.2f}"]
    return cells


def mask_case(n: int) -> tuple[Any, Any, Any]:
    """Coefficients, smooth prototypes, and boxes anywhere, with sides of 5% to 80% of the image's."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = np.maximum(rng.normal(size=(32, 18, 18)), 0).astype(np.float32)
    prototypes = np.stack([cv2.resize(plane, (138, 138)) for plane in coarse], axis=-1)
    coefficients = np.tanh(rng.normal(size=(n, 32))).astype(np.float32)
    sides, centres = np.exp(rng.uniform(np.log(0.05), np.log(0.8), (n, 2))), rng.uniform(0, 1, (n, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    return coefficients, np.ascontiguousarray(prototypes), boxes


def whole_masks(coefficients: Any, prototypes: Any, boxes: Any, height: int, width: int) -> list[Any]:
    """RLE of masks that are assembled, cropped and enlarged as whole images."""
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

    from yolact_runtime.masks import crop_bounds

    rows, columns, depth = prototypes.shape
    low = prototypes.reshape(-1, depth) @ coefficients.T  # (rows * columns, n)
    low = np.tanh(low * np.float32(0.5)) * np.float32(0.5) + np.float32(0.5)
    low = np.ascontiguousarray(low.T).reshape(-1, rows, columns)  # (n, rows, columns)
    encoded = []
    for mask, (x1, y1, x2, y2) in zip(low, crop_bounds(boxes, rows, columns), strict=True):
        cropped = np.zeros_like(mask)
        cropped[y1:y2, x1:x2] = mask[y1:y2, x1:x2]
        full = cv2.resize(cropped, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
        encoded.append(coco_mask.encode(np.asfortranarray(full.view(np.uint8))))
    return encoded
