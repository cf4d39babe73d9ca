"""The order of the site's pages (a hook of MkDocs). Pages that do not exist are skipped; pages not listed come last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ORDER = {
    "Start": ["index.md", "recipes.md"],
    "Use": ["archives.md", "results-table.md", "exports.md", "report.md", "evaluation.md", "operations.md"],
    "From programs": ["python.md", "ray-data.md"],
    "Models": ["models.md", "family.md", "training.md", "results.md"],
    "Inside": ["architecture.md", "crf.md", "performance.md", "scale.md", "sizing.md", "reliability.md"],
    "Reference": ["options.md", "cli.md", "reference.md"],
}


def on_config(config: Any) -> Any:
    """Set `nav` to all pages of the docs folder."""
    there = {path.name for path in Path(config["docs_dir"]).glob("*.md")}
    listed = {name for pages in ORDER.values() for name in pages}
    sections = {**ORDER, "More": sorted(there - listed)}
    existing = {title: [name for name in pages if name in there] for title, pages in sections.items()}
    config["nav"] = [{title: pages} for title, pages in existing.items() if pages]
    return config
