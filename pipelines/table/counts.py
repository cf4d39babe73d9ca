"""Counts of a run's rows in the table: errors by reason, class shares, images without a row or with two."""

from __future__ import annotations

from pathlib import Path

from pipelines import sql
from pipelines.table.results_table import ResultsTable
from pipelines.table.schema import done_versions


def reason_of(error: str) -> str:
    """SQL for the reason in the column `error`: numbers become N, except at the end of a name such as JPEG2000."""
    return f"regexp_replace({error}, '(^|[^A-Z0-9.,])[0-9][0-9.,]*', '\\1N', 'g')"


def errors_by_reason(table: ResultsTable, model: str, run: str) -> dict[str, int]:
    """Error rows of a run by reason, with numbers replaced; the most frequent first."""
    return dict(
        table.query(
            f"SELECT {reason_of('error')} AS reason, count(*) FROM results WHERE run = ? AND status = 'error' "
            "GROUP BY 1 ORDER BY 2 DESC, 1",
            [run],
            model,
        ).fetchall()
    )


def rows_of(table: ResultsTable, model: str, run: str) -> tuple[int, int]:
    """Rows of a run, and how many of them are errors."""
    counted = table.query("SELECT count(*), count(*) FILTER (status <> 'ok') FROM results WHERE run = ?", [run], model).fetchone()
    return counted or (0, 0)


def rows_and_images(table: ResultsTable, model: str, run: str) -> tuple[int, int]:
    """Rows of a run, and its images, as (uri, version)."""
    counted = table.query("SELECT count(*), count(DISTINCT (uri, version)) FROM results WHERE run = ?", [run], model).fetchone()
    return counted or (0, 0)


def class_shares(table: ResultsTable, model: str, run: str | None = None) -> dict[str, float]:
    """Share of all pixels per class name, of one run or of all; in the order of the class table."""
    where = "WHERE status = 'ok'" + (" AND run = ?" if run else "")
    pairs = f"SELECT unnest(map_entries(class_pixels)) AS pair FROM results {where}"
    counted = dict(
        table.query(
            f"SELECT pair.key, sum(pair.value) FROM ({pairs}) GROUP BY 1",
            [run] if run else [],
            model,
        ).fetchall()
    )
    total = sum(counted.values())
    return {name: float(counted.get(name, 0) / total) for name in table.classes(model).names} if total else {}


def previous_run(table: ResultsTable, run: str) -> tuple[str, str] | None:
    """(run, model) of the last run other than `run` that wrote ok rows, of any model; None if there is none."""
    previous: tuple[str, str] | None = table.query(
        """
        SELECT run, any_value(model) FROM results WHERE run <> ? AND status = 'ok'
        GROUP BY run ORDER BY max(segmented_at) DESC, run LIMIT 1
        """,
        [run],
    ).fetchone()
    return previous


def lost_and_doubled(table: ResultsTable, model: str, planned: Path) -> tuple[int, int]:
    """Of the images in the Parquet file `planned`: how many have no row of `model`, and how many rows are duplicates."""
    with sql.connect(planned.parent) as connection:
        connection.register("planned", connection.read_parquet(str(planned)))
        connection.register("results", table.dataset(model))
        with table.reading():
            connection.execute(
                "CREATE TABLE rows_of_plan AS SELECT uri, version, read_version FROM results SEMI JOIN planned USING (uri)"
            )
        done = done_versions("rows_of_plan")
        lost = connection.execute(f"SELECT count(*) FROM planned ANTI JOIN ({done}) USING (uri, version)").fetchone()[0]
        doubled = connection.execute(
            "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM rows_of_plan GROUP BY uri, version)"
        ).fetchone()[0]
    return int(lost), int(doubled)
