"""`cal eval`: answers of a checkpoint, or of every run of a folder, to a benchmark's questions, and their scores."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from cal_cli.config import build, typed
from cal_cli.data.collator import to_messages
from cal_cli.errors import InputError
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.generation import generate_answers
from cal_cli.files import device_name, versions, write_whole
from cal_cli.models.load import load_model, place
from cal_cli.runs import find_checkpoints, result_folder


@dataclass
class EvalConfig:
    """The types of `conf/eval.yaml`; what each key means stands there."""

    benchmark: Any
    checkpoint: str | None
    batch_size: int
    force: bool


def evaluate(config: DictConfig) -> None:
    """Evaluate every checkpoint that `checkpoint=` means and print a table.

    Raises:
        InputError: a wrong value, or no checkpoint is found.
    """
    settings = typed(config, EvalConfig)
    if settings.batch_size < 1:
        raise InputError(f"batch_size={settings.batch_size}: must be at least 1")
    checkpoints = find_checkpoints(settings.checkpoint)
    benchmark: Benchmark = build(config, "benchmark")
    console = Console(soft_wrap=True, highlight=False)
    table = Table(
        "checkpoint",
        "metric",
        "value",
        "95 % interval",
        title=f"{benchmark.name}, {benchmark.n} pictures of the {benchmark.split} split",
    )
    for checkpoint in checkpoints:
        folder = result_folder(checkpoint, "eval", benchmark.name)
        known = read_results(folder, config)
        if known and not settings.force:
            console.print(f"{folder}: already evaluated; force=true repeats it")
        else:
            known = evaluate_checkpoint(checkpoint, benchmark, settings.batch_size, folder, config, console)
        name = checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name
        for metric, found in known["metrics"].items():
            low, high = found["ci95"]
            table.add_row(name, metric.replace("_", " "), f"{found['value']:.3f}", f"{low:.3f} to {high:.3f}")
            name = ""
        table.add_section()
    table.caption = "intervals over the pictures"
    console.print(table)


def read_results(folder: Path, config: DictConfig) -> dict | None:
    """Results already there for the same benchmark settings, else None."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    return results if results["settings"] == OmegaConf.to_container(config.benchmark) else None


def evaluate_checkpoint(
    checkpoint: Path, benchmark: Benchmark, batch_size: int, folder: Path, config: DictConfig, console: Console
) -> dict:
    """Answer, score and write `results.json` and `predictions.jsonl` into `folder`; return the results."""
    model, processor = load_model(str(checkpoint))
    model = place(model).eval()
    asked = benchmark.questions
    items: list[dict[str, Any]] = [{"image": question.image, "question": question.question} for question in asked]
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(str(checkpoint), total=len(items))
            answers = generate_answers(
                model, processor, items, batch_size, benchmark.max_new_tokens, lambda done: bar.advance(task, done)
            )
    else:
        answers = generate_answers(model, processor, items, batch_size, benchmark.max_new_tokens)
    scores = [benchmark.score(question, answer) for question, answer in zip(asked, answers, strict=True)]
    predictions = [
        {"id": q.id, "question": q.question, "prediction": answer, "answers": q.answers, "score": score}
        for q, answer, score in zip(asked, answers, scores, strict=True)
    ]
    messages = to_messages([{"from": "human", "value": items[0]["question"]}], items[0]["image"])
    results = {
        "benchmark": benchmark.name,
        "split": benchmark.split,
        "n": benchmark.n,
        "metrics": benchmark.metrics(asked, scores),
        "checkpoint": str(checkpoint),
        "prompt": processor.apply_chat_template(messages, add_generation_prompt=True),
        "generation": {"do_sample": False, "max_new_tokens": benchmark.max_new_tokens, "batch_size": batch_size},
        "settings": OmegaConf.to_container(config.benchmark),
        "versions": versions(),
        "device": device_name(),
    }
    write_whole(folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in predictions))
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")
    return results
