"""Questions per second on the tiny model: `cal eval`'s batches, and the pipeline of `transformers`, one by one."""

import time
from functools import partial
from typing import Any

from rich.console import Console
from transformers import pipeline

from cal_cli.bench.steps import take_turns
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
    questions, tokens = benchmark.questions, benchmark.max_new_tokens
    answers: dict[str, list[str]] = {}

    def measure(way: str) -> float:
        start = time.perf_counter()
        if way == "cal":
            found = generate_answers(model, processor, questions, BATCH, tokens)
            answers[way] = [found[place] for place in range(len(questions))]
        else:
            answers[way] = [ask_pipeline(ask, question, tokens) for question in questions]
        return len(questions) / (time.perf_counter() - start)

    turns = take_turns({way: partial(measure, way) for way in NAMES}, repeats)
    rounds = list(track_items(turns, "measuring", console, repeats))
    return {way: [rates[way] for rates in rounds] for way in NAMES}, answers["cal"] == answers["pipeline"]


def ask_pipeline(ask: Any, question: Question, max_new_tokens: int) -> str:
    """Return the pipeline's greedy answer to one question."""
    messages = to_messages(make_turns(question), question.images())
    (found,) = ask(
        text=[messages], return_full_text=False, generate_kwargs={"do_sample": False, "max_new_tokens": max_new_tokens}
    )
    return (found[0] if isinstance(found, list) else found)["generated_text"].strip()
