"""SQL over the table whatever the machine: its time zone, the name of its folder for temporary files, the end of a script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import sql
from tests.material import START, make_results

ROOT = Path(__file__).resolve().parents[2]
# Every way from a connection to a time, and one that spills.
READ = """
import json, sys
from pathlib import Path
from pipelines.archive import inventory
from pipelines.segment import plan
from pipelines.upkeep import verification as upkeep
from pipelines.report.figures import gather
from pipelines.table.snapshot import Snapshot as Rows
from pipelines.table.results_table import ResultsTable
from pipelines.upkeep.status import status
table = ResultsTable.open(sys.argv[1])
(label,) = table.models()
(model,) = status(table, sys.argv[2])["models"]
with Rows(table, label) as rows:
    (run,) = gather(rows).runs
verdict = upkeep.verify(table, sys.argv[2])
print(json.dumps([model["first"], run.first.isoformat(), verdict.problems, verdict.pending]))
"""

# As many scripts of two lines, but for what they import.
ENDS = """
import os, sys
from pipelines.table.results_table import ResultsTable
codes = []
for _ in range(12):
    pid = os.fork()
    if pid == 0:
        ResultsTable.open(sys.argv[1]).dataset().to_table()
        sys.exit()
    codes.append(os.waitpid(pid, 0)[1])
print(codes)
"""


def test_times_are_utc_and_no_folder_name_breaks_a_query(tmp_path: Path) -> None:
    results = make_results(tmp_path)
    odd = tmp_path / 'it\'s "a" [temp]*; folder'
    odd.mkdir()
    machine = {**os.environ, "TZ": "Asia/Tokyo", "TMPDIR": str(odd)}
    command = [sys.executable, "-c", READ, str(results), str(tmp_path / "photos")]
    done = subprocess.run(command, env=machine, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [START.isoformat(), START.isoformat(), [], 8]  # the rows have another version
    assert list(odd.iterdir()) == []


def test_what_does_not_fit_into_memory_goes_to_the_folder(tmp_path: Path) -> None:
    with sql.connect(tmp_path, memory="60MB") as connection:
        connection.execute("SET threads = 1")
        connection.execute("CREATE TABLE words AS SELECT md5(range::VARCHAR) AS word FROM range(1_500_000)")
        assert connection.execute("SELECT count(*) FROM (SELECT word FROM words ORDER BY word)").fetchone() == (1_500_000,)
        assert any(tmp_path.iterdir())


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python lets such threads sleep instead of ending them")
def test_a_script_that_ends_after_reading_the_table_ends_well(tmp_path: Path) -> None:
    """With the Delta library's own file system up to half of these processes aborted; see docs/results-table.md."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(make_results(tmp_path))], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [0] * 12, done.stderr
