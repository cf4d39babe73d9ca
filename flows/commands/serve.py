"""`deeplab serve` and `deeplab setup-prefect`: the flows on a Prefect server."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import typer

from deeplab.errors import UserError
from flows.commands.parameters import Settings, options_of, parse_settings
from flows.console.terminal import stdout
from pipelines.options import SegmentOptions
from pipelines.options.inference import DEFAULT_MODEL

ANSWER_SECONDS = 10.0
CRON = "minute, hour, day of the month, month and day of the week are accepted: '0 3 * * *' is every night at three"
RRULE = "rules of RFC 5545 are accepted, such as 'FREQ=WEEKLY;BYDAY=MO;BYHOUR=3;BYMINUTE=0;BYSECOND=0'"


class ServerError(UserError):
    """No Prefect server can be reached; the message says how to start or name one."""


def require_server() -> None:
    """Raise ServerError unless PREFECT_API_URL names a server that answers."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    url = PREFECT_API_URL.value()
    if not url:
        raise ServerError(
            "PREFECT_API_URL is not set: start a Prefect server with `prefect server start` and set it to that server's /api"
        )
    once = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: ANSWER_SECONDS}
    with temporary_settings(once), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise ServerError(f"no answer from the Prefect server at {url} ({error}); is it running, and is PREFECT_API_URL right?")


def serve(
    archive: Annotated[
        str | None, typer.Argument(metavar="ARCHIVE", help="Archive to segment on a schedule.", show_default=False)
    ] = None,
    results: Annotated[str | None, typer.Argument(metavar="RESULTS", help="Its results table.", show_default=False)] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Bundled model, model folder or REGISTRY@ALIAS.")] = DEFAULT_MODEL,
    settings: Settings = None,
    cron: Annotated[str | None, typer.Option(help="Schedule as a cron expression: '0 3 * * *'.")] = None,
    interval: Annotated[int | None, typer.Option(min=1, help="Seconds between runs.")] = None,
    rrule: Annotated[str | None, typer.Option(help="Schedule as an RRULE: 'FREQ=WEEKLY;BYDAY=MO'.")] = None,
    timezone: Annotated[str, typer.Option(help="Time zone of --cron and --rrule.")] = "UTC",
    active: Annotated[
        bool, typer.Option("--active", help="Switch the schedule on; default: paused until switched on in the UI.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the deployment; default: made from RESULTS.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Runs at once on this machine; each takes all its cores.")] = 1,
) -> None:
    """Serve all flows from this process; runs start from the Prefect UI, by a schedule, or from another system.

    With a schedule, the first line says when it fires next.

    [dim]deeplab serve
    deeplab serve s3://bucket/photos s3://bucket/results --cron '0 3 * * *' --timezone Europe/Berlin
    deeplab serve photos/ results/ --interval 3600 --set commit_every=300 --set crf=false --active[/]
    """
    segmentation = _segmentation(archive, results, model, settings or [])
    schedule = _schedule(cron, interval, rrule, timezone)
    if schedule and segmentation is None:
        raise typer.BadParameter("a schedule needs ARCHIVE and RESULTS", param_hint="--cron, --interval, --rrule")
    require_server()
    from prefect import serve as run

    from flows.deployments import deployments, next_run

    served = deployments(segmentation, name, schedule, active)
    if line := next_run(served[-1]):
        stdout.print(line, soft_wrap=True, markup=False)
    # Each run is a process of its own, which would otherwise import from the current folder first.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    run(*served, limit=limit, pause_on_shutdown=False)


def _schedule(cron: str | None, interval: int | None, rrule: str | None, timezone: str) -> dict[str, str | timedelta] | None:
    """The one schedule of the options, as keywords of Prefect's Schedule; None without one. BadParameter for a bad one."""
    kinds = {"cron": cron, "interval": timedelta(seconds=interval) if interval else None, "rrule": rrule}
    schedule = {kind: value for kind, value in kinds.items() if value is not None}
    if not schedule:
        return None
    hint = "--cron, --interval, --rrule"
    if len(schedule) > 1:
        raise typer.BadParameter(f"{' and '.join(schedule)}: only one of them is accepted", param_hint=hint)
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise typer.BadParameter(f"{timezone}: a name such as Europe/Berlin is accepted", param_hint="--timezone") from error
    from prefect.client.schemas.schedules import CronSchedule, RRuleSchedule

    try:
        if cron is not None:
            CronSchedule(cron=cron)
    except ValueError as error:
        raise typer.BadParameter(f"{cron!r}: {CRON}", param_hint="--cron") from error
    try:
        if rrule is not None:
            RRuleSchedule(rrule=rrule)
    except ValueError as error:
        raise typer.BadParameter(f"{rrule!r}: {RRULE}", param_hint="--rrule") from error
    return schedule if interval else {**schedule, "timezone": timezone}


def _segmentation(archive: str | None, results: str | None, model: str, settings: list[str]) -> SegmentOptions | None:
    """The options with absolute paths, as runs start in another folder; None without an archive."""
    if archive is None:
        return None
    if results is None:
        raise typer.BadParameter("ARCHIVE needs RESULTS", param_hint="RESULTS")
    places = {"archive": absolute(archive), "results": absolute(results), "model": absolute(model, True)}
    return options_of(SegmentOptions, places, parse_settings(settings))


def absolute(place: str, only_existing: bool = False) -> str:
    """A local path made absolute; URIs, and with `only_existing` names of no existing path, as they are."""
    if "://" in place or (only_existing and not os.path.exists(place.partition("@")[0])):
        return place
    return os.path.abspath(os.path.expanduser(place))


def setup_prefect(
    results: Annotated[list[str] | None, typer.Option(help="Results table to limit to one run at a time. Repeatable.")] = None,
) -> None:
    """Create what the flows need on the Prefect server: work pool, limits, variable, and the automation for dead runs.

    Can be repeated at any time; what exists is kept.
    """
    require_server()
    from flows.deployments import setup

    for line in setup(results or []):
        stdout.print(line, soft_wrap=True)
