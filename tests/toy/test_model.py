"""The shipped model: small, readable by the library alone, aligned."""

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_cli.evaluation.evaluator import generate_answers
from cal_cli.runtime.errors import InputError
from cal_cli.toy.families import FAMILIES
from cal_cli.toy.families.objects import WORDS_OF
from cal_cli.toy.materials import PHRASES
from cal_cli.toy.model import BASE, TinyModel, make_random_model
from cal_cli.toy.world import make_benchmark


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
    lists = (*WORDS_OF.values(), *PHRASES["lists"].values())
    listed = [word for words in lists for entry in words for word in entry.split()]
    assert [word for word in listed if len(base[1].tokenizer(f" {word}", add_special_tokens=False).input_ids) > 1] == []


def test_digits_are_tokens_of_their_own(base):
    assert base[1].tokenizer.tokenize("[12,345]") == ["[", "1", "2", ",", "3", "4", "5", "]"]


def test_a_new_projector_is_all_that_is_new(base):
    shipped = dict(base[0].named_parameters())
    first, again, other = (TinyModel(new_projector=True).load(seed)[0].state_dict() for seed in (1, 1, 2))
    changed = {name for name, value in shipped.items() if not torch.equal(value, first[name])}
    assert {name.split(".")[1] for name in changed} == {"multi_modal_projector"}
    weight = "model.multi_modal_projector.linear_1.weight"
    assert torch.equal(first[weight], again[weight]) and not torch.equal(first[weight], other[weight])
    halved = TinyModel(new_projector=True, dtype="bfloat16").load(1)[0]
    assert torch.equal(halved.state_dict()[weight], first[weight].bfloat16())
    assert first[weight].std() == pytest.approx(base[0].config.initializer_range, rel=0.05)


@pytest.mark.parametrize("more", [{"from_scratch": True}, {"projector": "runs/train/projector"}])
def test_a_new_projector_and_another_are_refused(more):
    with pytest.raises(InputError, match=r"new_projector=true excludes model\.projector and from_scratch"):
        TinyModel(new_projector=True, **more)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_aligned_in_every_family(base, family):
    """It answers on pictures that it never saw, far better than without looking."""
    benchmark = make_benchmark(n=64, families=[family])
    found = generate_answers(*base, benchmark.questions, 64, benchmark.max_new_tokens)
    texts = [found[place] for place in range(64)]
    blind = texts[len(texts) // 2 :] + texts[: len(texts) // 2]  # the answers to other questions of the family
    seen, guessed = (
        sum(part["score"] for part in benchmark.metric.score(benchmark.questions, said)) for said in (texts, blind)
    )
    assert seen > guessed + 10


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
