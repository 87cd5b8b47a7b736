"""Questions per second on the tiny model: `cal eval`'s batches, and the pipeline of `transformers`, one by one.

python benchmarks/answering.py --scenes 32 --repeats 9
"""

import time
from functools import partial
from statistics import median
from typing import Any

import typer
from transformers import pipeline

from cal_cli.bench.steps import take_turns
from cal_cli.commands.bench import format_ratio
from cal_cli.data.collator import to_messages
from cal_cli.evaluation.evaluator import generate_answers, make_turns
from cal_cli.evaluation.metrics import Question
from cal_cli.models.load import get_device
from cal_cli.runtime.console import make_console, make_table, track_items
from cal_cli.statistics.bootstrap import median_ratio
from cal_cli.toy.model import load_tiny
from cal_cli.toy.world import make_benchmark

NAMES = {"pipeline": "transformers' pipeline, one by one", "cal": "cal eval, batches of 128"}
BATCH = 128


def main(scenes: int = 32, repeats: int = 15) -> None:
    """Print the questions per second of each of `NAMES`, in turns, with images opened each time.

    Args:
        scenes: images of each task, with a question each.
        repeats: rounds; in each round both take their turn.
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
    console = make_console()
    rounds = list(track_items(turns, "measuring", console, repeats))
    rates = {way: [rates[way] for rates in rounds] for way in NAMES}
    table = make_table("way", "questions/s", "rate / pipeline", title=f"{len(questions)} questions per round")
    for way, values in rates.items():
        ratio = None if way == "pipeline" else median_ratio(values, rates["pipeline"])
        table.add_row(NAMES[way], f"{median(values):,.0f}", format_ratio(ratio))
    console.print(table)
    console.print("the same answers" if answers["cal"] == answers["pipeline"] else "not all answers are the same")


def ask_pipeline(ask: Any, question: Question, max_new_tokens: int) -> str:
    """Return the pipeline's greedy answer to one question."""
    messages = to_messages(make_turns(question), question.images())
    (found,) = ask(
        text=[messages], return_full_text=False, generate_kwargs={"do_sample": False, "max_new_tokens": max_new_tokens}
    )
    return (found[0] if isinstance(found, list) else found)["generated_text"].strip()


if __name__ == "__main__":
    typer.run(main)
