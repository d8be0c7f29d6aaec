"""Model repositories of the Triton Inference Server."""

from yolact_export.triton.options import TritonOptions
from yolact_export.triton.repository import write_repository

__all__ = ["TritonOptions", "write_repository"]
