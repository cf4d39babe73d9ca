"""DuckDB: the only place that opens a connection."""

from __future__ import annotations

import tempfile
from pathlib import Path

import duckdb

MEMORY = "700MB"


def connect(folder: Path | None = None, *, file: str | None = None, memory: str = MEMORY) -> duckdb.DuckDBPyConnection:
    """A connection with times in UTC and bounded memory; it spills to `folder`.

    `folder`: None is the folder for temporary files. `file`: the database is this file of `folder`; None keeps it in memory.
    `memory`: as DuckDB writes bytes.
    """
    place = folder or Path(tempfile.gettempdir())
    # As configuration and not as SQL, as a folder's name may hold a quote.
    configuration = {"temp_directory": str(place), "memory_limit": memory}
    connection = duckdb.connect(str(place / file) if file else ":memory:", config=configuration)
    # By default times are in the machine's own zone, also in Python.
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    return connection
