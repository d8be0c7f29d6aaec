"""Options of the original YOLACT's `eval.py`: what they mean here, or what to use instead."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from yolact_runtime.errors import UsageError

_DRAWN = "overlays show masks, boxes, classes and scores; draw your own from --jsonl or --arrays"
_ARRAYS = "coefficients and prototypes are in what Engine.detect returns, in Python"
_ORDER = "images are processed in the order they are named in"
# What to use instead of an option, unless its value is the one that changes nothing.
_INSTEAD: dict[str, tuple[str, str]] = {
    "--ap-data-file": ("", "yolact-eval computes AP"),
    "--bbox-det-file": ("", "box results are written next to the mask results of --json"),
    "--benchmark": ("", "yolact-bench --engine E --images DIR measures"),
    "--dataset": ("", "name the images, or evaluate a dataset with yolact-eval --dataset"),
    "--detect": ("", "box results are written next to the mask results of --json"),
    "--display": ("", "no window is opened; overlays are written to --output"),
    "--display-bboxes": ("true", _DRAWN),
    "--display-fps": ("", "the last line printed has the speed"),
    "--display-lincomb": (
        "false",
        _ARRAYS,
    ),
    "--display-masks": ("true", _DRAWN),
    "--display-scores": ("true", _DRAWN),
    "--display-text": ("true", _DRAWN),
    "--emulate-playback": ("", "annotated videos have the times of the source"),
    "--mask-proto-debug": ("", _ARRAYS),
    "--max-images": ("", "name fewer images, or use yolact-eval --max-images for a dataset"),
    "--no-bar": ("", "--quiet shows no progress"),
    "--no-crop": ("", "masks are always cropped to their box"),
    "--no-sort": ("", _ORDER),
    "--output-web-json": ("", "--jsonl or --json has the results"),
    "--seed": ("", _ORDER),
    "--shuffle": ("", _ORDER),
    "--web-det-path": ("", "--jsonl or --json has the results"),
}
_TRUE, _FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def add_original_options(parser: argparse.ArgumentParser) -> None:
    """Add the original's options that have no other name here; the help leaves them out."""
    hidden: dict[str, Any] = {"nargs": "?", "help": argparse.SUPPRESS}
    for option in _INSTEAD:
        parser.add_argument(option, action=_Refuse, dest="refused", **hidden)
    parser.add_argument("--output-coco-json", action="store_true", help=argparse.SUPPRESS)  # the default here
    for option in ("--cuda", "--fast-nms", "--cross-class-nms"):
        parser.add_argument(option, type=_truth, **hidden)


class _Refuse(argparse.Action):
    """Notes an option that is not there; `check_original` raises, as a parser would print its usage too."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        """Note `option` with what to use instead, unless the value is what happens anyway."""
        accepted, instead = _INSTEAD[str(option)]
        words = {"true": _TRUE, "false": _FALSE}.get(accepted, ())
        if str(values).lower() not in words:
            namespace.refused = (
                namespace.refused or f"{option} is an option of the original YOLACT: {instead}"
            )


def _truth(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in _TRUE


def check_original(args: argparse.Namespace) -> None:
    """Raise a UsageError for an option of the original that is not there; it names what to use instead."""
    if args.refused:
        raise UsageError(args.refused)


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
