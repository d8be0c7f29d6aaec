"""What `tests/gpu` and `yolact-doctor` check on a GPU: kernels, engines, memory and speed."""
