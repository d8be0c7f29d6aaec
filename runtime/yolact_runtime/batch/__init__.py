"""Batches of rows, as Ray Data, Spark and Daft have them; imports none of these."""

from yolact_runtime.batch.predictor import BatchPredictor

__all__ = ["BatchPredictor"]
