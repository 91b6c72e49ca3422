# SPDX-License-Identifier: Apache-2.0
"""Write the pages of docs/reference that follow from the code: error codes, commands, rules of reading.

Usage: python scripts/make_reference.py
"""

import ast
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from ucadi.cli.main import app
from ucadi.errors import CODES, ExitStatus
from ucadi.imaging.remarks import REMARKS

__all__ = ["PAGES", "write_pages"]

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
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


RULES = {
    "Which slices form a volume": "imaging/stack.py",
    "Which slices lie at one place": "io/acquisitions.py",
    "Which series is read": "io/series.py",
    "Whether values are Hounsfield units": "imaging/intensity.py",
    "Where the lungs are": "imaging/lungs.py",
    "Whether it is a whole chest": "imaging/chest.py",
    "Whether slices belong together": "imaging/continuity.py",
    "How much an input may hold": "io/files.py",
}
"""What the rules decide, and the module that holds them."""


def reading() -> str:
    """Every named tolerance of the reader, and every repair and warning."""
    lines = [
        "# Rules of reading",
        "",
        NOTE,
        "",
        "An input becomes a volume, with repairs and warnings, or is refused with an",
        "[error code](error-codes.md). These are the numbers that decide.",
    ]
    for title, module in RULES.items():
        lines += [
            "",
            f"## {title}",
            "",
            f"`src/ucadi/{module}`",
            "",
            "| Name | Value | Meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{name.strip('_')}` | {value} | {words} |" for name, value, words in constants(module)]
    lines += ["", "## Repairs and warnings", "", "| Code | What it means |", "|---|---|"]
    lines += [f"| `{code}` | {words} |" for code, words in REMARKS.items()]
    return "\n".join(lines) + "\n"


def constants(module: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and docstring of a module's documented constants."""
    body = ast.parse((ROOT / "src" / "ucadi" / module).read_text(encoding="utf-8")).body
    for node, after in pairwise(body):
        is_words = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        is_number = isinstance(node, ast.Assign) and any(
            isinstance(part, ast.Constant) and isinstance(part.value, int | float)
            for part in ast.walk(node.value)
        )
        if is_number and is_words and isinstance(node.targets[0], ast.Name):
            words = " ".join(str(after.value.value).split())
            yield node.targets[0].id, ast.unparse(node.value), words.replace("|", "\\|")


PAGES = {"error-codes.md": error_codes, "cli.md": commands, "reading.md": reading}


def write_pages(folder: Path) -> None:
    """Write all pages into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(REFERENCE)
