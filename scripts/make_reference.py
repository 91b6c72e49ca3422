# SPDX-License-Identifier: Apache-2.0
"""Write the pages of docs/reference that follow from the code: error codes and commands.

Usage: python scripts/make_reference.py
"""

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from ucadi.cli.main import app
from ucadi.errors import CODES, ExitStatus

__all__ = ["PAGES", "write_pages"]

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/make_reference.py; change the code and run it again. -->"


def error_codes() -> str:
    """Every registered code with what may be said outside and how to mend it."""
    lines = [
        "# Error codes",
        "",
        NOTE,
        "",
        "A refused input, a failed run or a site that does not take part is named by one of these codes. The",
        "code and its sentence are all that leaves a site; the full detail stays in that machine's log.",
        "",
        "Exit statuses: "
        + ", ".join(f"{s.value} {s.name.lower().replace('_', ' ')}" for s in ExitStatus)
        + ".",
        "",
        "| Code | What it means | What to do |",
        "|---|---|---|",
    ]
    lines += [f"| `{code}` | {entry.public_message} | {entry.cure} |" for code, entry in CODES.items()]
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its arguments and options, as its help states them."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command), name="ucadi", title="Commands")
    title, _, rest = page.partition("\n")
    return f"{title}\n\n{NOTE}\n{rest.rstrip()}\n"


PAGES = {"error-codes.md": error_codes, "cli.md": commands}


def write_pages(folder: Path) -> None:
    """Write all pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(REFERENCE)
