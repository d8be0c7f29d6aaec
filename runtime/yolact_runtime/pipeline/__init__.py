"""The pipeline from a source through an engine into sinks; every stage has its own threads."""

from yolact_runtime.pipeline.run import run_pipeline
from yolact_runtime.pipeline.settings import PipelineSettings, RunStats, SourceStats

__all__ = ["PipelineSettings", "RunStats", "SourceStats", "run_pipeline"]
