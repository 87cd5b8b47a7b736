"""Keep answers on disk as they are generated, so that an interrupted evaluation can continue."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cal_cli.runtime.identity import begin_work


class AnswerLog:
    """The answers of an unfinished evaluation, in `<folder>/answers/`: a file for each process, a line for each answer.

    Answers with another identity (what they depend on) are discarded.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], process: int) -> None:
        self.folder, self.identity = folder / "answers", identity
        self.path = self.folder / f"{process}.jsonl"

    def begin(self, anew: bool) -> list[str]:
        """Discard the answers of another evaluation, or all of them; only the first process calls this.

        Returns:
            The keys in which the discarded evaluation differs.
        """
        return begin_work(self.folder, self.identity, anew)

    def read(self) -> dict[str, str]:
        """Read all answers so far, of all processes, by the ids of their questions; ignore incomplete lines."""
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
        """Append answers, given by the ids of their questions."""
        lines = "".join(json.dumps([identity, text]) + "\n" for identity, text in answers.items())
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")  # after an incomplete line
            file.write(lines)

    def close(self) -> None:
        """Remove the answers, which the results now contain."""
        shutil.rmtree(self.folder, ignore_errors=True)
