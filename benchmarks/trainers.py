"""Tokens per second of whole training loops on the tiny model: `CALTrainer`, and `trl.SFTTrainer` with its collator.

Both read the same captions and PNG files, in batches of 48, with AdamW in float32 and without gradient checkpointing.
TRL is needed: pip install 'cal_cli[trl]'.

    python benchmarks/trainers.py --steps 20 --repeats 3
"""

import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from transformers import Trainer, TrainerCallback, TrainingArguments

from cal_cli.bench.steps import take_turns
from cal_cli.commands.bench import format_ratio
from cal_cli.data.collator import Collator
from cal_cli.data.llava_json import load_llava_json
from cal_cli.objective import ContrastiveAlignmentLoss, CrossEntropyLoss
from cal_cli.runtime.console import make_console, make_table, track_items
from cal_cli.runtime.files import write_whole
from cal_cli.statistics.bootstrap import median_ratio
from cal_cli.toy.model import load_tiny
from cal_cli.toy.world import make_scenes
from cal_cli.training.trainer import CALTrainer

NAMES = {"trl": "trl.SFTTrainer, CE", "ce": "CALTrainer, CE", "cal": "CALTrainer, CAL"}
BATCH = 48


class StepTimes(TrainerCallback):
    """Record the time at which each optimizer step ends, in seconds."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


def main(steps: Annotated[int, typer.Option(min=2)] = 40, repeats: int = 15) -> None:
    """Print the tokens per second, without padding, of each of `NAMES`, in turns.

    Time is measured from the end of a round's first step to that of its last.

    Args:
        steps: optimizer steps of a round.
        repeats: rounds; in each round every trainer takes its turn.
    """
    console = make_console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_scenes(n=steps * BATCH, text_only_share=0.0, families=["captions"])
        for entry in world.entries:
            (folder / entry["image"]).parent.mkdir(parents=True, exist_ok=True)
            world.open_image(entry["image"]).save(folder / entry["image"])
        write_whole(folder / "data.json", json.dumps(world.entries))
        data = load_llava_json(str(folder / "data.json"))
        collate = Collator(load_tiny()[1])
        batches = (range(start, start + BATCH) for start in range(0, len(data), BATCH))
        tokens = sum(int(collate([data[i] for i in batch])["attention_mask"].sum()) for batch in batches)

        def measure(way: str) -> float:
            trainer, times = make_trainer(way, data, folder, steps), StepTimes()
            trainer.add_callback(times)
            trainer.train()
            return tokens * (steps - 1) / steps / (times.ends[-1] - times.ends[0])

        turns = take_turns({way: partial(measure, way) for way in NAMES}, repeats)
        rounds = list(track_items(turns, "measuring", console, repeats))
    rates = {way: [rates[way] for rates in rounds] for way in NAMES}
    table = make_table("trainer", "tokens/s", "rate / trl", title=f"the tiny model, {steps} steps per round")
    for way, values in rates.items():
        ratio = None if way == "trl" else median_ratio(values, rates["trl"])
        table.add_row(NAMES[way], f"{median(values):,.0f}", format_ratio(ratio))
    console.print(table)


def make_trainer(way: str, data: Any, folder: Path, steps: int) -> Trainer:
    """Make one of the trainers `NAMES` for a fresh copy of the shipped base."""
    model, processor = load_tiny()
    arguments: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "bf16": False,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "non_padding",
    }
    if way == "trl":
        from datasets import Dataset, Image
        from trl import SFTConfig, SFTTrainer

        rows = []
        for entry in data.entries:
            question, answer = (turn["value"] for turn in entry["conversations"])
            rows.append(
                {
                    "image": str(folder / entry["image"]),
                    "prompt": [{"role": "user", "content": question.replace("<image>", "").strip()}],
                    "completion": [{"role": "assistant", "content": answer}],
                }
            )
        return SFTTrainer(
            model=model,
            args=SFTConfig(**arguments, max_length=None, gradient_checkpointing=False),
            train_dataset=Dataset.from_list(rows).cast_column("image", Image()),
            processing_class=processor,
        )
    return CALTrainer(
        model=model,
        args=TrainingArguments(**arguments),
        objective=CrossEntropyLoss() if way == "ce" else ContrastiveAlignmentLoss(),
        train_dataset=data,
        data_collator=Collator(processor),
    )


if __name__ == "__main__":
    typer.run(main)
