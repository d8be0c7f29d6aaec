"""The pipeline from a source through an engine into sinks; every stage has its own threads."""

from yolact_runtime.pipeline.run import PipelineSettings, RunStats, run_pipeline

__all__ = ["PipelineSettings", "RunStats", "run_pipeline"]
