# SPDX-License-Identifier: Apache-2.0
"""What ucadi and other readers make of awkward CT series: a table of verdicts."""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from awkward_cases import CASES, Case, Refusal, Truth
from awkward_readers import READERS, Answer, Child, reader_version

_PAGE = """# Awkward series

<!-- Written by benchmarks/awkward_series.py; change the code and run it again. -->

What ucadi and other readers make of {count} CT series that are awkward in one way each. All are written
from a formula, a chest with a lesion of known volume, so the truth rests on no reader. A volume is **right**
when its voxels hold the formula's values at the places where its affine puts them, and when the lesion has
its volume within 3 %. Each reader is called as its documentation says, for every series that it finds; of
several volumes all are judged. **Wrong!** marks a wrong volume without a word. A reader of any image may read
what is no chest CT, or a part of the scan in its right place: that is no mistake, but no chest either.

{summary}

Versions: {versions}.

Make the table again, in two to ten minutes:

```
.venv/bin/python benchmarks/awkward_series.py --markdown docs/reference/awkward-series.md
```

{table}

## Where people met these

{sources}
"""


def verdict(reader: str, case: Case, answer: Answer) -> tuple[str, str]:
    """Return the kind of an answer and its words.

    Kinds are right, refused (rightly), refuses (what can be read), reads (what only a reader of chests need
    refuse, or parts in their right places), warned and wrong.
    """
    volumes = answer.judgements
    if not volumes:
        is_right = _is_right_refusal(reader, case, answer.reason)
        return ("refused" if is_right else "refuses"), f"refuses: {answer.reason}"
    if isinstance(case.expectation, Refusal) and case.expectation.is_for_chests:
        return "reads", "reads it"
    right = sum(judgement.verdict == "right" for judgement in volumes)
    if right and isinstance(case.expectation, Truth):
        words = "right" if right == len(volumes) == 1 else f"right in {right} of {len(volumes)} volumes"
        return _right(reader, case.expectation, answer, words)
    if all(judgement.verdict in ("right", "incomplete") for judgement in volumes):
        parts = f"{len(volumes)} parts" if len(volumes) > 1 else "a part"
        return "reads", "reads it with a gap closed" if right else f"reads {parts} of it"
    number = f" (first of {len(volumes)} volumes)" if len(volumes) > 1 else ""
    if answer.warned:
        return "warned", f"wrong, warns: {volumes[0].detail}{number}"
    return "wrong", f"**wrong!** {volumes[0].detail}{number}"


def _is_right_refusal(reader: str, case: Case, reason: str) -> bool:
    """Tell whether a refusal is right; ucadi must name the cause."""
    if isinstance(case.expectation, Refusal):
        return reader != "ucadi" or reason in case.expectation.codes
    return bool(case.expectation.or_refused) and (reader != "ucadi" or reason in case.expectation.or_refused)


def _right(reader: str, truth: Truth, answer: Answer, words: str) -> tuple[str, str]:
    """Return kind and words for a right volume; ucadi must say what it did."""
    if reader != "ucadi":
        return "right", f"{words}, warns" if answer.warned else words
    missing = set(truth.remarks) - set(answer.remarks)
    if missing:
        return "wrong", f"right, but does not say {', '.join(sorted(missing))}"
    return "right", f"{words}: {', '.join(answer.remarks)}" if answer.remarks else words


def expected(case: Case) -> str:
    """Return in words what is right."""
    if isinstance(case.expectation, Refusal):
        return "refusal"
    return "volume or refusal" if case.expectation.or_refused else "volume"


def run(names: list[str]) -> dict[str, dict[str, tuple[str, str]]]:
    """Let all installed readers read the cases; return kinds and words by case and reader."""
    children = {reader: Child(reader) for reader in READERS if reader_version(reader)}
    table: dict[str, dict[str, tuple[str, str]]] = {}
    try:
        for case in CASES:
            if names and case.name not in names:
                continue
            with tempfile.TemporaryDirectory() as folder:
                case.write(Path(folder))
                table[case.name] = {
                    reader: verdict(reader, case, children[reader].ask(case, Path(folder)))
                    if reader in children
                    else ("missing", "not installed")
                    for reader in READERS
                }
    finally:
        for child in children.values():
            child.close()
    return table


def summary(table: dict[str, dict[str, tuple[str, str]]]) -> dict[str, dict[str, int]]:
    """Count the kinds of verdict by reader."""
    return {reader: dict(Counter(row[reader][0] for row in table.values())) for reader in READERS}


def markdown(table: dict[str, dict[str, tuple[str, str]]]) -> str:
    """Return the reference page."""
    cases = {case.name: case for case in CASES}
    head = f"| case | what | right is | {' | '.join(READERS)} |\n|{'---|' * (3 + len(READERS))}"
    rows = [
        f"| {name} | {cases[name].what} | {expected(cases[name])} | "
        + " | ".join(row[reader][1] for reader in READERS)
        + " |"
        for name, row in table.items()
    ]
    kinds = {
        "right": "right volume",
        "refused": "rightly refused",
        "refuses": "refused, readable",
        "reads": "read as it is or in parts",
        "warned": "wrong, warned",
        "wrong": "**wrong!**",
    }
    counts = summary(table)
    lines = [f"| | {' | '.join(kinds.values())} |\n|{'---|' * (1 + len(kinds))}"]
    lines += [
        f"| {reader} | {' | '.join(str(counts[reader].get(kind, 0)) for kind in kinds)} |"
        for reader in READERS
    ]
    sources = [
        f"- {case.name}: https://github.com/{'/issues/'.join(case.source.rsplit('/', 1))}"
        for case in CASES
        if case.source and case.name in table
    ]
    return _PAGE.format(
        count=len(table),
        summary="\n".join(lines),
        versions=", ".join(f"{reader} {reader_version(reader) or 'not installed'}" for reader in READERS),
        table="\n".join([head, *rows]),
        sources="\n".join(sources),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--markdown", type=Path, help="write the reference page to this file")
    parser.add_argument("cases", nargs="*", help="names of cases; all without it")
    options = parser.parse_args()
    table = run(options.cases)
    if options.markdown:
        options.markdown.write_text(markdown(table), encoding="utf-8")
    if options.json:
        document = {
            "benchmark": "awkward_series",
            "versions": {reader: reader_version(reader) for reader in READERS},
            "summary": summary(table),
            "verdicts": {
                name: {reader: words.replace("**", "") for reader, (_, words) in row.items()}
                for name, row in table.items()
            },
        }
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for name, row in table.items():
        print(name)
        for reader, (_, words) in row.items():
            print(f"  {reader:12s} {words.replace('**', '')}")
    for reader, kinds in summary(table).items():
        print(f"{reader:12s} {kinds}")


if __name__ == "__main__":
    main()
