"""Questions per second on the tiny model: `cal eval`'s batches, and the pipeline of `transformers`, one by one."""

import time
from typing import Any

from rich.console import Console
from transformers import pipeline

from cal_cli.data.collator import to_messages
from cal_cli.evaluation.generation import generate_answers, make_turns
from cal_cli.evaluation.questions import Question
from cal_cli.models.load import get_device
from cal_cli.runtime.console import track_items
from cal_cli.toy.benchmark import make_benchmark
from cal_cli.toy.model import load_tiny

NAMES = {"pipeline": "transformers' pipeline, one by one", "cal": "cal eval, batches of 128"}
BATCH = 128


def measure_answer_rates(scenes: int, repeats: int, console: Console) -> tuple[dict[str, list[float]], bool]:
    """Measure the questions per second of each of `NAMES`, in turns, with images opened each time.

    Returns:
        The rates, one for each round, and whether both gave the same answers.
    """
    model, processor = load_tiny()
    model = model.to(get_device()).eval()
    benchmark = make_benchmark(n=scenes)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    rates: dict[str, list[float]] = {name: [] for name in NAMES}
    answers: dict[str, list[str]] = {}
    for number in track_items(range(repeats + 1), "measuring", console):
        for way in list(NAMES)[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            if way == "cal":
                found = generate_answers(model, processor, benchmark.questions, BATCH, benchmark.max_new_tokens)
                answers[way] = [found[place] for place in range(len(benchmark.questions))]
            else:
                answers[way] = [
                    ask_pipeline(ask, question, benchmark.max_new_tokens) for question in benchmark.questions
                ]
            if number:  # the first round warms up
                rates[way].append(len(benchmark.questions) / (time.perf_counter() - start))
    return rates, answers["cal"] == answers["pipeline"]


def ask_pipeline(ask: Any, question: Question, max_new_tokens: int) -> str:
    """Return the pipeline's greedy answer to one question."""
    messages = to_messages(make_turns(question), question.images())
    (found,) = ask(
        text=[messages], return_full_text=False, generate_kwargs={"do_sample": False, "max_new_tokens": max_new_tokens}
    )
    return (found[0] if isinstance(found, list) else found)["generated_text"].strip()
