"""The metadata of an exported file: everything the runtime needs to run it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path

from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.typed import convert, shown, type_name
from yolact_runtime.untrusted import beyond, check_text, limit, parse_json

PREFIX = "yolact."

# Size of the network's input in pixels: the side of a square, or height and width.
InputSize = int | tuple[int, int]

# Provenance, and what only some files need. Everything else changes what the file computes: it is required.
_OPTIONAL = {"priors", "mask_iou_net", "weights_sha256", "onnx_sha256", "versions", "created", "command"}


def height_width(size: InputSize) -> tuple[int, int]:
    """Height and width of a network input in pixels."""
    return (size, size) if isinstance(size, int) else size


def plain_size(size: InputSize) -> InputSize:
    """The side alone if the input is a square, as files of earlier versions have it."""
    height, width = height_width(size)
    return height if height == width else (height, width)


def size_text(size: InputSize | Sequence[int]) -> str:
    """A size as options take it: "550" for a square, else height x width such as "384x640"."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def parse_input_size(text: str) -> InputSize:
    """The size from text such as "384x640", height x width, or "550" for a square.

    Raises:
        UsageError: it is something else, or a side is beyond the limit.
    """
    if not re.fullmatch(r"[0-9]{1,9}(x[0-9]{1,9})?", text):
        raise UsageError(
            f"input size {text!r}: height x width in pixels is needed, such as 384x640, or 550 for a square"
        )
    sides = [int(side) for side in text.split("x")]
    if not all(1 <= side <= limit("input_size") for side in sides):
        raise UsageError(
            f"input size {text}: each side must be 1 or more, and at most {beyond('input_size')}"
        )
    return plain_size((sides[0], sides[-1]))


def to_input_size(value: object) -> InputSize:
    """The size from what Python callers give: a side, height and width, or text as for `parse_input_size`.

    Raises:
        UsageError: it is something else, or a side is beyond the limit.
    """
    if isinstance(value, str):
        return parse_input_size(value)
    sides = [value, value] if isinstance(value, Integral) else []
    sides = list(value) if isinstance(value, Iterable) else sides
    if len(sides) != 2 or not all(isinstance(side, Integral) and type(side) is not bool for side in sides):
        raise UsageError(
            f"input size {shown(value)}: (height, width) in pixels is needed, such as (384, 640), or 550 for"
            " a square"
        )
    return parse_input_size(size_text([int(side) for side in sides]))


@dataclass(frozen=True)
class PriorSpec:
    """The arguments of `yolact_runtime.priors.make_priors` besides the input size.

    Attributes:
        levels: (height, width) of each pyramid level's feature map.
        scales: For each level its box sizes in input pixels.
        aspect_ratios: Width over height, the same for every level.
        square: Height = width, as the published v1 models were trained.
    """

    levels: tuple[tuple[int, int], ...]
    scales: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[float, ...]
    square: bool

    @property
    def count(self) -> int:
        """P, the number of priors, without computing them."""
        sizes = zip(self.levels, self.scales, strict=True)
        return sum(h * w * len(scales) * len(self.aspect_ratios) for (h, w), scales in sizes)

    def problem(self, input_shape: tuple[int, int]) -> str:
        """What is wrong with them for an input of that height and width; empty if nothing is."""
        if not 1 <= len(self.levels) <= limit("levels"):
            return f"{len(self.levels)} levels; 1 to {beyond('levels')}"
        if len(self.scales) != len(self.levels):
            return f"{len(self.levels)} levels, but scales for {len(self.scales)}"
        height, width = input_shape
        if not all(1 <= rows <= height and 1 <= columns <= width for rows, columns in self.levels):
            allowed = f"1..{height}" if height == width else f"1..{height} and 1..{width}"
            return f"heights and widths of levels must be in {allowed}"
        if not (self.aspect_ratios and all(self.scales)):
            return "each level needs a scale, and all need an aspect ratio"
        if not all(map(_positive, [*self.aspect_ratios, *(size for sizes in self.scales for size in sizes)])):
            return f"scales and aspect ratios must be in {_LOW}..{_HIGH}"
        return f"{self.count:,} priors, more than {beyond('priors')}" if self.count > limit("priors") else ""


@dataclass(frozen=True)
class Metadata:
    """What an engine is and what it expects.

    Attributes:
        config: Name of the configuration it was trained with.
        class_names: One name for each class, class 0 first; no background.
        category_ids: The dataset's id of each class (may be sparse, may be 0).
        input_size: Of the network's input in pixels: S, the side of a square, or (H, W) if it is none.
        mean: Subtracted from the 0..255 values, in BGR order.
        std: Divides the difference, in BGR order.
        channel_order: Order of the channels of the engine's input.
        input_dtype: "uint8" or "float32", of the (N, H, W, 3) input.
        precision: What the file computes in: "fp32", "fp16", "int8".
        detect: "native": the graph returns detections; "runtime": it returns the raw heads.
        max_detections: K, rows kept per image.
        score_threshold: Priors whose best class scores no more than this are dropped.
        iou_threshold: A box overlapping a better one of its class by more than this is dropped.
        nms_top_k: Candidates per class that enter NMS.
        min_batch: Fewest images in one call.
        max_batch: Most images in one call.
        mask_iou: Whether masks are re-scored (YOLACT++, Sec. 6.1).
        priors: Needed with detect="runtime".
        mask_iou_net: With detect="runtime" and mask_iou: base64 of an .npz with weight0, bias0, ...
        weights_sha256: Hash of the checkpoint it was exported from.
        onnx_sha256: Hash of the ONNX file an engine was built from; empty inside an ONNX file.
        versions: Versions of the libraries that wrote it.
        created: When it was written, in ISO 8601.
        command: The command line that wrote it.
    """

    config: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    input_size: InputSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str = "BGR"
    input_dtype: str = "uint8"
    precision: str = "fp32"
    detect: str = "native"
    max_detections: int = 100
    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    nms_top_k: int = 200
    min_batch: int = 1
    max_batch: int = 1
    mask_iou: bool = False
    priors: PriorSpec | None = None
    mask_iou_net: str = ""
    weights_sha256: str = ""
    onnx_sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", plain_size(self.input_size))

    @property
    def input_shape(self) -> tuple[int, int]:
        """H and W of the network's input in pixels."""
        return height_width(self.input_size)

    def to_props(self) -> dict[str, str]:
        """The string properties of an ONNX file, one for each field: key prefixed "yolact.", value JSON.

        Raises:
            YolactError: the fields contradict each other.
        """
        self.check("metadata")
        return {PREFIX + name: json.dumps(value) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], source: str | Path) -> Metadata:
        """Read what `to_props` wrote. Unknown keys are ignored.

        Args:
            props: The file's string properties.
            source: The file, for error messages.

        Raises:
            YolactError: a field is missing, has the wrong type or contradicts another.
        """
        hints = typing.get_type_hints(cls)
        values = {}
        for name, kind in hints.items():
            text = props.get(PREFIX + name)
            if text is None:
                if name in _OPTIONAL:
                    continue
                raise YolactError(f"{source}: metadata field {PREFIX}{name} is missing{_REMEDY}")
            reason = ""
            try:
                try:
                    value = parse_json(text)
                except ValueError as error:
                    reason = f" ({error})"
                    raise
                values[name] = convert(value, kind)
            except ValueError:
                raise YolactError(
                    f"{source}: metadata field {PREFIX}{name} is {_short(text)!r}, not a {type_name(kind)}"
                    f"{reason}{_REMEDY}"
                ) from None
        metadata = cls(**values)
        metadata.check(source)
        return metadata

    def check(self, source: str | Path) -> None:
        """Raise a YolactError that names `source` and the first field which cannot be right."""
        for wrong, name, allowed in self._rules():
            if wrong:
                value = _short(repr(getattr(self, name)))
                raise YolactError(f"{source}: metadata field {PREFIX}{name} is {value}: {allowed}{_REMEDY}")

    def _rules(self) -> Iterable[tuple[bool, str, str]]:
        """For each rule: whether it is broken, the field, and what is allowed. Later ones need the first."""
        names, ids = self.class_names, self.category_ids
        yield not names, "class_names", "at least one class is needed"
        yield (
            len(names) > limit("classes"),
            "class_names",
            f"{len(names):,} classes; at most {beyond('classes')}",
        )
        yield any(len(name) > limit("name") for name in names), "class_names", f"longer than {beyond('name')}"
        yield not all(map(_writable, names)), "class_names", "a name has half a character (a lone surrogate)"
        yield len(ids) != len(names), "category_ids", f"{len(names)} ids are needed, one for each class name"
        yield len(set(ids)) != len(ids), "category_ids", "an id occurs twice"
        yield any(abs(id_) > _WHOLE for id_ in ids), "category_ids", f"ids must be in -{_WHOLE}..{_WHOLE}"
        for name, most in _SIZES.items():
            allowed = f"it must be 1 or more, and at most {beyond(most)}"
            yield not 1 <= getattr(self, name) <= limit(most), name, allowed
        yield not all(abs(value) <= _HIGH for value in self.mean), "mean", f"all must be in -{_HIGH}..{_HIGH}"
        yield not all(map(_positive, self.std)), "std", f"all must be in {_LOW}..{_HIGH}"
        yield self.channel_order != "BGR", "channel_order", "only BGR is known"
        yield self.input_dtype not in ("uint8", "float32"), "input_dtype", "uint8 or float32 are allowed"
        yield self.detect not in ("native", "runtime"), "detect", "native or runtime are allowed"
        yield not 0 <= self.score_threshold <= 1, "score_threshold", "it must be in 0..1"
        yield not 0 <= self.iou_threshold <= 1, "iou_threshold", "it must be in 0..1"
        yield self.max_batch < self.min_batch, "max_batch", "it must be at least min_batch"
        sides = self.input_shape
        allowed = f"each side must be 1 or more, and at most {beyond('input_size')}"
        yield not all(1 <= side <= limit("input_size") for side in sides), "input_size", allowed
        pixels = self.min_batch * math.prod(sides)
        yield pixels > limit("pixels"), "min_batch", f"{pixels:,} pixels; at most {beyond('pixels')}"
        in_runtime = self.detect == "runtime"
        yield in_runtime and self.priors is None, "priors", 'detect="runtime" needs them'
        if in_runtime and self.priors is not None:
            problem = self.priors.problem(sides)
            yield bool(problem), "priors", problem
        missing = in_runtime and self.mask_iou and not self.mask_iou_net
        yield missing, "mask_iou_net", 'detect="runtime" with mask re-scoring needs it'


def _positive(value: float) -> bool:
    return _LOW <= value <= _HIGH


def _writable(text: str) -> bool:
    try:
        check_text(text)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


# The range of positive numbers that have no other: wide, but without overflow in float32.
_LOW, _HIGH = 1e-6, 1_000_000
# Larger whole numbers are not exact in other programs that read JSON.
_WHOLE = 2**53
# The limit on each size.
_SIZES = {
    "max_detections": "candidates",
    "nms_top_k": "candidates",
    "min_batch": "batch",
    "max_batch": "batch",
}
_REMEDY = "; the file was not written by this yolact-export: run yolact-export --weights W --to onnx again"
