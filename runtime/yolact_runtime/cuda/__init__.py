"""The GPU: CUDA kernels, the plans that describe their launches, and the device that runs them.

The sources in `kernels` compile with NVRTC (C++17, compute capability 5.0 and later, no host headers). For
each source, `plans` has a module that turns shapes and settings into a `Plan`, which is pure data. `device`,
`launch` and `timing` run plans through pycuda; `graphs` and `gpu` use cuda-bindings where pycuda cannot help.
"""
