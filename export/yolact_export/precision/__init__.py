"""Graphs in fp16 and int8: converted, calibrated, and compared with float32."""
