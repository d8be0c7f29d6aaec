"""The network and its parts."""

from yolact.model.yolact import Yolact, YolactOutput

__all__ = ["Yolact", "YolactOutput"]
