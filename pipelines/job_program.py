"""The program of a Ray job: `python -m pipelines.job_program segment|train OPTIONS`, with the options as JSON.

It does the same as `deeplab segment` and `deeplab train`, on the cluster whose job it is, and reports in lines of JSON:
{"deeplab": "progress", ...} now and then, and {"deeplab": "result"} or {"deeplab": "error"} last.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
import time
import traceback

from deeplab.errors import UserError, described
from deeplab.training.loop import TrainingProgress
from pipelines.cluster.ray_jobs import EVENT, UNFORESEEN, ErrorEvent
from pipelines.segment.run import SegmentProgress, TooManyErrors
from pipelines.storage import filesystems

EVERY_SECONDS = 2.0


class EventWriter:
    """Writes events to stdout: all `final` ones, and others at most every EVERY_SECONDS."""

    def __init__(self) -> None:
        self.last_written, self.phase = 0.0, ""

    def write(self, kind: str, final: bool = False, **values: object) -> None:
        now = time.monotonic()
        if final or now - self.last_written >= EVERY_SECONDS:
            self.last_written = now
            print(json.dumps({EVENT: kind, **values}), flush=True)

    def error(self, event: ErrorEvent, **values: object) -> None:
        self.write("error", final=True, **event, **values)

    def images(self, progress: SegmentProgress) -> None:
        changed, self.phase = progress.phase != self.phase, progress.phase
        self.write("progress", changed or progress.phase == "commit", **dataclasses.asdict(progress))

    def steps(self, progress: TrainingProgress) -> None:
        self.write("progress", progress.validation is not None, **dataclasses.asdict(progress))


def main(kind: str, text: str) -> int:
    """Do the work; returns the exit code: 0, or 1 after an error event."""
    # A job that is stopped shuts down its Ray workers in order; committed rows are kept.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    events = EventWriter()
    options = {**json.loads(text), "address": "auto"}
    try:
        if kind == "segment":
            from pipelines.options import SegmentOptions
            from pipelines.segment.run import segment

            result = dataclasses.asdict(segment(SegmentOptions(**options), events.images))
        else:
            from pipelines.options import RegisteredTraining
            from pipelines.train import flow_steps

            result = flow_steps.train(RegisteredTraining(**options), events.steps)
    except TooManyErrors as error:
        events.write("result", final=True, result=dataclasses.asdict(error.summary))  # `check_rows` raises it again there
        return 0
    except UserError as error:
        events.error(ErrorEvent(error=type(error).__name__, message=str(error), passing=filesystems.passes(error)))
        return 1
    except Exception as error:  # the watcher gets one line; the traceback stays in the job's log
        event = ErrorEvent(error=UNFORESEEN, message=described(error), passing=True)
        events.error(event, traceback=traceback.format_exc())
        return 1
    events.write("result", final=True, result=result)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
