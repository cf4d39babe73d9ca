"""The commands on machines that are not a developer's: proxies, homes, dead servers, files of our names, signals, odd errors."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.commands.parameters import options_of, parse_settings
from flows.console import environment, error_messages, signals
from pipelines import job_program
from pipelines.archive.image_lists import ArchiveError
from pipelines.cluster import connection, ray_jobs
from pipelines.options import SegmentOptions
from tests.command_line import ROOT, deeplab
from tests.flows.conftest import SECRET
from tests.material import make_archive, make_dataset, make_model, make_results

# A home folder that nobody can write to, root included.
NO_HOME = "/dev/null/home"


@pytest.fixture(autouse=True)
def _variables_as_before() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for temporary files whose name is short enough for the sockets that Ray puts into it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def process(*arguments: object, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **variables}, cwd=cwd, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"HTTP_PROXY": "http://proxy:3128"}, "localhost,127.0.0.1,::1"),
        ({"https_proxy": "http://proxy:3128", "no_proxy": ".corp, 127.0.0.1"}, ".corp,127.0.0.1,localhost,::1"),
        ({"ALL_PROXY": "http://proxy:3128", "NO_PROXY": "*"}, "*"),
        ({"NO_PROXY": ".corp"}, ".corp"),
        ({}, None),
    ],
)
def test_a_proxy_never_sees_loopback_and_what_was_exempt_stays_so(
    monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str | None
) -> None:
    for name in (*environment.PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    environment._exempt_loopback()
    assert os.environ.get("NO_PROXY") == after
    assert os.environ.get("no_proxy") == (after if len(before) > 1 or "HTTP_PROXY" in before else None)


@pytest.mark.parametrize("home", [NO_HOME, "/proc/self", "/no/such/folder"])
def test_a_home_that_cannot_be_written_gives_way_to_a_private_folder_and_is_named(
    monkeypatch: pytest.MonkeyPatch, temporary: Path, home: str
) -> None:
    for name in environment.BELOW_HOME:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", home)
    notice = environment._replace_home()
    (folder,) = temporary.iterdir()
    assert notice is not None
    assert home in notice and str(folder) in notice
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(Path(os.environ[name]).parent == folder for name in environment.BELOW_HOME)
    assert environment._replace_home() is None  # said once, also to the processes that this one starts


def test_a_folder_that_others_may_enter_is_not_taken_for_ours(temporary: Path) -> None:
    environment.own_folder().chmod(0o777)
    with pytest.raises(OSError, match="only this user may enter"):
        environment.own_folder()


@pytest.mark.drill
def test_without_a_home_and_among_folders_of_our_names_workers_run_the_code_of_the_driver(temporary: Path, tmp_path: Path) -> None:
    """A dead proxy is set as well. The folders would end whoever imports them."""
    for package in ("deeplab", "pipelines", "flows"):
        (tmp_path / "here" / package).mkdir(parents=True)
        (tmp_path / "here" / package / "__init__.py").write_text("raise SystemExit('another code than the driver runs')")
    archive, model = make_archive(tmp_path / "photos", 2), make_model(tmp_path / "tiny")
    machine = {"HOME": NO_HOME, "HTTP_PROXY": "http://127.0.0.1:9"}
    done = process("segment", archive, tmp_path / "r", "--model", model, "--no-crf", cwd=tmp_path / "here", **machine)
    assert done.returncode == 0, done.stderr
    assert f"the home folder {NO_HOME} cannot be written" in done.stderr
    assert "2 done, 0 of them errors" in done.stdout


def test_a_dead_prefect_server_is_one_sentence(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/api"
    done = process("run", "evaluate", "pets", "examples/pets", PREFECT_API_URL=url, PREFECT_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: no answer from the Prefect server at {url} .*PREFECT_API_URL right\?\n", done.stderr)


@pytest.mark.parametrize(
    ("command", "setting", "message"),
    [
        (("serve", "a", "r"), "tiel=513", "--set tiel: there is no such option; nearest: tile"),
        (("serve", "a", "r"), "tile=5", "--set tile: .*193"),
        (("serve", "a", "r"), "tile", "name=value"),
        (("run", "train", "d", "m"), "keep=none", "--set keep: .*integer"),
    ],
)
def test_a_setting_that_is_none_is_refused_by_its_name(command: tuple[str, ...], setting: str, message: str) -> None:
    done = deeplab(*command, "--set", setting)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)


def test_a_setting_goes_before_the_commands_own_option() -> None:
    settings = parse_settings(["max-pixels=7", 'include=["*"]', "model=other"])
    options = options_of(SegmentOptions, {"archive": "a", "results": "r", "model": "pets"}, settings)
    assert (options.max_pixels, options.include, options.model) == (7, ("*",), "other")


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_TOKEN", SECRET), ("RAY_AUTH_TOKEN_PATH", "token")])
def test_rays_token_is_found_where_ray_looks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", NO_HOME)
    assert connection.token() is None
    monkeypatch.setenv(name, value if name == "RAY_AUTH_TOKEN" else str(tmp_path / value))
    assert connection.token() == SECRET


@pytest.mark.drill
def test_a_signal_to_all_processes_of_a_training_saves_its_state(tmp_path: Path) -> None:
    """As systemd, Slurm and others send it, to the loader processes too."""
    data, out, log = make_dataset(tmp_path / "data"), tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "flows.cli", "train", str(data), str(out), "--init", str(make_model(tmp_path / "start"))]
    command += ["--steps", "100000", "--batch-size", "2", "--crop", "33", "--loaders", "2", "--device", "cpu"]
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
    try:
        while not re.search(r"training \d+/", log.read_text()):  # a first step is done, so the loaders are at work
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=200) == 143, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "the state is saved" in " ".join(log.read_text().split())
    assert "Traceback" not in log.read_text()
    assert list((out / "training").glob("step-*.pt"))


def test_a_closed_terminal_ends_a_command_like_sigterm_and_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    results = make_results(tmp_path)
    command = [sys.executable, "-m", "flows.cli", "view", str(results)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "http://" in process.stdout.readline()
        assert [path.name.startswith("deeplab-report-") for path in temporary.iterdir()] == [True]
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 129
    assert "Traceback" not in errors
    assert list(temporary.iterdir()) == []


def test_work_that_saves_itself_heeds_a_closed_terminal_unless_it_is_to_outlive_it() -> None:
    before = signal.getsignal(signal.SIGHUP)
    try:
        for ignored, code in ((signal.SIG_DFL, 129), (signal.SIG_IGN, 0)):
            signal.signal(signal.SIGHUP, ignored)
            with signals.request() as asked:
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0)
                assert asked() == code
            assert signal.getsignal(signal.SIGHUP) is ignored
    finally:
        signal.signal(signal.SIGHUP, before)


# A command in which everything goes wrong that nobody foresaw.
BROKEN = """
import sys, threading
from flows import cli
from pipelines.table.results_table import ResultsTable

class Unraisable:
    def __del__(self):
        raise OSError("in a destructor")

async def never():
    pass

def of_thread():
    raise KeyError("in a thread")

def broken(*arguments, **more):
    Unraisable()
    never()
    thread = threading.Thread(target=of_thread)
    thread.start()
    thread.join()
    raise ValueError("at http://me:pass-word@host/ with correct-horse-battery-staple\\nand more")

ResultsTable.open = broken
sys.argv = ["deeplab", *sys.argv[1:]]
cli.main()
"""


def broken(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BROKEN, *arguments]
    machine = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, **variables}
    return subprocess.run(command, env=machine, cwd=ROOT, capture_output=True, text=True, check=False)


def test_an_error_that_nobody_foresaw_is_one_line_and_its_text_lies_in_a_private_file_without_secrets(tmp_path: Path) -> None:
    done = broken("status", "somewhere", XDG_STATE_HOME=str(tmp_path / "state"))
    assert (done.returncode, done.stdout) == (1, "")
    of_thread, last = done.stderr.splitlines()
    assert of_thread.startswith("error: KeyError: 'in a thread'; full text: ")
    line, path = last.split("; full text: ")
    assert line == "error: ValueError: at http://***@host/ with *** and more"
    text = Path(path).read_text()
    assert "Traceback" in text and "in broken" in text and "in a destructor" in text
    assert SECRET not in text and "pass-word" not in text
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(path).parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("arguments", "variables"), [(("status", "somewhere", "--debug"), {}), (("status", "x"), {"DEEPLAB_DEBUG": "1"})]
)
def test_whoever_asks_sees_all_of_it(tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str]) -> None:
    done = broken(*arguments, XDG_STATE_HOME=str(tmp_path / "state"), **variables)
    assert done.returncode == 1
    for part in ("Traceback", "in a destructor", "in a thread", "never awaited", "ValueError: at http"):
        assert part in done.stderr
    assert not (tmp_path / "state").exists()


def test_only_the_newest_texts_of_errors_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for number in range(error_messages.KEPT + 5):
        (tmp_path / "deeplab").mkdir(exist_ok=True)
        (tmp_path / "deeplab" / f"error-2026010{number % 9}T000000Z-{number}.log").write_text("old")
    path = error_messages.keep(ValueError("new"))
    assert path is not None and path.exists()
    assert len(list((tmp_path / "deeplab").iterdir())) == error_messages.KEPT


def test_a_job_tells_an_error_that_nobody_foresaw_as_one_event_with_its_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("pipelines.segment.run.segment", fail)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert job_program.main("segment", '{"archive": "a", "results": "r"}') == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    (line,) = capsys.readouterr().out.splitlines()
    event = ray_jobs.parse(line)
    assert event is not None
    assert (event["error"], event["message"]) == (ray_jobs.UNFORESEEN, "ValueError: first line second line")
    assert "in fail" in event["traceback"]


def test_the_log_of_a_flow_has_errors_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    error_messages.in_log("prefect.flow_runs")
    error_messages.in_log("prefect.flow_runs")  # once is enough
    logger = logging.getLogger("prefect.flow_runs")
    logger.addHandler(caplog.handler)
    try:
        try:
            raise ArchiveError("nowhere: no such folder")
        except ArchiveError as error:
            logger.exception("Encountered exception during execution: %r", error)
    finally:
        logger.removeHandler(caplog.handler)
    (record,) = {id(record): record for record in caplog.records}.values()
    assert (record.getMessage(), record.exc_info, len(logger.filters)) == ("nowhere: no such folder", None, 1)
