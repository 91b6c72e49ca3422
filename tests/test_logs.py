# SPDX-License-Identifier: Apache-2.0
"""Log files that several processes share and that do not grow without end."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ucadi import logs

_WRITER = """
import sys
from pathlib import Path
from ucadi import logs
logs._LARGEST = 20_000
logs.log_to_file(Path(sys.argv[1]))
for number in range(200):
    logs.event(logs.get_logger("test"), "line", writer=sys.argv[2], number=number)
"""


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was before afterwards."""
    made = logging.getLogger("ucadi")
    before = made.handlers[:], made.level, made.propagate
    yield made
    for handler in made.handlers:
        if handler not in before[0]:
            handler.close()
    made.handlers[:], made.level, made.propagate = before


def test_processes_that_share_a_file_lose_no_line_when_it_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(n)]) for n in range(3)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0]
    files = list(tmp_path.iterdir())
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted((line["writer"], line["number"]) for line in lines) == [
        (str(writer), number) for writer in range(3) for number in range(200)
    ]
    assert 3 <= len(files) <= 6
    assert all(file.stat().st_size < 21_000 for file in files)


def test_only_the_latest_files_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    monkeypatch.setattr(logs, "_LARGEST", 1)
    path = tmp_path / "log.jsonl"
    logs.log_to_file(path)
    for number in range(20):
        logger.info("line %d", number)
    names = ["log.jsonl", *(f"log.jsonl.{number}" for number in range(1, 6))]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    assert [json.loads((tmp_path / name).read_text())["message"] for name in names] == [
        f"line {number}" for number in range(19, 13, -1)
    ]
