"""TensorRT and TensorRT-RTX engines from ONNX files; needs neither PyTorch nor, with RTX, a GPU."""
