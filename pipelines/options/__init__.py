"""What a person sets, once, in small models that are put together for each command.

What is done with it is the other rooms'.
"""

from pipelines.options.inference import BenchmarkOptions, EvaluateOptions, SegmentOptions, TuneOptions
from pipelines.options.training import RegisteredTraining, TrainOptions

__all__ = ["BenchmarkOptions", "EvaluateOptions", "RegisteredTraining", "SegmentOptions", "TrainOptions", "TuneOptions"]
