"""TensorRT and TensorRT-RTX: `open.py` checks and opens their files, `network.py` runs them."""
