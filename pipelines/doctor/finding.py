"""One thing that was looked at: what it is, what that means, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from deeplab.errors import described

State = Literal["ok", "note", "failed"]


@dataclass(frozen=True)
class Finding:
    """`state`: ok; note (it works, and something is missing or slow); failed (some command cannot work).

    `value`: what there is; `meaning`: what follows from it; `remedy`: what to do, empty if nothing needs to be done.
    """

    name: str
    state: State
    value: str
    meaning: str = ""
    remedy: str = ""


Check = Callable[[], Iterator[Finding]]


def findings(checks: Mapping[str, Check]) -> Iterator[Finding]:
    """The findings of all checks, in order. A check that raises an error becomes a finding of its own; the others go on."""
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # a machine on which something unforeseen is missing is what this is for
            yield Finding(name, "failed", described(error), "this could not be looked at")
