"""What commands print: lines, tables on a terminal or in a file, and the progress of long work."""

import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Column, Table

T = TypeVar("T")
QUIET = 30.0  # seconds between two lines of progress, where there is no terminal
Notify = Callable[[str], None]  # takes one message to the user


def make_console(quiet: bool = False) -> Console:
    """Return a console that neither wraps nor colours what it prints; in a file, tables are as wide as they need."""
    width = None if sys.stdout.isatty() else 10_000
    return Console(soft_wrap=True, highlight=False, quiet=quiet, width=width)


def make_table(*headers: str, title: str | None = None, whole: Sequence[str] = ()) -> Table:
    """Return an empty table in the style of all commands.

    A narrow terminal wraps what is in the columns, and cuts nothing off; those of `whole` are wrapped last.
    """
    columns = [Column(header, overflow="fold", no_wrap=header in whole) for header in headers]
    return Table(*columns, title=title, box=SIMPLE_HEAD, pad_edge=False)


def render_markdown(table: Table) -> str:
    """Render a table as Markdown, its title as a heading."""
    title, box = table.title, table.box
    table.title, table.box = None, MARKDOWN
    page = io.StringIO()
    Console(file=page, width=10_000, no_color=True).print(table)
    table.title, table.box = title, box
    rows = [[cell.strip() for cell in line.split("|")] for line in page.getvalue().splitlines()]
    # no lines between sections
    lines = [" | ".join(row).strip() for row in rows if any(cell.strip("-") for cell in row)]
    lines.insert(1, "|" + "---|" * len(table.columns))
    return "\n".join([f"## {title}", "", *lines] if title else lines) + "\n"


def track_items(items: Iterable[T], title: str, console: Console, total: int | None = None) -> Iterable[T]:
    """Iterate with a progress bar on a terminal; without one elsewhere."""
    return track(items, title, total, console=console, disable=not console.is_terminal)


@contextmanager
def show_progress(
    title: str, total: int, console: Console, done: int = 0, final: bool = False
) -> Iterator[Callable[..., None]]:
    """Show a bar on a terminal, else a line every `QUIET` seconds, with the time left; one at the end too if `final`.

    Yields a function of the number just done, and of a text to show. `done` is the number done before.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"))
    hidden = not console.is_terminal or console.quiet
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden)
    task = bar.add_task(title, total=total, completed=done, values="")
    start, first = time.perf_counter(), done
    last = start

    def advance(more: int, values: str = "") -> None:
        nonlocal done, last
        done, now = done + more, time.perf_counter()
        bar.update(task, advance=more, values=values)
        if hidden and (final if done == total else now - last >= QUIET):
            last, left = now, (now - start) / (done - first) * (total - done)
            console.print("  ".join(filter(None, (f"{title} {done}/{total}", values, f"{left:.0f} s left"))))

    with bar:
        yield advance
