"""From a source through an engine into sinks, with every stage in threads of its own."""

from yolact_runtime.pipeline.run import PipelineSettings, Tally, run_pipeline

__all__ = ["PipelineSettings", "Tally", "run_pipeline"]
