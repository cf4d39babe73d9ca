"""Figures of docs/scale.md: listing, planning, commits and the whole pipeline at sizes where they become expensive.

    python benchmarks/scale.py list     [--keys 1000000]            an s3:// prefix on a local server -> inventory
    python benchmarks/scale.py plan     [--rows 10000000]           an inventory against a table of nine tenths of it
    python benchmarks/scale.py commits  [--grown 10000]             commits per minute to a new and to a large table
    python benchmarks/scale.py pipeline [--images 10000 30000 100000] [--plot docs/scale.svg]    CPU per image and step

Keys, rows and photos are synthetic; the code that lists, plans, commits and segments is the pipeline's own. Memory is that
of a separate process, imports included.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list")
    command.add_argument("--keys", type=int, default=1_000_000)
    command = commands.add_parser("plan")
    command.add_argument("--rows", type=int, default=10_000_000)
    command = commands.add_parser("commits")
    command.add_argument("--grown", type=int, default=10_000, help="commits of the large table")
    command.add_argument("--tries", type=int, default=60, help="commits that are timed on each table")
    command.add_argument("--s3", action=argparse.BooleanOptionalAction, default=True, help="also on a local S3 server")
    command = commands.add_parser("pipeline")
    command.add_argument("--images", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    command.add_argument("--commit-every", type=float, default=60, help="seconds")
    command.add_argument("--plot", type=Path, help="write the costs as an SVG")
    command.add_argument(
        "--data", type=Path, help="JSON file for the measurements; sizes that it holds already are not measured again"
    )
    arguments = parser.parse_args()
    # Imported where needed, so that a measured process holds only its own work.
    with tempfile.TemporaryDirectory(prefix="deeplab-scale-") as name:
        folder = Path(name)
        if arguments.command == "list":
            import keys

            keys.run(folder, arguments.keys)
        elif arguments.command == "plan":
            import planning

            planning.run(arguments.rows, arguments.rows * 9 // 10, peer=False)
        elif arguments.command == "commits":
            import commits

            commits.run(folder, arguments.grown, arguments.tries, arguments.s3)
        else:
            import overhead

            overhead.run(folder, arguments.images, arguments.commit_every, arguments.plot, arguments.data)


if __name__ == "__main__":
    main()
