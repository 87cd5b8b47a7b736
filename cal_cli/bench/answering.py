"""Questions a second of `cal eval`'s batches on the tiny model, and of the library's pipeline asked one by one."""

import time
from typing import Any

from rich.console import Console
from rich.progress import track
from transformers import pipeline

from cal_cli.data.collator import to_messages
from cal_cli.evaluation.generation import generate_answers, turns
from cal_cli.evaluation.questions import Question
from cal_cli.evaluation.scenes import scenes_benchmark
from cal_cli.models.load import load_model, place

NAMES = {"pipeline": "transformers' pipeline, one by one", "cal": "cal eval, batches of 128"}
BATCH = 128


def answer_rates(scenes: int, repeats: int, console: Console) -> tuple[dict[str, list[float]], bool]:
    """Questions a second of each of `NAMES`, one number a round, opening the pictures included; they take turns.

    Returns:
        The rates, and whether both gave the same answers.
    """
    model, processor = load_model()
    model = place(model).eval()
    benchmark = scenes_benchmark(n=scenes)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    answers: dict[str, list[str]] = {}
    for number in track(range(repeats + 1), "measuring", console=console, disable=not console.is_terminal):
        for way in list(NAMES)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            if way == "cal":
                found = generate_answers(model, processor, benchmark.questions, BATCH, benchmark.max_new_tokens)
                answers[way] = [found[place] for place in range(len(benchmark.questions))]
            else:
                answers[way] = [piped(ask, question, benchmark.max_new_tokens) for question in benchmark.questions]
            if number:  # the first round warms up
                rates[way].append(len(benchmark.questions) / (time.perf_counter() - start))
    return rates, answers["cal"] == answers["pipeline"]


def piped(ask: Any, question: Question, max_new_tokens: int) -> str:
    """The pipeline's greedy answer to one question."""
    messages = to_messages(turns(question), question.images())
    (found,) = ask(
        text=[messages], return_full_text=False, generate_kwargs={"do_sample": False, "max_new_tokens": max_new_tokens}
    )
    return (found[0] if isinstance(found, list) else found)["generated_text"].strip()
