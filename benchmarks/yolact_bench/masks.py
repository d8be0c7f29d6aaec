"""Masks at image size: only inside their boxes against whole images, in one run.

    python -m yolact_bench.masks [--detections 100] [--size 480x640] [--threads 2]

Both ways start from the same coefficients, prototypes and boxes and end in COCO run lengths of the same
masks. "whole" assembles every mask at prototype resolution, enlarges it to the image and encodes it with
pycocotools; "boxes" is what the runtime does, which looks inside the boxes only. The two alternate, so that
both see the same machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Print the medians of both ways and their ratio; 1 if the masks differ."""
    parser = argparse.ArgumentParser(prog="python -m yolact_bench.masks", description=__doc__.split("\n")[0])
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--size", default="480x640", help="image height x width in pixels")
    parser.add_argument("--threads", type=int, default=2, help="for NumPy's matrix products and OpenCV")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args(argv)
    # NumPy's libraries read these when they are first imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(args.threads)
    import cv2

    from yolact_runtime import masks

    cv2.setNumThreads(args.threads)
    height, width = (int(side) for side in args.size.split("x"))
    case = _case(args.detections)
    times: dict[str, list[float]] = {"whole": [], "boxes": []}
    encoded = {}
    for _ in range(args.repeats + 1):
        start = time.perf_counter()
        encoded["whole"] = _whole(*case, height, width)
        middle = time.perf_counter()
        encoded["boxes"] = masks.encode(masks.box_masks(*case, height, width), height, width)
        end = time.perf_counter()
        times["whole"].append(middle - start)
        times["boxes"].append(end - middle)
    # The first round fills caches.
    medians = {way: statistics.median(values[1:]) * 1000 for way, values in times.items()}
    covered = sum(region.width * region.height for region in masks.box_masks(*case, height, width))
    share = covered / (args.detections * height * width)
    apart = _difference(encoded["whole"], encoded["boxes"])
    print(f"{args.detections} masks at {width} x {height}, {args.threads} threads, {args.repeats} rounds")
    print(f"the masks' bounding boxes cover {share:.1%} of the whole images")
    print(f"whole  {medians['whole']:8.2f} ms (median)")
    print(f"boxes  {medians['boxes']:8.2f} ms (median)")
    print(f"ratio  {medians['whole'] / medians['boxes']:8.2f}")
    print(f"pixels that differ: {apart:.2e} of the set ones")
    return 0 if apart < 1e-4 else 1


def _case(n: int) -> tuple[Any, Any, Any]:
    """Smooth prototypes, and boxes from 5% to 80% of the image's sides, anywhere in it."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    coarse = np.maximum(rng.normal(size=(32, 18, 18)), 0).astype(np.float32)
    prototypes = np.stack([cv2.resize(plane, (138, 138)) for plane in coarse], axis=-1)
    coefficients = np.tanh(rng.normal(size=(n, 32))).astype(np.float32)
    sides = np.exp(rng.uniform(np.log(0.05), np.log(0.8), (n, 2)))
    centres = rng.uniform(0, 1, (n, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    return coefficients, np.ascontiguousarray(prototypes), boxes


def _whole(coefficients: Any, prototypes: Any, boxes: Any, height: int, width: int) -> list[Any]:
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


def _difference(a: list[Any], b: list[Any]) -> float:
    """Share of the set pixels that differ between two lists of run lengths."""
    import numpy as np
    from pycocotools import mask as coco_mask

    one, other = coco_mask.decode(a), coco_mask.decode(b)
    return float((one != other).sum() / max(int(np.sum(one)), 1))


if __name__ == "__main__":
    sys.exit(main())
