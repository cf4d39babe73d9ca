"""docs/cli.md, made of the help of every command: `python -m tests.cli_page` writes it again."""

from __future__ import annotations

import html
import re
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from flows.cli import app

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
HEAD = """# Every command and option

What `deeplab COMMAND --help` prints. [options.md](options.md) has those of `segment` that matter most.

"""


def page() -> str:
    """The text of the page."""
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), name="deeplab").partition("\n")[2]
    text = re.sub(r"<span style=\"[^\"]*\">(.*?)</span>", r"\1", text, flags=re.DOTALL)
    text = re.sub(r"\[(?:bold|dim|/)\]", "", html.unescape(text))
    text = re.sub(r"(?:^deeplab .*\n)+", r"```\n\g<0>```\n", text, flags=re.MULTILINE)  # examples
    return HEAD + text.strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
