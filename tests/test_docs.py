"""The examples of docs/your_trainer.md run as they are printed, at most 15 lines each."""

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image

from cal_cli.data.collator import Collator
from cal_cli.toy.model import load_tiny

PAGE = (Path(__file__).parent.parent / "docs" / "your_trainer.md").read_text()
EXAMPLES = re.findall(r"## ([^\n]*)\n(?:(?!## ).)*?```python\n(.*?)```", PAGE, re.DOTALL)


def prompt_dataset(world):
    rows = []
    for sample in (world[index] for index in range(len(world))):
        if sample["image"] is not None:
            question, answer = (turn["value"] for turn in sample["conversations"][:2])
            prompt = [{"role": "user", "content": question.replace("<image>", "").strip()}]
            completion = [{"role": "assistant", "content": answer}]
            rows.append({"image": sample["image"], "prompt": prompt, "completion": completion})
    return Dataset.from_list(rows).cast_column("image", Image())


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_the_example_trains(title, code, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = load_tiny()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    collate = Collator(processor)
    names = {"model": model, "processor": processor, "dataset": world, "prompt_dataset": prompt_dataset(world)}
    names["loader"] = torch.utils.data.DataLoader(world, batch_size=4, collate_fn=collate)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 15
    exec(compile(code, title, "exec"), names)
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in moved


def test_there_is_an_example_for_each_loop():
    assert [title.split(",")[0] for title, _ in EXAMPLES] == [
        "Plain PyTorch",
        "accelerate",
        "transformers.Trainer",
        "trl.SFTTrainer",
    ]
