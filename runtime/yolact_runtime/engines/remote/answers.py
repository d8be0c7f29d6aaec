"""What a server says about itself and what it finds, checked as a file of strangers is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from yolact_runtime.engines.backends import PRECISIONS, UNKNOWN
from yolact_runtime.engines.remote.address import Address
from yolact_runtime.engines.remote.client import ModelConfig
from yolact_runtime.engines.remote.tensors import Tensor, numbers, texts
from yolact_runtime.errors import UsageError, YolactError, escape_controls
from yolact_runtime.metadata import PREFIX, Metadata
from yolact_runtime.results import Result
from yolact_runtime.rle import region_of
from yolact_runtime.serving.answers import API
from yolact_runtime.untrusted import beyond, limit, parse_json

# The version of the inputs, outputs and parameters of the model.
# Outputs that a result is built from.
OUTPUTS = ("size", "relative_boxes", "scores", "mask_scores", "category_ids", "rles", "engine")


class Request(NamedTuple):
    """What is asked of a server: see `Engine.predict_prepared`; `size` is None if the server decodes."""

    score_threshold: float
    top_k: int
    classes: frozenset[int] | None = None
    size: tuple[int, int] | None = None


class ServerEngine(NamedTuple):
    """What computes there: name and precision of an engine, the toolkit's version, the model's digest.

    An older server names no model.
    """

    engine: str
    precision: str
    version: str
    model: str = ""


def read_metadata(config: ModelConfig, address: Address) -> Metadata:
    """The metadata of a model from its configuration.

    Detection happens on the server, so it has no priors and is never of raw heads.

    Raises:
        UsageError: it is another kind of model, or of another version.
        YolactError: a value cannot be right.
    """
    parameters = config.parameters
    api = parameters.get("yolact_api", "")
    if "yolact" not in parameters:
        raise UsageError(f"{address} is not a model that yolact-export --to triton wrote")
    if not api or not {"rles", "engine"} <= config.outputs:
        raise UsageError(
            f"{address} is the plain network, an ensemble or a step of it, which an engine cannot use; name"
            " the model beside it that takes resized images and answers with instances: the name without"
            " _raw or _ensemble, or run yolact-export --to triton again"
        )
    if api != API:
        raise UsageError(
            f"{address} has version {escape_controls(api[:20])} of the inputs and outputs, and this toolkit"
            f" has {API}; use the same version of the toolkit on both sides"
        )
    try:
        content = parse_json(parameters["yolact"])
    except ValueError as error:
        raise YolactError(f"{address}: its parameter yolact is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise YolactError(f"{address}: its parameter yolact is no JSON object")
    content |= {"detect": "native", "priors": None, "mask_iou_net": ""}
    return Metadata.from_props(
        {PREFIX + name: json.dumps(value) for name, value in content.items()}, str(address)
    )


def same_model(one: Metadata, other: Metadata) -> bool:
    """Whether two models find the same; when and with what they were written does not matter."""
    plain = {"versions": {}, "created": "", "command": "", "min_batch": 1, "max_batch": 1}
    return dataclasses.replace(one, **plain) == dataclasses.replace(other, **plain)  # type: ignore[arg-type]


def read_server_engine(outputs: Mapping[str, Tensor]) -> ServerEngine:
    """What the output `engine` says.

    Raises:
        YolactError: it is missing or says something else.
    """
    text = texts(_output(outputs, "engine"), "engine", 1)[0]
    try:
        content = parse_json(text)
    except ValueError:
        content = None
    named = content if isinstance(content, dict) else {}
    values = [named.get(name, ServerEngine._field_defaults.get(name)) for name in ServerEngine._fields]
    if not all(isinstance(value, str) and len(value) <= limit("name") for value in values):
        raise YolactError("the server's engine is no JSON object of engine, precision and version")
    found = ServerEngine(*(escape_controls(str(value))[:200] for value in values))
    if found.precision not in (*PRECISIONS, UNKNOWN):
        raise YolactError(
            f"the server computes in {found.precision[:40]!r}; {', '.join(PRECISIONS)} are known: use the"
            " same version of the toolkit on both sides"
        )
    return found


def read_result(outputs: Mapping[str, Tensor], meta: Metadata, request: Request) -> Result:
    """The result of one image.

    Raises:
        YolactError: an output is missing, damaged, too large, or is not what was asked for.
    """
    height, width = numbers(_output(outputs, "size"), "size", "INT32", (2,)).tolist()
    _check_size(height, width, request.size)
    scores = _output(outputs, "scores")
    n = scores.shape[1] if len(scores.shape) == 2 else -1
    if not 0 <= n <= min(request.top_k, meta.max_detections):
        most = min(request.top_k, meta.max_detections)
        raise YolactError(f"the server's scores are {list(scores.shape[:8])}; [1, 0..{most}] are allowed")
    values = {name: numbers(_output(outputs, name), name, "FP32", (n,)) for name in ("scores", "mask_scores")}
    values["relative_boxes"] = numbers(_output(outputs, "relative_boxes"), "relative_boxes", "FP32", (n, 4))
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise YolactError(f"the server's {name} are not finite")
    order = values["scores"]
    if n and not (order[-1] > request.score_threshold and order[0] <= 1 and (np.diff(order) <= 0).all()):
        raise YolactError(
            f"the server's scores are not within {request.score_threshold:g} and 1, the best first"
        )
    ids = numbers(_output(outputs, "category_ids"), "category_ids", "INT64", (n,))
    rles = texts(_output(outputs, "rles"), "rles", n)
    if (total := sum(map(len, rles))) > limit("rle"):
        raise YolactError(f"the server's RLEs have {total:,} characters, more than {beyond('rle')}")
    try:
        contours = [region_of({"size": (height, width), "counts": counts}) for counts in rles]
    except ValueError as error:
        raise YolactError(f"the server's rles: {error}") from None
    return Result(
        height=height,
        width=width,
        classes=_classes(ids, meta, request.classes),
        coefficients=np.zeros((n, 0), np.float32),
        prototypes=np.zeros((0, 0, 0), np.float32),
        class_names=meta.class_names,
        class_ids=meta.category_ids,
        contours=contours,
        **values,
    )


def _output(outputs: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in outputs:
        raise YolactError(
            f"the server's answer lacks {name}; use the same version of the toolkit on both sides"
        )
    return outputs[name]


def _check_size(height: int, width: int, expected: tuple[int, int] | None) -> None:
    """Raise a YolactError unless an answer is for an image of a size that was sent, or is allowed."""
    if expected is not None and (height, width) != expected:
        asked = f"{expected[1]} x {expected[0]}"
        raise YolactError(f"the server's answer is for an image of {width} x {height}, not {asked}")
    if min(height, width) < 1 or max(height, width) > limit("side") or height * width > limit("pixels"):
        raise YolactError(f"the server's answer is for an image of {width} x {height}, beyond the limits")


def _classes(ids: np.ndarray, meta: Metadata, wanted: frozenset[int] | None) -> np.ndarray:
    """(n,) int64: the 0-based class of each category id, which must be one that was asked for."""
    known: dict[int, Any] = {id_: index for index, id_ in enumerate(meta.category_ids)}
    found = [known.get(id_, -1) for id_ in ids.tolist()]
    for id_, index in zip(ids.tolist(), found, strict=True):
        if index < 0:
            raise YolactError(
                f"the server found category id {id_}, which its metadata does not name; it may have loaded"
                " another model: start again"
            )
        if wanted is not None and index not in wanted:
            raise YolactError(f"the server found {meta.class_names[index]}, which was not asked for")
    return np.array(found, np.int64)
