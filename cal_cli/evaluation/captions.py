"""CIDEr of captions with `pycocoevalcap`, whose tokenizer is a Java program."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from cal_cli.evaluation.metrics import Metric, Parts, Sums, divide
from cal_cli.evaluation.questions import Question
from cal_cli.runtime.errors import InputError


class Captions(Metric):
    """CIDEr (Vedantam et al. 2015): n-grams shared with human captions, weighted by rarity; the mean over pictures.

    The rarity of an n-gram is computed from the human captions of all pictures: with `limit` it is a different measure.
    The interval treats the rarities as fixed.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check_requirements(self) -> None:
        if find_spec("pycocoevalcap") is None:
            raise InputError("CIDEr needs pycocoevalcap: pip install 'cal_cli[caption]'")
        if shutil.which("java") is None:
            raise InputError(
                "CIDEr needs Java, with which pycocoevalcap splits captions into words, and there is no `java` on the "
                "PATH: install it (on Debian `apt install default-jre-headless`)"
            )

    def check_question(self, question: Question) -> None:
        """Accept any captions: to score one of them says little, and takes a second."""

    def score(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        self.check_requirements()
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        with tempfile.TemporaryFile("w+") as log, redirect_errors(log.fileno()):
            human = tokenizer.tokenize({n: [to_one_line(text) for text in q.answers] for n, q in enumerate(questions)})
            given = tokenizer.tokenize({n: [to_one_line(text)] for n, text in enumerate(predictions)})
            log.seek(0)
            if not len(human) == len(given) == len(questions):
                raise InputError(f"CIDEr: pycocoevalcap's Java program failed: {log.read().strip()[-200:]}")
        _, scores = Cider().compute_score(human, given)
        return [{"score": float(score), "n": 1.0} for score in scores]

    def compute(self, sums: Sums) -> dict[str, Any]:
        return {self.name: divide(sums["score"], sums["n"])}


@contextmanager
def redirect_errors(file: int) -> Iterator[None]:
    """Redirect the standard error of this process and of the programs it starts to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def to_one_line(caption: str) -> dict[str, str]:
    """Convert a caption for the tokenizer, which reads one line for each caption: a line break would shift the rest."""
    return {"caption": " ".join(caption.strip().splitlines())}
