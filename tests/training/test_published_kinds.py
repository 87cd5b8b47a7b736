"""`cal train model=hf` and `cal eval` on kinds of models other than LLaVA, with chat templates like the hub's."""

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cal import cal
from tests.models.published_kinds import save


@pytest.mark.parametrize("name", ["smolvlm", "gemma3"])
def test_a_model_of_another_kind_trains_and_answers(name, caption_files, tmp_path):
    model = save(name, tmp_path / name)
    words = ["model=hf", f"model.path={model}", *caption_files, "batch_size=4", "max_steps=3", "logging_steps=1"]
    told = cal("train", *words, "launch.processes=1", "name=kinds", "learning_rate=0.01", folder=tmp_path).stdout
    assert "will not learn to stop" not in told
    (run,) = (path.parent for path in tmp_path.glob("runs/train/kinds/*/summary.json"))
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [log["loss"] for log in logs if "loss" in log]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(log["delta_mean"] != 0 for log in logs if "delta_mean" in log)
    trained = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
    before = AutoModelForImageTextToText.from_pretrained(model).state_dict()
    assert any(not torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert AutoProcessor.from_pretrained(run / "checkpoint").chat_template
    cal("eval", f"checkpoint={run}", "benchmark.n=2", "benchmark.max_new_tokens=4", folder=tmp_path)
    assert json.loads((run / "eval/scenes/results.json").read_text())["n"] == 12


def test_a_template_of_one_s_own_is_a_file(caption_files, tmp_path):
    words = [
        "model=hf",
        f"model.path={save('gemma3', tmp_path / 'gemma3')}",
        *caption_files,
        "max_steps=1",
        "batch_size=4",
    ]
    words += ["launch.processes=1", "model.template=mine.jinja"]
    result = cal("train", *words, folder=tmp_path, check=False)
    assert result.returncode == 2 and "model.template=mine.jinja: there is no such file" in result.stderr
    (tmp_path / "mine.jinja").write_text("{% for m in messages %}{{ loop.index if loop.last else 'x' }}{% endfor %}")
    result = cal("train", *words, folder=tmp_path, check=False)
    assert result.returncode == 2 and "give model.template=<file>.jinja" in result.stderr
    (tmp_path / "mine.jinja").write_text(
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<start_of_image>{% elif message.role == 'assistant' %}"
        "{% generation %}{{ part.text }}{% endgeneration %}{% else %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    assert "will not learn to stop" in cal("train", *words, folder=tmp_path).stdout
