"""The live view of a run: a bar with lines below it in a terminal, one plain line at a time without one."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from flows.commands.segment import _details
from flows.console import terminal
from flows.console.terminal import bar, shares
from pipelines.segment.run import SegmentProgress

PROGRESS = SegmentProgress("segment", 5000, 1250, 3, 1200, 7, 10, {"score": 61.0, "refine": 30.0, "decode": 8.8, "read": 0.2})


def watched(monkeypatch: pytest.MonkeyPatch, **of_console: object) -> str:
    """What one state of a run looks like on a console of this kind."""
    out = io.StringIO()
    monkeypatch.setattr(terminal, "stderr", Console(file=out, width=100, highlight=False, **of_console))  # type: ignore[arg-type]
    monkeypatch.setattr(terminal, "LINE_SECONDS", 0.0)
    with bar("images") as display:
        display.update("segmenting", 0, 5000)
        display.update("segmenting", PROGRESS.done, PROGRESS.total, details=_details(PROGRESS, 0.05, time.monotonic() - 14))
        display.progress.refresh()
    return out.getvalue()


def test_in_a_terminal_errors_last_commit_and_stages_stand_below_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})
    assert "1250/5000" in seen and "images/s" in seen
    assert "3 (0.2% of what is committed; the run stops above 5.0% of all)" in seen
    assert "1,200 images 14 s ago, table version 7" in seen
    assert "━  score 61%  refine 30%  decode 9%" in seen


def test_without_a_terminal_the_same_is_one_line_of_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    *_, last = watched(monkeypatch, force_terminal=False).strip().splitlines()
    assert last.startswith("segmenting 1250/5000, ") and " images/s, " in last and " s left" in last
    for part in ("errors 3 (0.2%", "committed 1,200 images 14 s ago, table version 7", "stages score 61%  refine 30%  decode 9%"):
        assert part in last
    assert last.isascii()


def test_shares_are_drawn_in_proportion_and_small_ones_have_no_legend() -> None:
    text = shares({"a": 1.0, "b": 2.0, "c": 0.001}, width=30)
    assert text.plain == "━" * 30 + "  b 67%  a 33%"
    assert [span.end - span.start for span in text.spans if text.plain[span.start] == "━"][:2] == [20, 10]
    assert shares({}).plain == ""


def test_before_the_first_commit_the_view_says_so() -> None:
    details = _details(SegmentProgress("segment", 10, 2), 0.05, None)
    assert {name: text.plain for name, text in details.items()} == {"errors": "0", "committed": "nothing yet"}
