"""The network, from images to raw outputs and detections."""

from yolact.model.yolact import Yolact, YolactOutput

__all__ = ["Yolact", "YolactOutput"]
