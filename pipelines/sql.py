"""DuckDB: the one place that opens a connection."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb

MEMORY = "700MB"


def connect(folder: Path | None = None, *, file: str | None = None, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """A connection whose times are UTC and whose memory is bounded; what does not fit goes to `folder`.

    `folder`: any name is accepted; None is the folder for temporary files. `file`: the database lies in this file of
    `folder`; None keeps it in memory. `memory`: DuckDB's way of writing bytes.
    """
    place = folder or Path(tempfile.gettempdir())
    # As configuration and not as SQL: a folder may have a quote in its name.
    configuration = {"temp_directory": str(place), "memory_limit": memory}
    connection = duckdb.connect(str(place / file) if file else ":memory:", config=configuration)
    # By default the machine's own zone, in which Python, too, is then handed every time.
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    return connection
