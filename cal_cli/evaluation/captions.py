"""CIDEr of captions, by `pycocoevalcap`, whose tokenizer is a Java program."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from cal_cli.errors import InputError
from cal_cli.evaluation.metrics import Metric, Parts, Sums, share
from cal_cli.evaluation.questions import Question


class Captions(Metric):
    """CIDEr (Vedantam et al. 2015): n-grams shared with people's captions, weighted by rarity, a mean over pictures.

    How rare an n-gram is follows from the people's captions of all pictures together: with `limit` it is another
    measure, and its interval takes the rarities as given.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def ready(self) -> None:
        if find_spec("pycocoevalcap") is None:
            raise InputError("CIDEr needs pycocoevalcap: pip install 'cal_cli[caption]'")
        if shutil.which("java") is None:
            raise InputError(
                "CIDEr needs Java, with which pycocoevalcap splits captions into words, and there is no `java` here: "
                "install one (on Debian `apt install default-jre-headless`)"
            )

    def parts(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        self.ready()
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        with tempfile.TemporaryFile("w+") as told, errors_in(told.fileno()):
            people = tokenizer.tokenize({n: [one_line(text) for text in q.answers] for n, q in enumerate(questions)})
            given = tokenizer.tokenize({n: [one_line(text)] for n, text in enumerate(predictions)})
            told.seek(0)
            if not len(people) == len(given) == len(questions):
                raise InputError(f"CIDEr: pycocoevalcap's Java program failed: {told.read().strip()[-200:]}")
        _, scores = Cider().compute_score(people, given)
        return [{"score": float(score), "n": 1.0} for score in scores]

    def values(self, sums: Sums) -> dict[str, Any]:
        return {self.name: share(sums["score"], sums["n"])}


@contextmanager
def errors_in(file: int) -> Iterator[None]:
    """Have what programs that we start write to the standard error go to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def one_line(caption: str) -> dict[str, str]:
    """A caption as the tokenizer takes it: it reads a line a caption, and any other line's end would shift the rest."""
    return {"caption": " ".join(caption.strip().splitlines())}
