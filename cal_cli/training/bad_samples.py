"""Bad samples met in training: named in a file and on the terminal, and too many of them end the run."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from cal_cli.data.conversations import Bad
from cal_cli.errors import InputError

SHOWN = 10  # on the terminal; the file has them all


class TooManyBadSamples(InputError):
    """More samples are bad than `data.max_bad_fraction` allows."""


class BadSamples:
    """Counts the bad samples of a run.

    Args:
        path: the file with one JSON object a bad sample; a resumed run goes on with it.
        allowed: how many there may be.
        console: told of the first ones.
    """

    def __init__(self, path: Path, allowed: int, console: Console) -> None:
        self.path, self.allowed, self.console = path, allowed, console
        lines = path.read_text().splitlines() if path.is_file() else []
        self.known = {Bad(**json.loads(line)) for line in lines}

    def count(self) -> int:
        """How many the file names, those of other processes too."""
        return len(self.path.read_text().splitlines()) if self.path.is_file() else 0

    def add(self, found: Iterable[Bad]) -> None:
        """Name what has not been named before.

        Raises:
            TooManyBadSamples: it was one too many.
        """
        for bad in found:
            if bad in self.known:
                continue
            self.known.add(bad)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(bad)) + "\n")
            if len(self.known) <= SHOWN:
                self.console.print(f"left out: sample {bad.id}: {bad.problem}")
            if len(self.known) > self.allowed:
                raise TooManyBadSamples(
                    f"{len(self.known)} samples are bad, more than data.max_bad_fraction allows ({self.allowed}); they "
                    f"are named in {self.path}; cal data-check finds all of them and writes the rest"
                )
