"""A scheduled run from its firing to its report, as the server's state and as the pages of the UI in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.options import SegmentOptions
from tests.flows.browser import browser, chromium
from tests.flows.conftest import Served, held
from tests.material import uris
from tests.processes import wait_for

pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc, by which processes are found: only on Linux"),
]


def switch(served: Served, active: bool) -> None:
    """What the switch of the schedule on the deployment's page does."""
    made = served.deployment
    (schedule,) = made.schedules
    assert schedule.active is not active
    with served.server.client() as client:
        client.update_deployment_schedule(made.id, schedule.id, active=active)


def fired(served: Served) -> list[Any]:
    """Runs of the schedule that are due, in their order."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    mine = DeploymentFilter(id=DeploymentFilterId(any_=[served.deployment.id]))
    with served.server.client() as client:
        runs = client.read_flow_runs(deployment_filter=mine)
    due = [run for run in runs if run.auto_scheduled and run.state.name not in ("Scheduled", "Late")]
    return [run.id for run in sorted(due, key=lambda run: run.expected_start_time)]


@dataclass
class Scheduled:
    """Two runs of one schedule: `first` stands still in mid-work until `release`; names of both states by then."""

    served: Served
    first: Any
    states: tuple[str, str]
    release: Callable[[], None]


@pytest.fixture(scope="module")
def scheduled(runner: Served) -> Iterator[Scheduled]:
    with ExitStack() as stack:
        switch(runner, active=True)
        first = wait_for(lambda: fired(runner), "the schedule to fire")[0]
        wait_for(lambda: runner.committed() >= 1, "a first commit")
        stack.enter_context(held(first))
        second = wait_for(lambda: [run for run in fired(runner) if run != first], "the schedule to fire again")[0]
        runner.reaches(second, "AwaitingConcurrencySlot")
        states = (runner.state(first).name, runner.state(second).name)
        switch(runner, active=False)
        with runner.server.client() as client:
            for waiting in fired(runner):  # they would do nothing, one after the other
                if waiting != first:
                    client.delete_flow_run(waiting)
        yield Scheduled(runner, first, states, stack.close)


@pytest.fixture(scope="module")
def finished(scheduled: Scheduled) -> Scheduled:
    scheduled.release()
    assert scheduled.served.ends(scheduled.first).type.value == "COMPLETED"
    return scheduled


def test_a_schedule_fires_when_it_is_switched_on_and_the_next_run_waits(scheduled: Scheduled) -> None:
    assert scheduled.states == ("Running", "AwaitingConcurrencySlot")


def test_pages_in_mid_run_show_the_graph_the_progress_and_the_form(scheduled: Scheduled, tmp_path: Path) -> None:
    served, run = scheduled.served, scheduled.first
    (progress,) = served.artifacts(run, "progress")
    with browser(chromium(), served.server.url.removesuffix("/api"), tmp_path) as ui:
        page = ui.open(f"/runs/flow-run/{run}", "segment photos with tiny", "Running", "segment", name="run")
        assert page.locator("canvas").bounding_box()["height"] > 200  # the graph; its words are pixels
        page = ui.open(f"/artifacts/artifact/{progress.id}", "images done", name="progress")
        assert "of 12 images done" in page.inner_text("body")
        ui.open(f"/deployments/deployment/{served.deployment.id}/run", "Seconds between commits", name="form")


def test_a_schedule_that_was_switched_on_stays_on_when_it_is_served_again(finished: Scheduled) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.deployments import deployments

    served = finished.served
    options = SegmentOptions(archive=str(served.archive), results=str(served.results))

    def again() -> bool:
        with temporary_settings({PREFECT_API_URL: served.server.url}):
            (schedule,) = deployments(options, served.name, {"cron": "0 3 * * *"})[-1].schedules
        return bool(schedule.active)

    assert not again()
    switch(served, active=True)
    try:
        assert again()
    finally:
        switch(served, active=False)


def test_log_lines_count_and_estimate(finished: Scheduled) -> None:
    lines = finished.served.logs(finished.first)
    estimate = re.compile(r"8 of 12 images done, 8 committed, \d+\.\d images/s, 0 errors, about .* left")
    assert [line for line in lines if estimate.fullmatch(line)], lines
    assert len(lines) < 100


def test_the_run_completes_and_its_report_is_a_page_with_a_picture(finished: Scheduled, tmp_path: Path) -> None:
    served = finished.served
    assert len(uris(served.results)) == 12
    (report,) = served.artifacts(finished.first, "markdown")
    with browser(chromium(), served.server.url.removesuffix("/api"), tmp_path) as ui:
        page = ui.open(f"/artifacts/artifact/{report.id}", "images done by this run", "Contact sheet", name="report")
        picture = page.locator("img[alt='photos and masks']")
        assert picture.evaluate("image => image.naturalWidth") > 500
        picture.scroll_into_view_if_needed()
        ui.shoot(page, "sheet")
