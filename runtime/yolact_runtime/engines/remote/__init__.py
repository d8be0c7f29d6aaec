"""Engines on a Triton server: `load_engine("grpc://host:8001/yolact")`."""
