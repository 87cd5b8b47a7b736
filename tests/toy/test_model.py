"""The shipped model: small, readable by the library alone, aligned."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_cli.evaluation.generation import generate_answers
from cal_cli.runtime.errors import InputError
from cal_cli.toy.benchmark import make_benchmark
from cal_cli.toy.model import BASE, TinyModel, make_random_model
from cal_cli.toy.scenes import COLOURS, PLACES, SHAPES


@pytest.fixture(scope="module")
def base():
    return AutoModelForImageTextToText.from_pretrained(BASE).eval(), AutoProcessor.from_pretrained(BASE)


def test_it_is_small_and_in_safetensors():
    assert sum(path.stat().st_size for path in BASE.iterdir()) < 8e6
    assert (BASE / "model.safetensors").exists()
    assert not [path for path in BASE.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_at_most_three_million_parameters(base):
    assert type(base[0]).__name__ == "LlavaForConditionalGeneration"
    assert sum(p.numel() for p in base[0].parameters()) <= 3e6


def test_the_shipped_base_has_the_architecture_and_tokenizer_of_its_recipe(base):
    model, processor = make_random_model(seed=0)
    assert {name: p.shape for name, p in base[0].named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    assert base[1].tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert base[1].chat_template == processor.chat_template


def test_each_word_of_the_world_is_one_token(base):
    words = {*COLOURS, *SHAPES, *(word for place in PLACES for word in place.split())}
    assert all(len(base[1].tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1 for word in words)


def test_the_base_sees_more_than_chance_on_scenes_it_never_saw(base):
    """A caption's first object is right far more often than the 1 in 30 that guessing colour and shape gives."""
    asked = [question for question in make_benchmark(n=64).questions if question.tags["kind"] == "caption"]
    found = generate_answers(*base, asked, 64, 40)
    answers = [found[place] for place in range(len(asked))]
    right = sum(a.split(" in ")[0] == q.answers[0].split(" in ")[0] for a, q in zip(answers, asked, strict=True))
    assert right > 64 / 3


def test_from_scratch_is_fixed_by_the_seed():
    one, other, third = (make_random_model(seed)[0].lm_head.weight for seed in (0, 0, 1))
    assert one.equal(other)
    assert not one.equal(third)


def test_what_cannot_be_loaded_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json there"):
        TinyModel(str(tmp_path))
    with pytest.raises(InputError, match="exclude each other"):
        TinyModel(str(tmp_path), from_scratch=True)


def test_a_user_s_words_fit(base):
    text = "Ein Gürteltier, 3½ € teuer!"
    tokenizer = base[1].tokenizer
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
