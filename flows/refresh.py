"""`refresh`: train (if asked) or take the registered model, then segment new and changed images."""

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from deeplab.errors import counted
from flows.options import ReportOptions
from flows.segment import segment_archive
from flows.serving.cleanup import leave_nothing_behind
from flows.train import train_model
from pipelines.options import RegisteredTraining, SegmentOptions


@flow(
    name="refresh",
    flow_run_name="refresh {segment.title}",
    description="Train (if asked), then segment new and changed images; the model is usually REGISTRY@ALIAS.",
    on_cancellation=[leave_nothing_behind],
    on_crashed=[leave_nothing_behind],
)
def refresh(
    segment: SegmentOptions, train: RegisteredTraining | None = None, report: ReportOptions = ReportOptions()
) -> State[dict[str, Any]]:
    """The alias is read after the training, so that a model that was just promoted segments the images."""
    trained = train_model(train) if train is not None else None
    summary = segment_archive(segment, report)
    outcome = f"{summary['model']}: {counted(summary['images'], 'image')} done, {summary['errors']} of them errors"
    return Completed(message=outcome, data={"trained": trained, "segmented": summary})
