"""Processes that take turns: the parent sends a line of JSON, the child works and answers with one.

Only the standard library is imported, so that a child may run in any environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]


class Child:
    """A module of benchmarks/ that answers requests in a process of its own until the `with` block ends.

    python: the interpreter of its environment. arguments: strings; paths must be absolute. environment: variables to set or,
    with None, to leave out. What it prints goes to stderr.
    """

    def __init__(
        self, module: str, *arguments: str, python: Path | str = sys.executable, environment: Mapping[str, str | None] = {}
    ) -> None:
        self.module = module
        variables = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
        command = [str(python), "-m", module, *arguments]
        # A session of its own: `measure.SessionTime` counts all processes that a child starts.
        self.process = subprocess.Popen(
            command,
            cwd=BENCHMARKS,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, request: str, **values: Any) -> Any:
        """The answer of the child's function `request` to `values`, all as JSON. SystemExit if the child has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps({"request": request, "values": values}), file=self.process.stdin, flush=True)
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            raise SystemExit(f"{self.module} ended with {self.process.wait()}; see above") from None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input ends it


def answer(**functions: Callable[..., Any]) -> None:
    """In the child: call the function that each line asks for, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(functions[asked["request"]](**asked["values"])), file=answers, flush=True)
