"""A run's metrics for Prometheus, at the endpoint of the driver's Ray node, which prefixes their names with `ray_`.

Only the driver reports, at most twice a second, so images cost nothing. The labels, the table's URI and the model, are the only
text of a run that is published.
"""

from __future__ import annotations

import string
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

from pipelines.table.commit import Committed

LABELS = ("results", "model")
UNQUOTED = string.punctuation + " "  # besides letters and digits


class Metrics:
    """One run's counters. A later run of the same driver continues them, which does not change rates."""

    def __init__(self, results: str, model: str) -> None:
        self.images = Counter("deeplab_images", "Images that have their row, errors among them.", LABELS)
        self.errors = Counter("deeplab_errors", "Images whose row is an error.", LABELS)
        self.commits = Counter("deeplab_commits", "Commits to the results table.", LABELS)
        self.pending = Gauge("deeplab_pending_images", "Planned images of the run that have no row yet.", LABELS)
        self.working = Gauge("deeplab_working_images", "Images that are finished and not yet committed.", LABELS)
        self.seconds = Counter("deeplab_stage_seconds", "Seconds by stage, summed over processes.", (*LABELS, "stage"))
        # Ray sends labels as ASCII, but an S3 key or a model's name may hold any character: others are percent-encoded.
        self.labels = {"results": quote(results, UNQUOTED), "model": quote(model, UNQUOTED)}

    def progress(self, pending: int, working: int) -> None:
        """Set the number of images without a row, and how many of these are finished."""
        self.pending.set(float(pending), self.labels)
        self.working.set(float(working), self.labels)

    def committed(self, before: Committed, now: Committed) -> None:
        """Count what commits added since `before`."""
        if now is before:
            return
        for counter, value in ((self.images, now.images - before.images), (self.errors, now.errors - before.errors)):
            if value:
                counter.inc(float(value), self.labels)
        self.commits.inc(float(now.commits - before.commits), self.labels)
        for stage, total in now.seconds.items():
            if (spent := total - before.seconds.get(stage, 0.0)) > 0:
                self.seconds.inc(spent, {**self.labels, "stage": stage})
