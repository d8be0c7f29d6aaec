"""Graphs in half precision and in 8-bit integers: made, measured against float32, and inspected."""
