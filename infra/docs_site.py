"""Two hooks of MkDocs: the order of the pages, and mermaid diagrams drawn as SVG, so that a page loads no script for them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import mermaidx

ORDER = {
    "Start": ["index.md", "tutorial.md", "recipes.md"],
    "Use": ["archives.md", "options.md", "results-table.md", "report.md", "exports.md", "operations.md", "reliability.md"],
    "From programs": ["python.md", "ray-data.md"],
    "Models": ["models.md", "training.md", "evaluation.md", "results.md", "family.md"],
    "How fast, how much": ["sizing.md", "scale.md", "performance.md"],
    "Inside": ["architecture.md", "crf.md"],
    "Reference": ["cli.md", "reference.md"],
}
FENCE = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Drawn for a light page; in the dark scheme the paper stays light.
PAPER = '<div class="diagram" style="background: #fff; padding: 1em; border-radius: 0.2rem">'


def on_config(config: Any) -> Any:
    """Set `nav` to all pages of the docs folder. Pages that do not exist are skipped; pages not listed come last."""
    there = {path.name for path in Path(config["docs_dir"]).glob("*.md")}
    listed = {name for pages in ORDER.values() for name in pages}
    sections = {**ORDER, "More": sorted(there - listed)}
    existing = {title: [name for name in pages if name in there] for title, pages in sections.items()}
    config["nav"] = [{title: pages} for title, pages in existing.items() if pages]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with its mermaid blocks as inline SVG."""
    return FENCE.sub(lambda fence: f"{PAPER}{drawn(fence[1])}</div>", markdown)


def drawn(diagram: str) -> str:
    """SVG of a mermaid diagram, on one line; its ids are its own, as a page may have several diagrams."""
    svg: str = mermaidx.render(diagram).svg()
    name = "diagram-" + hashlib.sha256(diagram.encode()).hexdigest()[:8]
    return svg.replace("my-svg", name).replace("\n", " ")
