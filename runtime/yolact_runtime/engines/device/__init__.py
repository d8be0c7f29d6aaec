"""The chain of kernels around a network on the GPU, whoever runs the network: `engine.py` is the engine."""
