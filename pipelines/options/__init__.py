"""What a person sets. An option is defined here and nowhere else: the command line, the forms of the flows, the payload of a job
and what the workers get are made from it. Bounds are part of it, so that each of them refuses the same, before any work."""

from pipelines.options.inference import BenchmarkOptions, EvaluateOptions, SegmentOptions, TuneOptions
from pipelines.options.training import RegisteredTraining, TrainOptions

__all__ = ["BenchmarkOptions", "EvaluateOptions", "RegisteredTraining", "SegmentOptions", "TrainOptions", "TuneOptions"]
