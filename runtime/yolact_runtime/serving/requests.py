"""What a request to a server asks for, checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from yolact_runtime.engines.base import Engine, check_limits
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.serving.tensors import ARRAY, IMAGE, OUTPUTS, SIZE
from yolact_runtime.sources.headers import size_fault
from yolact_runtime.sources.images import decode_image
from yolact_runtime.typed import shown
from yolact_runtime.untrusted import beyond, limit, parse_json

PARAMETERS = ("score_threshold", "top_k", "classes")
_NAME = "of the request"  # what messages call the image


@dataclass(frozen=True)
class Limits:
    """What a request wants to find: arguments of `Engine.predict_prepared`."""

    score_threshold: float = 0.15
    top_k: int = 15
    classes: frozenset[int] | None = None


@dataclass(frozen=True)
class Request:
    """A request for one image.

    Attributes:
        inputs: Its tensors by name, with the batch.
        limits: From its parameters.
        outputs: Names of the outputs that it wants.
    """

    inputs: Mapping[str, np.ndarray]
    limits: Limits = field(default_factory=Limits)
    outputs: Collection[str] = tuple(spec.name for spec in OUTPUTS)


def read_limits(text: str, engine: Engine) -> Limits:
    """The limits of a request's parameters, a JSON object; numbers may be text.

    Raises:
        UsageError: an unknown parameter, or a value that is not allowed.
    """
    try:
        values = parse_json(text or "{}")
    except ValueError as error:
        raise UsageError(f"the parameters are no JSON: {error}") from error
    if unknown := [name for name in values if name not in PARAMETERS]:
        raise UsageError(f"unknown parameter {shown(unknown[0])}; known are {', '.join(PARAMETERS)}")
    threshold = _number(values.get("score_threshold", Limits.score_threshold), float, "score_threshold")
    top_k = _number(values.get("top_k", Limits.top_k), int, "top_k")
    check_limits(threshold, top_k)
    return Limits(threshold, top_k, engine.class_indices(_class_list(values.get("classes"))))


def _number(value: Any, kind: type, name: str) -> Any:
    if type(value) in (int, kind):
        return kind(value)
    try:
        if isinstance(value, str) and len(value) < 100:
            return kind(value)
    except ValueError:
        pass
    raise UsageError(f"{name} is {shown(value)}; it must be a number{', a whole one' * (kind is int)}")


def _class_list(value: Any) -> Iterable[str | int] | None:
    """Names and ids from a JSON list in text, or from names joined by commas."""
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise UsageError(f"classes is {shown(value)}; names joined by commas, or a JSON list, are needed")
    if not value.lstrip().startswith("["):
        return [name.strip() for name in value.split(",")]
    try:
        names = parse_json(value)
    except ValueError as error:
        raise UsageError(f"classes is no JSON list: {error}") from error
    if not all(type(name) in (str, int) for name in names):
        raise UsageError(f"classes is {shown(names)}; names and category ids are allowed")
    return list(names)


def read_input(inputs: Mapping[str, np.ndarray], engine: Engine) -> tuple[np.ndarray, tuple[int, int]]:
    """The image of a request as the engine takes it, and its height and width in pixels.

    Raises:
        YolactError: it has none or several, is damaged, or larger than allowed.
    """
    kinds = [name for name in (IMAGE.name, ARRAY.name, "prepared") if name in inputs]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none"
        raise UsageError(f"the request has {found} of image, array and prepared; it needs one of them")
    for name, value in inputs.items():
        if len(value) != 1:
            raise UsageError(
                f"{name} has {len(value)} images; a request is for one; the server forms the batches"
            )
    value = inputs[kinds[0]][0]
    if kinds[0] == "prepared":
        return _prepared(value, inputs.get(SIZE.name), engine)
    image = _decoded(value) if kinds[0] == IMAGE.name else _pixels(value)
    return engine.prepare(image), (image.shape[0], image.shape[1])


def _decoded(value: np.ndarray) -> np.ndarray:
    (data,) = value.tolist()
    if not isinstance(data, bytes):
        raise UsageError(f"image is a {type(data).__name__}; the bytes of an image file are needed")
    if len(data) > limit("image_bytes"):
        raise YolactError(f"image {_NAME} has more bytes than {beyond('image_bytes')}")
    return decode_image(_NAME, data)


def _pixels(value: np.ndarray) -> np.ndarray:
    if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or 0 in value.shape:
        raise UsageError(f"array is {value.shape} {value.dtype}; (H, W, 3) uint8 BGR is needed")
    if fault := size_fault(value.shape[1::-1], value.nbytes):
        raise YolactError(f"array {fault}")
    return value


def _prepared(
    value: np.ndarray, size: np.ndarray | None, engine: Engine
) -> tuple[np.ndarray, tuple[int, int]]:
    meta = engine.metadata
    wanted = (*meta.input_shape, 3)
    if value.shape != wanted or value.dtype != meta.input_dtype:
        raise UsageError(f"prepared is {value.shape} {value.dtype}; {wanted} {meta.input_dtype} is needed")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise UsageError("prepared has values that are not finite")
    if size is None or size.size != 2:
        raise UsageError("prepared needs size: height and width of the image in pixels")
    height, width = (int(side) for side in size.reshape(-1))
    if not all(1 <= side <= limit("side") for side in (height, width)):
        raise UsageError(f"size is {height} x {width}; each must be 1 or more, and at most {beyond('side')}")
    if height * width > limit("pixels"):
        raise UsageError(f"size is {height} x {width} pixels, more than {beyond('pixels')}")
    return value, (height, width)
