"""How far an evaluation is, and how long it will take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(title: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, else a line for each tenth; yields what to call with what is done."""
    if console.is_terminal and not console.quiet:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda more: bar.advance(task, more)
        return
    start, done = time.perf_counter(), 0

    def advance(more: int) -> None:
        nonlocal done
        before, done = done, done + more
        if done < total and 10 * done // total > 10 * before // total:
            left = (time.perf_counter() - start) / done * (total - done)
            console.print(f"{title}  {done}/{total} questions  {left:.0f} s left")

    yield advance
