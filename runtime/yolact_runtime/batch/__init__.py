"""Batches of rows, as Ray Data, Spark and Daft have them; imports none of these."""

from yolact_runtime.batch.predictor import BatchPredictor
from yolact_runtime.batch.rows import arrow_schema, to_arrow

__all__ = ["BatchPredictor", "arrow_schema", "to_arrow"]
