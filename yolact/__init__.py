"""YOLACT real-time instance segmentation, from training to a deployed engine.

>>> import yolact
>>> model = yolact.load_model("yolact_base_54_800000.pth")  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from yolact.config import Config
from yolact.registry import configs, get_config

if TYPE_CHECKING:
    from yolact.model import Yolact
    from yolact.weights.load import load_model

__all__ = ["Config", "Yolact", "configs", "get_config", "load_model"]


def __getattr__(name: str) -> Any:
    """Import `load_model` and `Yolact` on first use: PyTorch takes seconds, and `Config` does not need it."""
    if name == "load_model":
        from yolact.weights.load import load_model

        return load_model
    if name == "Yolact":
        from yolact.model import Yolact

        return Yolact
    raise AttributeError(f"module 'yolact' has no attribute {name!r}")
