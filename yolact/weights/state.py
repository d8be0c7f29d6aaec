"""State dicts as training scripts save them, and what they say about classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from yolact.config import Classes
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import is_file, read_text
from yolact_runtime.typed import first_few
from yolact_runtime.untrusted import beyond, limit

# Under which keys training scripts save the state dict together with other things.
WRAPPERS = ("state_dict", "model_state_dict", "model")
# What DataParallel, wrapping modules and torch.compile put in front of names, in any order; no layer has one
# of these names.
PREFIXES = {"module", "model", "_orig_mod"}


def plain_state(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """The state dict in the content of a weights file, without what wrappers add to it.

    Args:
        content: The state dict itself, or a dict that holds it under one of `WRAPPERS`.
        source: The file, for errors.

    Raises:
        YolactError: there is no state dict of tensors, or two names become equal.
    """
    while not is_state(content):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            raise YolactError(
                f"{source} is not a YOLACT checkpoint: expected a state dict of tensors, or a dict that holds"
                f" one as {' or '.join(map(repr, WRAPPERS))}; found"
                f" {first_few(map(str, content)) or 'nothing'}"
            )
        content = inner[0]
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = ".".join(part for part in key.split(".") if part not in PREFIXES)
        if name in state:
            raise YolactError(f"{source} holds {name} twice, the second time as {key}")
        state[name] = value
    return _without_extra_keys(state)


def is_state(value: object) -> bool:
    """Whether a value is a state dict."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _without_extra_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the duplicate and unused keys of early published checkpoints."""
    kept = {}
    for key, value in state.items():
        if key.startswith("backbone.layer") and not key.startswith("backbone.layers"):
            continue
        if re.match(r"fpn\.downsample_layers\.([2-9]|\d\d)", key):
            continue
        kept[key] = value
    return kept


def count_classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a state dict, without background; None if it is not YOLACT's."""
    layer = state.get("semantic_seg_conv.weight")
    return None if layer is None or layer.ndim == 0 else layer.shape[0]


def parse_classes(text: str) -> Classes:
    """Class names, with ids from 1, as the original numbers the classes of a dataset.

    Args:
        text: Names separated by commas, or a text file with a name in each line.

    Raises:
        YolactError: the file cannot be read, or has no names.
        UsageError: a name is empty or occurs twice.
    """
    file = Path(text)
    if is_file(file) or (file.suffix and "," not in text):
        names = [line.strip() for line in read_text(file, "--class-names").splitlines() if line.strip()]
        if not names:
            raise YolactError(f"--class-names {text}: the file has no names; expected one in each line")
    else:
        names = [name.strip() for name in text.split(",")]
    if len(names) > limit("classes"):
        raise YolactError(
            f"--class-names {text[:200]} has {len(names):,} names, more than {beyond('classes')}"
        )
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if not all(names) or twice:
        problem = f"{twice[0]!r} occurs twice" if twice and twice[0] else "a name is empty"
        raise UsageError(
            f"--class-names {text}: {problem}; expected NAME,NAME,... or a file with a name in each line"
        )
    return Classes(tuple(names), tuple(range(1, len(names) + 1)))
