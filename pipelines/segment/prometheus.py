"""What a run tells Prometheus, through the endpoint of the Ray node that its driver is on. Names arrive with `ray_` before them.

The driver alone reports, twice a second at most, so that an image costs nothing more. Labels are the table's place and the model;
no other text of a run leaves this way.
"""

from __future__ import annotations

import string
from urllib.parse import quote

from ray.util.metrics import Counter, Gauge

from pipelines.table.commit import Committed

LABELS = ("results", "model")
PRINTED = string.punctuation + " "  # what stays as it is, besides letters and digits


class Metrics:
    """One run's counters. A counter goes on where an earlier run of the same driver left it; rates do not mind."""

    def __init__(self, results: str, model: str) -> None:
        self.images = Counter("deeplab_images", "Images that have their row, errors among them.", LABELS)
        self.errors = Counter("deeplab_errors", "Images whose row is an error.", LABELS)
        self.commits = Counter("deeplab_commits", "Commits to the results table.", LABELS)
        self.pending = Gauge("deeplab_pending_images", "Planned images of the run that have no row yet.", LABELS)
        self.working = Gauge("deeplab_working_images", "Images that are finished and not yet committed.", LABELS)
        self.seconds = Counter("deeplab_stage_seconds", "Seconds by stage, summed over processes.", (*LABELS, "stage"))
        # Ray sends labels as ASCII. An S3 key or a model's name may hold any letter; what else there is of it is percent-encoded.
        self.labels = {"results": quote(results, PRINTED), "model": quote(model, PRINTED)}

    def progress(self, pending: int, working: int) -> None:
        """Images without a row, and those of them that are finished."""
        self.pending.set(float(pending), self.labels)
        self.working.set(float(working), self.labels)

    def committed(self, before: Committed, now: Committed) -> None:
        """What commits brought since `before`."""
        if now is before:
            return
        for counter, value in ((self.images, now.images - before.images), (self.errors, now.errors - before.errors)):
            if value:
                counter.inc(float(value), self.labels)
        self.commits.inc(float(now.commits - before.commits), self.labels)
        for stage, total in now.seconds.items():
            if (spent := total - before.seconds.get(stage, 0.0)) > 0:
                self.seconds.inc(spent, {**self.labels, "stage": stage})
