"""Launch plans: which kernels run on which buffers, as pure data."""
