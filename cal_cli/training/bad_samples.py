"""Bad samples found during training: recorded in a file, reported, and limited in number."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from cal_cli.data.sample import Bad
from cal_cli.runtime.console import Notify
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole

REPORTED = 10  # messages; the file has all samples


class TooManyBadSamples(InputError):
    """More samples are bad than `data.max_bad_fraction` allows."""


class BadSamples:
    """The bad samples of a run: at most `allowed`, in a file that a resumed run continues."""

    def __init__(self, path: Path, allowed: int, notify: Notify) -> None:
        self.path, self.allowed, self.notify = path, allowed, notify
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have left the last line incomplete
        if whole != text:
            write_whole(path, whole)
        self.known = {Bad(**json.loads(line)) for line in whole.splitlines()}

    def count(self) -> int:
        """Return the number of samples in the file, those of other processes included."""
        return len(self.path.read_text().splitlines()) if self.path.is_file() else 0

    def add(self, found: Iterable[Bad]) -> None:
        """Record the samples that are not recorded yet. Raises TooManyBadSamples if there are more than allowed."""
        for bad in found:
            if bad in self.known:
                continue
            self.known.add(bad)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(bad)) + "\n")
            if len(self.known) <= REPORTED:
                self.notify(f"left out: sample {bad.id}: {bad.problem}")
            if len(self.known) > self.allowed:
                raise TooManyBadSamples(
                    f"{len(self.known)} samples are bad, more than data.max_bad_fraction allows ({self.allowed}); "
                    f"{self.path} lists them; cal data-check finds all bad samples and writes the others"
                )
