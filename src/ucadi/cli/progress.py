# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr for people; nothing when nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ucadi.cli.output import console_error

__all__ = ["progress_bars"]


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows what is being done, how many are done, and of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = console_error()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=screen, disable=not screen.is_terminal, transient=True) as bars:
        tasks = {}

        def show(words: str, done: int, total: int) -> None:
            if words not in tasks:
                tasks[words] = bars.add_task(words, total=total)
            bars.update(tasks[words], completed=done)

        yield show
