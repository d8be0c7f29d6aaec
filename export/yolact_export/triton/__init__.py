"""Writes models for the Triton Inference Server."""
