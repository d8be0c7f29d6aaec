"""TensorRT and TensorRT-RTX engines on pycuda: `open.py` checks and opens, `engine.py` runs."""
