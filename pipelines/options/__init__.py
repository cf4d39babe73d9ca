"""The options of all commands, each defined once, in small models that commands combine.

The other rooms use them.
"""

from pipelines.options.inference import BenchmarkOptions, EvaluateOptions, QuantizeOptions, SegmentOptions, TuneOptions
from pipelines.options.training import RegisteredTraining, TrainOptions

__all__ = [
    "BenchmarkOptions",
    "EvaluateOptions",
    "QuantizeOptions",
    "RegisteredTraining",
    "SegmentOptions",
    "TrainOptions",
    "TuneOptions",
]
