"""Evaluate one checkpoint on one benchmark: ask every question once, in any number of processes, and score."""

import hashlib
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console

from cal_cli.data.collator import to_messages
from cal_cli.evaluation.answer_log import AnswerLog
from cal_cli.evaluation.benchmark import IMAGE, Benchmark
from cal_cli.evaluation.generation import count_tokens, generate_answers, make_batches, make_turns
from cal_cli.evaluation.questions import Question
from cal_cli.evaluation.results import load_results, score_answers
from cal_cli.runtime.console import show_progress
from cal_cli.runtime.provenance import get_device_name, get_versions
from cal_cli.runtime.runs import get_run_name


def render_prompt(question: Question, processor: Any) -> str:
    """Render a question as the model reads it, with each image as its placeholder token."""
    images: list[Any] = [None] * question.question.count(IMAGE)
    return processor.apply_chat_template(to_messages(make_turns(question), images), add_generation_prompt=True)


def evaluate_checkpoint(
    model: Any,
    processor: Any,
    checkpoint: Path,
    name: str,
    benchmark: Benchmark,
    settings: dict[str, Any],
    folder: Path,
    batch_size: int,
    state: PartialState,
    console: Console,
    command: str,
    anew: bool = False,
) -> dict[str, Any]:
    """Let a model answer a benchmark's questions and score the answers; see `score_answers`.

    Answers of an interrupted evaluation with the same settings are used again.

    Args:
        model: in evaluation mode.
        processor: of the model.
        checkpoint: where they come from.
        name: of the benchmark.
        benchmark: its questions and metric.
        settings: what the results depend on, for the comparison with earlier results.
        folder: of the results.
        batch_size: questions answered at once by a device.
        state: the processes that share the questions.
        console: for messages and progress.
        command: the command line that regenerates the results.
        anew: discard earlier answers.
    """
    asked = benchmark.questions
    prompts = [render_prompt(question, processor) for question in asked]
    prompt_hash = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    identity = settings | {
        "checkpoint": str(checkpoint),
        "prompts": prompt_hash,
        "data": benchmark.source,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": get_versions(),
    }
    log = AnswerLog(folder, identity, state.process_index)
    if state.is_main_process:
        differing = log.begin(anew)
        if differing:
            console.print(f"{folder}: starting again; the earlier answers differ in {', '.join(differing)}")
    state.wait_for_everyone()
    answers = log.read()
    state.wait_for_everyone()  # no process writes before all have read
    groups = make_batches(asked, count_tokens(asked, processor), batch_size)
    missing = [[batch for batch in group if any(asked[place].id not in answers for place in batch)] for group in groups]
    mine = [group for group in missing if group][state.process_index :: state.num_processes]
    if answers:
        console.print(f"{folder}: continuing after {len(answers)} of {len(asked)} questions")
    new: dict[str, str] = {}
    total = sum(len(batch) for group in mine for batch in group)
    with show_progress(f"{get_run_name(checkpoint)}, {name}", total, console) as advance:

        def keep(found: dict[int, str]) -> None:
            by_id = {asked[place].id: text for place, text in found.items()}
            log.add(by_id)
            new.update(by_id)
            advance(len(found))

        generate_answers(model, processor, asked, batch_size, benchmark.max_new_tokens, mine, keep)
    shares = gather_object([new])
    assert len(set().union(*shares)) == sum(map(len, shares))  # no question was answered by two processes
    for found in shares:
        answers |= found
    texts = [answers[question.id] for question in asked]
    if not state.is_main_process:
        state.wait_for_everyone()
        return load_results(folder, settings) or {}
    facts = {
        "checkpoint": str(checkpoint),
        "prompt": prompts[0],
        "prompts_sha256": prompt_hash,
        "generation": {
            "do_sample": False,
            "max_new_tokens": benchmark.max_new_tokens,
            "batch_size": batch_size,
            "dtype": identity["dtype"],
        },
        "settings": settings,
        "device": get_device_name(),
        "processes": state.num_processes,
        "command": command,
    }
    results = score_answers(name, benchmark, texts, facts, folder)
    log.close()
    state.wait_for_everyone()
    return results
