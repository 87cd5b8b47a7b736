"""Answers on disk as they come, so that an evaluation that was cut short goes on where it was."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cal_cli.files import write_whole


class AnswerLog:
    """Answers of an evaluation in hand, in `<folder>/answers/`: a file a process, a line an answer.

    Args:
        folder: of the results to come.
        identity: what the answers depend on; answers of another are thrown away.
        process: this one's number.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], process: int) -> None:
        self.folder, self.identity = folder / "answers", json.loads(json.dumps(identity))
        self.path = self.folder / f"{process}.jsonl"

    def begin(self, anew: bool) -> list[str]:
        """Throw away what belongs to another evaluation, or all that is there; the first process does it alone.

        Returns:
            In what the evaluation differs whose answers are thrown away.
        """
        path = self.folder / "of.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
        differing = sorted(
            key for key in before.keys() | self.identity.keys() if before.get(key) != self.identity.get(key)
        )
        if anew or differing:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_whole(path, json.dumps(self.identity))
        return differing if before else []

    def read(self) -> dict[str, str]:
        """All answers so far by the questions' ids, of whichever process; a line that was cut short is none."""
        answers = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    identity, text = json.loads(line)
                except ValueError:
                    continue
                answers[identity] = text
        return answers

    def add(self, answers: Mapping[str, str]) -> None:
        """Add answers by the questions' ids."""
        lines = "".join(json.dumps([identity, text]) + "\n" for identity, text in answers.items())
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")  # after a line that was cut short
            file.write(lines)

    def close(self) -> None:
        """Remove what is now in the results."""
        shutil.rmtree(self.folder, ignore_errors=True)
