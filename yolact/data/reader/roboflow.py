"""What is particular to COCO files that Roboflow exports."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def without_root(
    path: Path, categories: Sequence[dict[str, Any]], annotations: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The categories without Roboflow's root, which stands for all classes and has no instances.

    It has id 0 and the supercategory `none`; the others have its name as supercategory, or at least none has
    `none`.

    Args:
        path: The annotation file, for the log.
        categories, annotations: Its entries.
    """
    root = next((c for c in categories if c.get("id") == 0 and c.get("supercategory") == "none"), None)
    others = [c.get("supercategory") for c in categories if c is not root]
    if root is None or not others or (root.get("name") not in others and "none" in others):
        return list(categories)
    if any(annotation.get("category_id") == 0 for annotation in annotations):
        return list(categories)
    _log_root(path, str(root.get("name")))
    return [category for category in categories if category is not root]


@lru_cache(maxsize=16)
def _log_root(path: Path, name: str) -> None:
    """Log the dropped category, once for each file."""
    log.info("%s: %r is Roboflow's root category, which has no instances; it is no class", path, name)
