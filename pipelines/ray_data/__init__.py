"""The stages of `segment` inside anyone's own Ray Data pipeline, and a results table as a Ray dataset.

What runs a whole archive into a table is segment/; Ray is started and joined by cluster/ or by the caller.
"""

from pipelines.ray_data.results import read_results
from pipelines.ray_data.stages import Scorer, Segmenter, refine, segment

__all__ = ["Scorer", "Segmenter", "read_results", "refine", "segment"]
