"""Batched, left-padded greedy answers equal answers one by one."""

import json
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.evaluation import evaluator as generation
from cal_cli.evaluation.evaluator import generate_answers, make_batches
from cal_cli.evaluation.metrics import Question
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import BASE
from tests.cal import cal


def ask(number, picture=None, text="what is it? "):
    def images():
        return [] if picture is None else [Image.new("RGB", (48, 48), (picture * 40, 90, 10))]

    name = None if picture is None else f"p{picture}"
    return Question(f"q{number}", name, ("" if picture is None else "<image>\n") + text * (number + 1), [], images)


@pytest.fixture
def questions():
    """Three about one picture, two about another, two about none."""
    return [ask(0, 1), ask(1, 2), ask(2, 1), ask(3), ask(4, 2), ask(5, 1), ask(6)]


def test_batches_answer_as_single_questions_do(model, processor, questions):
    model.eval()
    together = generate_answers(model, processor, questions, batch_size=7, max_new_tokens=8)
    alone = {place: generate_answers(model, processor, [one], 1, 8)[0] for place, one in enumerate(questions)}
    assert together == alone
    assert len(set(together.values())) > 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 99)), max_size=60), st.integers(1, 8))
def test_batches_hold_every_question_once_and_no_picture_twice(asked, batch_size):
    questions = [ask(0, picture or None) for picture, _ in asked]
    lengths = [length for _, length in asked]
    groups = make_batches(questions, lengths, batch_size)
    places = [place for group in groups for batch in group for place in batch]
    assert sorted(places) == list(range(len(asked)))
    assert all(len(batch) <= batch_size for group in groups for batch in group)
    pictures = [{questions[p].image_name for batch in group for p in batch} - {None} for group in groups]
    assert sum(map(len, pictures)) == len(set().union(*pictures))
    longest = [max(lengths[p] for batch in group for p in batch) for group in groups]
    assert longest == sorted(longest, reverse=True)


def test_a_batch_that_does_not_fit_is_halved(model, processor, questions, monkeypatch):
    """Memory is made to fail for more than two questions, as a GPU does, by torch's own error."""
    whole = generate_answers(model.eval(), processor, questions, 7, 4)
    generate, sizes = model.generate, []

    def short_of_memory(**batch):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return generate(**batch)

    monkeypatch.setattr(model, "generate", short_of_memory)
    assert generate_answers(model, processor, questions, 7, 4) == whole
    assert max(sizes) == 7 and sum(size for size in sizes if size <= 2) == 7

    monkeypatch.setattr(
        generation, "answer_questions", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
    )
    with pytest.raises(InputError, match="does not fit into memory, even alone"):
        generate_answers(model, processor, questions[:1], 1, 4)


def test_answers_are_kept_batch_by_batch(model, processor, questions):
    kept = []
    answers = generate_answers(model, processor, questions, 3, 1, keep=kept.append)
    assert [len(found) for found in kept] == [1, 3, 3]  # the longest; one picture's; the other's and one without
    assert {place: text for found in kept for place, text in found.items()} == answers


def test_what_a_checkpoint_imposes_on_its_answers_is_reported(tmp_path):
    """A penalty is kept, as `generate` keeps it, and named; beams are not used, because answers are greedy."""
    words = ("benchmark.n=4", "benchmark.families=[captions]", "checkpoint=other")
    for name, values in (("penalty", {"repetition_penalty": 5.0}), ("beams", {"num_beams": 4}), ("plain", {})):
        folder = tmp_path / name / "other"
        shutil.copytree(BASE, folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        told = cal("eval", *words, folder=tmp_path / name).stdout
        results = json.loads((tmp_path / name / "runs/eval/scenes/other/results.json").read_text())
        assert ("changes its greedy answers: repetition_penalty=5.0" in told) == (name == "penalty")
        assert results["generation"].get("repetition_penalty") == values.get("repetition_penalty")
    answers = {
        name: (tmp_path / name / "runs/eval/scenes/other/predictions.jsonl").read_text()
        for name in ("penalty", "beams", "plain")
    }
    assert answers["beams"] == answers["plain"] != answers["penalty"]


def test_a_checkpoint_without_a_chat_template_is_refused(tmp_path):
    shutil.copytree(BASE, tmp_path / "other", ignore=shutil.ignore_patterns("chat_template*"))
    result = cal("eval", "checkpoint=other", "benchmark.n=1", folder=tmp_path, check=False)
    assert result.returncode == 2 and "checkpoint=other: it has no chat template" in result.stderr


def test_answers_end_where_the_chat_template_ends_them(tmp_path):
    """A checkpoint whose generation_config.json does not know the end token would write on after its answers."""
    shutil.copytree(BASE, tmp_path / "other")
    path = tmp_path / "other/generation_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "eos_token_id": None}))
    words = ("benchmark.n=4", "benchmark.families=[questions]", "benchmark.max_new_tokens=40")
    told = cal("eval", "checkpoint=other", *words, folder=tmp_path).stdout
    assert "answers end at </s> too, as in the chat template: generation_config.json has no such eos_token_id" in told
    assert "answers end at" not in cal("eval", "checkpoint=tiny", *words, folder=tmp_path).stdout
    answers = [(tmp_path / f"runs/eval/scenes/{name}/predictions.jsonl").read_text() for name in ("other", "tiny")]
    assert answers[0] == answers[1]
