"""Deployments of all flows, and what `deeplab setup-prefect` creates on a Prefect server."""

import asyncio
from collections.abc import Iterator, Mapping
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Schedule
from prefect.types.entrypoint import EntrypointType

from flows.evaluate import evaluate_model
from flows.refresh import refresh
from flows.segment import segment_archive
from flows.serving.settings import HOURLY_PRICE, limit_name
from flows.train import train_model
from flows.watching.progress import slug
from pipelines.options import SegmentOptions
from pipelines.storage import filesystems

WORK_POOL = "deeplab"
ZOMBIES = "deeplab: a run without a sign of life is Crashed"
SCHEDULE = "served"
TAGS = ["deeplab"]
# Three heartbeats of 30 s: one that is late under load does not crash a run.
SILENCE = timedelta(seconds=95)
# One run at a time; others queue instead of being refused.
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy="ENQUEUE")


def deployments(
    segmentation: SegmentOptions | None = None,
    name: str | None = None,
    schedule: Mapping[str, str | timedelta] | None = None,
    active: bool = False,
) -> list[RunnerDeployment]:
    """A deployment of every flow, named "served"; with `segmentation` also one of that archive into that table.

    That one runs once at a time; further runs queue. `schedule`: cron, interval (timedelta) or rrule, and timezone. The schedule
    starts paused unless `active`; one that was switched on in the UI stays on when it is served again.
    """
    served = [
        flow.to_deployment("served", tags=TAGS, entrypoint_type=EntrypointType.MODULE_PATH)
        for flow in (segment_archive, train_model, evaluate_model, refresh)
    ]
    if segmentation is not None:
        name = name or slug(filesystems.canonical(segmentation.results))
        active = active or _is_active(f"{segment_archive.name}/{name}")
        served.append(
            segment_archive.to_deployment(
                name,
                tags=[*TAGS, "scheduled"] if schedule else TAGS,
                parameters={"options": segmentation.model_dump(mode="json", exclude_defaults=True)},
                schedules=[Schedule(**schedule, active=active, slug=SCHEDULE)] if schedule else None,
                concurrency_limit=ONE_AT_A_TIME,
                description=f"{segmentation.archive} into {segmentation.results}",
                entrypoint_type=EntrypointType.MODULE_PATH,
            )
        )
    return served


def next_run(deployment: RunnerDeployment) -> str | None:
    """When a deployment runs next, as a line for a person; None if it has no schedule."""
    if not deployment.schedules:
        return None
    from prefect.server.schemas import schedules

    (planned,) = deployment.schedules
    kinds = schedules.CronSchedule, schedules.IntervalSchedule, schedules.RRuleSchedule
    (kind,) = (kind for kind in kinds if kind.__name__ == type(planned.schedule).__name__)
    dates = asyncio.run(kind(**planned.schedule.model_dump(exclude_none=True)).get_dates(1))
    when = f"{dates[0]:%Y-%m-%d %H:%M:%S} {dates[0].tzname()}" if dates else "never"
    off = "the schedule is off until --active, or until it is switched on in the UI; then the "
    return f"{deployment.flow_name}/{deployment.name}: {'' if planned.active else off}next run: {when}"


def _is_active(deployment: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            schedules = client.read_deployment_by_name(deployment).schedules
        except ObjectNotFound:
            return False
    return any(schedule.active for schedule in schedules if schedule.slug == SCHEDULE)


def zombies() -> AutomationCore:
    """Set runs of our flows to Crashed when heartbeats stop and no final state was reported: their machine died."""
    beat = "prefect.flow-run.heartbeat"
    ends = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    flow_names = [flow.name for flow in (segment_archive, train_model, evaluate_model, refresh)]
    return AutomationCore(
        name=ZOMBIES,
        description=f"No heartbeat for {SILENCE.seconds} s: runner and run are both gone. Created by `deeplab setup-prefect`.",
        trigger=EventTrigger(
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": flow_names}),
            posture=Posture.Proactive,
            after={beat},
            expect={beat, *ends},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=SILENCE,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: the machine died, or the run and its runner")],
    )


def setup(results: list[str]) -> Iterator[str]:
    """Create what is missing on the server and update the rest. Yields a line on each; can be repeated."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(WORK_POOL)
            yield f"work pool {WORK_POOL}: there"
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process", description="Runs of DeepLab flows"))
            yield f"work pool {WORK_POOL}: made"
        from prefect.variables import Variable

        if Variable.get(HOURLY_PRICE, default=None) is None:
            Variable.set(HOURLY_PRICE, 0)
            yield f"variable {HOURLY_PRICE}: made, 0 (no cost line)"
        else:
            yield f"variable {HOURLY_PRICE}: there"
        for place in map(filesystems.canonical, results):
            client.upsert_global_concurrency_limit_by_name(limit_name(place), 1)
            yield f"limit {limit_name(place)}: one run at a time on {place}"
        automations = client.read_automations_by_name(ZOMBIES)
        if not automations:
            client.create_automation(zombies())
            yield "automation for dead runs: made"
        elif _plain(automations[0]) != _plain(zombies()):
            client.update_automation(automations[0].id, zombies())
            yield "automation for dead runs: brought up to date"
        else:
            # An update would reset the server's timers for the runs that it watches.
            yield "automation for dead runs: there"


def _plain(automation: AutomationCore) -> tuple[object, ...]:
    """What an automation does, without the ids that the server assigns."""
    trigger = automation.trigger.model_dump(exclude={"id"})
    return automation.enabled, trigger, [action.model_dump() for action in automation.actions]
