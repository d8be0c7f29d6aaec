"""Builds TensorRT and TensorRT-RTX engines from ONNX files, without PyTorch and, with RTX, without a GPU."""
