"""What a server runs: requests in, instances out; `triton.py` is the only module that knows a server."""
