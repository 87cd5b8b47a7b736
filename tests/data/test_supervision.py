"""Supervised tokens of real processors: as the template marks them, or found where it marks nothing; written out."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ByT5Tokenizer, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cal_cli.data.collator import IGNORED, Collator, to_messages
from cal_cli.data.supervision import MARK
from cal_cli.models.llava import add_image_token
from cal_cli.models.llava_templates import make_chat_template
from cal_cli.runtime.errors import InputError
from tests.models.parts import llama_tokenizer
from tests.models.published_kinds import gemma3, smolvlm

KINDS = {"smolvlm": smolvlm, "gemma3": gemma3}
# what the families' own formats have as the assistant's words with their end
ANSWERS = {
    "smolvlm": [" a red ring.<end_of_utterance>", " top left\nand blue<end_of_utterance>", " x<end_of_utterance>"],
    "gemma3": ["a red ring.<end_of_turn>", "top left\nand blue<end_of_turn>", "x<end_of_turn>"],
}


@pytest.fixture(scope="module")
def kinds():
    return {name: make() for name, make in KINDS.items()}


@pytest.fixture(scope="module")
def llava():
    """LLaVA's processor with a tokenizer of Llama's kind."""
    tokenizer = llama_tokenizer()
    add_image_token(tokenizer)
    side = {"height": 28, "width": 28}
    images = LlavaImageProcessorPil(size={"shortest_edge": 28}, crop_size=side)
    template = make_chat_template("v1", tokenizer)
    return LlavaProcessor(
        images, tokenizer, patch_size=7, vision_feature_select_strategy="full", chat_template=template
    )


def sample(*values, images=()):
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "s", "image": list(images) or None, "conversations": turns}


def answers(processor, batch, row):
    """The runs of supervised tokens of a row, as text."""
    runs, before = [], False
    for token, label in zip(batch["input_ids"][row].tolist(), batch["labels"][row].tolist(), strict=True):
        supervised = label != IGNORED
        assert not supervised or label == token
        if supervised and not before:
            runs.append([])
        if supervised:
            runs[-1].append(token)
        before = supervised
    return [processor.tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", KINDS)
def test_answers_of_templates_that_mark_none_beside_pictures_of_any_length(kinds, name):
    wide, tall = Image.new("RGB", (64, 24), "red"), Image.new("RGB", (20, 64), "blue")
    samples = [
        sample("<image>\nwhat is it?", "a red ring.", "where?\n", "top left\nand blue", images=[wide]),
        sample("what?", "x"),
        sample("<image>\nwhat?", "x", "and <image> here?", "x", images=[tall, wide]),
    ]
    processor, told = kinds[name], ANSWERS[name]
    batch = Collator(processor)(samples)
    assert answers(processor, batch, 0) == told[:2]
    assert answers(processor, batch, 1) == told[2:]
    assert answers(processor, batch, 2) == told[2:] * 2
    alone = Collator(processor)([samples[1]])  # text alone, for which processors tell less
    assert answers(processor, alone, 0) == told[2:]
    assert "offset_mapping" not in batch and "text_replacement_offsets" not in batch


@pytest.mark.parametrize("name", KINDS)
def test_all_that_runs_along_the_tokens_is_cut_at_max_length(kinds, name):
    whole = Collator(kinds[name])([sample("what?", "a red ring in the top left")])
    length = whole["input_ids"].shape[1]
    cut = Collator(kinds[name], max_length=length - 4)([sample("what?", "a red ring in the top left")])
    for key, value in whole.items():
        assert torch.equal(cut[key], value[:, : length - 4]), key


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=20).map(lambda text: f"x{text}x"), min_size=2, max_size=6))
def test_marks_are_followed_token_by_token(llava, turns):
    turns = turns[: len(turns) // 2 * 2]
    told = sample(*(turn.replace("<", "(") for turn in turns))
    rendered = llava.tokenizer.apply_chat_template(
        to_messages(told["conversations"], None),
        chat_template=llava.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    batch = Collator(llava)([told])
    assert batch["input_ids"][0].tolist() == rendered["input_ids"]
    assert (batch["labels"][0] != IGNORED).tolist() == [bool(mask) for mask in rendered["assistant_masks"]]


def test_without_its_marks_a_template_supervises_the_same(llava, processor):
    picture = Image.new("RGB", (48, 48))
    samples = [
        sample("<image>\nwhat is it?", "a red ring.", "where?", "naïve 日本, top left", images=[picture]),
        sample("hi", "yes"),
        sample("what? <image>", "no", images=[picture]),
    ]
    for marked in (llava, processor):
        plain = copy.copy(marked)
        plain.chat_template = MARK.sub("", marked.chat_template).replace("{%- endgeneration -%}", "")
        plain.chat_template = plain.chat_template.replace("{% endgeneration %}", "")
        assert "generation -" not in plain.chat_template and marked.chat_template != plain.chat_template
        one, two = Collator(marked)(samples), Collator(plain)(samples)
        assert torch.equal(one["labels"], two["labels"]) and (one["labels"] != IGNORED).any(dim=1).all()


def test_several_pictures_of_a_turn_each_have_their_tokens_or_the_template_is_refused(llava):
    picture = Image.new("RGB", (28, 28))
    two = sample("<image> or <image>?", "the first", images=[picture, picture])
    batch = Collator(llava)([two])
    assert (batch["input_ids"] == llava.image_token_id).sum() == 2 * 16
    assert answers(llava, batch, 0) == ["the first</s>"]
    one_alone = copy.copy(llava)
    one_alone.chat_template = "{% for m in messages %}{{ '<image>x' if loop.first else 'y' }}{% endfor %}"
    with pytest.raises(InputError, match=r"refuses the samples s: .* 1 <image> tokens and 2 images"):
        Collator(one_alone)([two])


def test_a_tokenizer_that_tells_no_offsets_is_refused(llava):
    tokenizer = ByT5Tokenizer()
    add_image_token(tokenizer)
    template = make_chat_template("v1", tokenizer)
    slow = LlavaProcessor(llava.image_processor, tokenizer, patch_size=7, chat_template=template)
    with pytest.raises(InputError, match="ByT5Tokenizer does not return the offsets of its tokens"):
        Collator(slow)([sample("a", "b")])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.role if loop.last else 'x' }}{% endfor %}", "renders a turn differently"),
        ("{{ raise_exception('no pictures, please') }}", "refuses the conversation .no pictures, please."),
        ({"tools": "x"}, "has no chat template"),
    ],
)
def test_templates_in_which_answers_cannot_be_found(processor, template, said):
    other = copy.copy(processor)
    other.chat_template = template
    with pytest.raises(InputError, match=said):
        Collator(other)([sample("a", "b", "c", "d")])
