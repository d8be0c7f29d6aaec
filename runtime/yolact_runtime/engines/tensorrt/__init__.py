"""TensorRT and TensorRT-RTX engines on pycuda: `open.py` checks and opens, `engine.py` runs."""

from yolact_runtime.engines.tensorrt.open import check_machine, open_engine

__all__ = ["check_machine", "open_engine"]
