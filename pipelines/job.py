"""The program of a Ray job: `python -m pipelines.job segment|train OPTIONS`, with the options as JSON.

It does what `deeplab segment` and `deeplab train` do, on the cluster whose job it is, and tells of it in lines of JSON:
{"deeplab": "progress", ...} now and then, and {"deeplab": "result"} or {"deeplab": "error"} last.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
import traceback
from typing import Any

from deeplab.errors import UserError, described
from deeplab.training.loop import TrainingProgress as Steps
from pipelines.cluster.ray_jobs import EVENT, UNFORESEEN
from pipelines.segment.run import SegmentProgress as Images
from pipelines.segment.run import TooManyErrors
from pipelines.storage import filesystems

EVERY_SECONDS = 2.0


class Teller:
    """Writes events to stdout: all that are `final`, the others at most every EVERY_SECONDS."""

    def __init__(self) -> None:
        self.told, self.phase = 0.0, ""

    def __call__(self, kind: str, final: bool = False, **values: Any) -> None:
        now = time.monotonic()
        if final or now - self.told >= EVERY_SECONDS:
            self.told = now
            print(json.dumps({EVENT: kind, **values}), flush=True)

    def images(self, progress: Images) -> None:
        changed, self.phase = progress.phase != self.phase, progress.phase
        self("progress", changed or progress.phase == "commit", **dataclasses.asdict(progress))

    def steps(self, progress: Steps) -> None:
        told = {"step": progress.step, "steps": progress.steps, "loss": progress.loss, "learning_rate": progress.learning_rate}
        self("progress", progress.validation is not None, validation=progress.validation, **told)


def main(kind: str, text: str) -> int:
    """The exit code: 0, or 1 with the reason told."""
    # A job that is stopped takes its Ray workers down in order; what was committed stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tell = Teller()
    given = {**json.loads(text), "address": "auto"}
    try:
        if kind == "segment":
            from pipelines.options import SegmentOptions
            from pipelines.segment.run import segment

            result = dataclasses.asdict(segment(SegmentOptions(**given), tell.images))
        else:
            from pipelines.options import RegisteredTraining
            from pipelines.train import flow_steps

            result = flow_steps.train(RegisteredTraining(**given), tell.steps)
    except TooManyErrors as error:
        tell("result", final=True, result=dataclasses.asdict(error.summary))  # whoever asked counts them again
        return 0
    except UserError as error:
        tell("error", final=True, error=type(error).__name__, message=str(error), passing=filesystems.passes(error))
        return 1
    except Exception as error:  # the watcher gets one line; the whole text stays in the job's log
        tell("error", final=True, error=UNFORESEEN, message=described(error), traceback=traceback.format_exc())
        return 1
    tell("result", final=True, result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
