"""The parameters of a request: limits and classes."""

from __future__ import annotations

from typing import Any, NamedTuple

from yolact_runtime.classes import resolve_classes
from yolact_runtime.engines.base import check_limits
from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import Metadata
from yolact_runtime.typed import first_few, shown
from yolact_runtime.untrusted import parse_json


class Parameters(NamedTuple):
    """What is asked for: as for `Engine.predict_prepared`."""

    score_threshold: float = 0.15
    top_k: int = 15
    classes: frozenset[int] | None = None


def read_parameters(text: str, metadata: Metadata) -> Parameters:
    """The parameters of a request.

    Args:
        text: A JSON object of "score_threshold" and "top_k", each a number or text, and "classes": a text
            that is a JSON list of names and category ids, or names and ids with commas between them.
        metadata: Of the model.

    Raises:
        UsageError: a parameter is unknown or outside its range.
    """
    try:
        given = parse_json(text or "{}")
    except ValueError as error:
        raise UsageError(f"the parameters are not JSON: {error}") from None
    if not isinstance(given, dict):
        raise UsageError(f"the parameters are {shown(given)}; a JSON object is needed")
    if unknown := [name for name in given if name not in Parameters._fields]:
        raise UsageError(
            f"unknown parameter {first_few(map(shown, unknown))}; {', '.join(Parameters._fields)} are known"
        )
    default = Parameters()
    threshold = _number(given.get("score_threshold", default.score_threshold))
    top_k = _whole(given.get("top_k", default.top_k))
    check_limits(threshold, top_k)
    classes = _classes(given["classes"], metadata) if "classes" in given else None
    return Parameters(float(threshold), min(top_k, metadata.max_detections), classes)


def _number(value: Any) -> Any:
    """A number from a number or text; anything else as a short text, which `check_limits` refuses."""
    if type(value) in (int, float):
        return value
    text = str(value)
    try:
        # Python's own rule takes 1_0 and digits of other scripts.
        plain = len(text) <= 40 and not set(text) - set("+-.0123456789aefinptyEFINPTY ")
        return float(text) if plain else text if len(text) <= 40 else f"{text[:37]}..."
    except ValueError:
        return text


def _whole(value: Any) -> Any:
    """A whole number from a number or text; anything else as `_number`."""
    number = _number(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number


def _classes(value: Any, metadata: Metadata) -> frozenset[int] | None:
    """The 0-based indices of the classes that a text names."""
    if not isinstance(value, str):
        raise UsageError(f"classes is {shown(value)}; a text is needed: a JSON list, or names with commas")
    names: list[Any] = [name.strip() for name in value.split(",")]
    if value.lstrip().startswith("["):
        try:
            names = parse_json(value)
        except ValueError as error:
            raise UsageError(f"classes is {shown(value)}, not a JSON list: {error}") from None
    if not all(isinstance(name, str | int) for name in names):
        raise UsageError(f"classes is {shown(value)}; a list of names and category ids is needed")
    names = list(dict.fromkeys(names))
    if len(names) > 2 * len(metadata.class_names):  # the name and the id of each
        raise UsageError(
            f"classes has {len(names)} entries; the model has {len(metadata.class_names)} classes"
        )
    return resolve_classes(names, metadata.class_names, metadata.category_ids, "classes")
