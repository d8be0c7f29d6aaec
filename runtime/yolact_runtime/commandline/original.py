"""Options of the original YOLACT's `eval.py`: what they mean here, or what to use instead."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DRAWN = "overlays show masks, boxes, classes and scores; draw your own from --jsonl or --arrays"
_BOXES = "box results are written next to the mask results of --json"
_ARRAYS = "coefficients and prototypes are in what Engine.detect returns, in Python"
_ORDER = "images are processed in the order they are named in"
_RESULTS = "--jsonl or --json has the results"
# Advice by option, for those that are not there.
ELSEWHERE = {
    "--ap-data-file": "yolact-eval computes AP",
    "--bbox-det-file": _BOXES,
    "--benchmark": "yolact-bench --engine E --images DIR measures",
    "--dataset": "name the images, or evaluate a dataset with yolact-eval --dataset",
    "--detect": _BOXES,
    "--display": "no window is opened; overlays are written to --output",
    "--display-fps": "the last line printed has the speed",
    "--emulate-playback": "annotated videos have the times of the source",
    "--mask-proto-debug": _ARRAYS,
    "--max-images": "name fewer images, or use yolact-eval --max-images for a dataset",
    "--no-bar": "--quiet shows no progress",
    "--no-crop": "masks are always cropped to their box",
    "--no-sort": _ORDER,
    "--output-web-json": _RESULTS,
    "--seed": _ORDER,
    "--shuffle": _ORDER,
    "--web-det-path": _RESULTS,
}
# Options with one possible value, which changes nothing, and advice for the other one.
_FIXED = {
    "--display-bboxes": (True, _DRAWN),
    "--display-lincomb": (False, _ARRAYS),
    "--display-masks": (True, _DRAWN),
    "--display-scores": (True, _DRAWN),
    "--display-text": (True, _DRAWN),
}


def add_original_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that mean something here, which have no other name; the help leaves them out."""
    add = parser.add_argument
    for option, (value, advice) in _FIXED.items():
        add(option, type=_only(value, advice), help=argparse.SUPPRESS)
    add("--output-coco-json", action="store_true", help=argparse.SUPPRESS)  # the default here
    for option in ("--cuda", "--fast-nms", "--cross-class-nms"):
        add(option, type=_truth, help=argparse.SUPPRESS)


def _truth(text: str) -> bool:
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _only(value: bool, advice: str) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        if _truth(text) is not value:
            raise argparse.ArgumentTypeError(advice)
        return value

    return read


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `load_engine` that `--cuda`, `--fast-nms` and `--cross-class-nms` ask for."""
    options: dict[str, Any] = {}
    if args.cuda is False:
        onnx = Path(args.engine).suffix.lower() == ".onnx"
        options |= {"providers": ["cpu"]} if onnx else {"device": "cpu"}
    if args.cross_class_nms:
        options["nms"] = "cross_class"
    elif args.fast_nms is False:
        options["nms"] = "traditional"
    return options


def split_video(text: str) -> tuple[str, str]:
    """Split `IN:OUT`; OUT may be missing, and IN a camera or an address, which have colons of their own."""
    head, _, tail = text.rpartition(":")
    if "://" not in text and not re.match(r"camera:\d", text, re.IGNORECASE):
        from_to = re.fullmatch(r"((?:[A-Za-z]:(?=[\\/]))?[^:]+)(?::(.*))?", text)
        if Path(text).exists() or not from_to:
            return text, ""
        return from_to[1], from_to[2] or ""
    # Neither the rest of an address, nor its port and path, nor what follows a password.
    is_file = re.fullmatch(r"(?!//|\d+(/|$))[^@?]*\.\w{2,4}", tail)
    return (head, tail) if is_file else (text, "")
