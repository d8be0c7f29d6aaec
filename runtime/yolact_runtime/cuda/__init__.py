"""CUDA kernels for what follows the network, and the plans that say how to launch them.

The `.cu` sources compile with NVRTC (C++17, compute capability 5.0 and up, no host headers). A module beside
each source turns shapes and settings into a `plan.Plan`: pure data, run by whoever has a device.
"""
