"""Masks: only the assistant's text and its end token are supervised, shown token by token."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import ByT5Tokenizer, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cal_cli.data.collator import IGNORED, MARK, Collator, to_messages
from cal_cli.data.sample import Bad
from cal_cli.models.llava import add_image_token, make_chat_template
from cal_cli.runtime.errors import InputError
from tests.models.parts import llama_tokenizer
from tests.models.published_kinds import gemma3, smolvlm


def sample(*values, image=False, images=(), identity="s"):
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    shown = Image.new("RGB", (48, 48)) if image else list(images) or None
    return {"id": identity, "image": shown, "conversations": turns}


def told(processor, batch, row=0):
    """Each token of a row as text with whether it is supervised, image and padding left out."""
    pairs = zip(batch["input_ids"][row].tolist(), batch["labels"][row].tolist(), strict=True)
    hidden = (processor.image_token_id, processor.tokenizer.pad_token_id)
    return [(processor.tokenizer.decode([token]), label != IGNORED) for token, label in pairs if token not in hidden]


def test_two_turns_token_by_token(processor):
    batch = Collator(processor)([sample("<image>\ndescribe the picture.", "a red ring.", "which?", "a", image=True)])
    prompt = ["<s>", "USER", ":", " ", "\n", "describe", " the", " picture", ".", " ASSISTANT", ":"]
    answer = [" a", " red", " ring", ".", "</s>"]
    assert told(processor, batch)[: len(prompt) + len(answer)] == [(t, False) for t in prompt] + [
        (t, True) for t in answer
    ]
    rest = told(processor, batch)[len(prompt) + len(answer) :]
    assert [token for token, supervised in rest if supervised] == [" a", "</s>"]
    assert "".join(token for token, supervised in rest if not supervised) == "USER: which? ASSISTANT:"


def test_labels_repeat_the_tokens_and_padding_is_never_supervised(processor):
    batch = Collator(processor)([sample("hi", "yes"), sample("hello there", "a much longer answer than the other")])
    supervised = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][supervised], batch["input_ids"][supervised])
    assert not supervised[batch["attention_mask"] == 0].any()
    assert "pixel_values" not in batch


@pytest.mark.parametrize(
    "text", ["naïve café 日本", "  spaces   kept ", "tabs\tand\nlines", "ends in USER: x ASSISTANT:", "x"]
)
def test_any_text_survives_the_round_trip(processor, text):
    batch = Collator(processor)([sample("what?", text)])
    ids = batch["labels"][0][batch["labels"][0] != IGNORED]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == " " + text
    assert ids[-1] == processor.tokenizer.eos_token_id


def test_sixteen_image_tokens_a_picture(processor):
    batch = Collator(processor)([sample("<image>\nx", "y", image=True), sample("x", "y")])
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [16, 0]
    assert batch["pixel_values"].shape == (1, 3, 64, 64)


def test_max_length_cuts_an_answer_but_neither_all_of_it_nor_the_image(processor):
    long = sample("<image>\nx", "a red ring in the top left and more", image=True, identity="long")
    whole = Collator(processor)([long])
    cut = Collator(processor, max_length=whole["input_ids"].shape[1] - 4)([long])
    assert torch.equal(cut["labels"], whole["labels"][:, :-4])
    with pytest.raises(InputError, match=r"sample long has no supervised token at max_length=23"):
        Collator(processor, max_length=23)([long])
    with pytest.raises(InputError, match=r"sample long is cut within its image at max_length=6"):
        Collator(processor, max_length=6)([long])
    with pytest.raises(InputError, match="sample 0, 1, 2, 3, 4 and 3 more has no supervised token at"):
        Collator(processor, max_length=23)([{**long, "id": number} for number in range(8)])


def test_ids_are_kept_on_demand(processor):
    samples = [sample("x", "y", identity="one"), sample("x", "y", identity="two")]
    assert Collator(processor, keep_ids=True)(samples)["id"] == ["one", "two"]
    assert "id" not in Collator(processor)(samples)


def test_bad_samples_are_left_out_and_named_or_refused(processor):
    good, silent = sample("x", "yes"), sample("<image>\n" + "x " * 60, "y", image=True, identity="silent")
    batch = Collator(processor, max_length=40, leave_out=True)([silent, good])
    assert batch["input_ids"].shape[0] == 1 and "pixel_values" not in batch
    assert [(bad.id, bad.problem) for bad in batch["bad"]] == [("silent", "has no supervised token")]
    assert "bad" not in Collator(processor, max_length=40, leave_out=True)([good])
    for collate, samples in (
        (Collator(processor, max_length=40), [silent, good]),
        (Collator(processor, max_length=40, leave_out=True), [silent]),
    ):
        with pytest.raises(InputError, match="sample silent has no supervised token at max_length=40"):
            collate(samples)
    stand_in = {**good, "bad": [Bad("gone", "no image")]}
    assert Collator(processor, leave_out=True)([stand_in, good])["bad"] == [Bad("gone", "no image")]
    with pytest.raises(InputError, match="sample gone: no image"):
        Collator(processor)([stand_in, good])


def test_weights_of_answers_and_of_tokens_are_placed(processor):
    one = sample("<image>\ndescribe.", "a red ring.", "which?", "a", image=True)
    one["loss_weights"] = [[0.1, 0.2, 0.3, 0.4, 0.5], 2]  # a, red, ring, full stop and end; then an answer
    other = {**sample("hi", "yes"), "loss_weights": None}
    batch = Collator(processor)([one, other])
    supervised = batch["labels"] != IGNORED
    assert batch["loss_weights"][0][supervised[0]].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 2, 2])
    assert (batch["loss_weights"][1] == 1).all() and (batch["loss_weights"][0][~supervised[0]] == 1).all()
    cut = Collator(processor, max_length=int(supervised[0].nonzero()[2]) + 1)([one])
    chosen = cut["labels"][0] != IGNORED
    assert cut["loss_weights"][0][chosen].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_another_number_of_weights_than_tokens_makes_a_sample_bad(processor):
    wrong = {**sample("hi", "yes", identity="w"), "loss_weights": [[1.0]]}
    good = {**sample("hi", "no", identity="g"), "loss_weights": [0.5]}
    with pytest.raises(InputError, match="sample w has 1 loss_weights for an answer of 2 tokens"):
        Collator(processor)([good, wrong])
    batch = Collator(processor, leave_out=True, keep_ids=True)([good, wrong])
    assert batch["id"] == ["g"] and [one.id for one in batch["bad"]] == ["w"]


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
    with pytest.raises(InputError, match=r"sample s: .* refuses it: .* 1 <image> tokens and 2 images"):
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


@pytest.mark.parametrize("max_length", [None, 30])
def test_the_text_of_the_tokens_is_that_of_the_template(processor, max_length):
    """Joined, the tokens spell the conversation, each answer in its own; images, padding and a cut have no text."""
    samples = [
        sample("what? <image>", "a red 🎈 ring.", "and?", "no", images=[Image.new("RGB", (48, 48))]),
        sample("say", "yes"),
    ]
    batch = Collator(processor, max_length, keep_text=True)(samples)
    for row, one in enumerate(samples):
        text, offsets = batch["text"][row], batch["offsets"][row].tolist()
        pieces = [text[begin:end] for begin, end in offsets]
        cut = "".join(pieces)
        assert text.startswith(cut) and (max_length is not None or cut == text)
        image = batch["input_ids"][row] == processor.image_token_id
        assert not any(pieces[column].strip("<image>") for column in image.nonzero()[:, 0].tolist())
        answers = [turn["value"] for turn in one["conversations"] if turn["from"] == "gpt"]
        for number, answer in enumerate(answers):
            spelled = "".join(pieces[c] for c in (batch["answer"][row] == number).nonzero()[:, 0].tolist())
            assert f" {answer}</s>".startswith(spelled) and (max_length is not None or spelled == f" {answer}</s>")
        supervised = batch["labels"][row] != -100
        assert torch.equal(supervised, (batch["answer"][row] >= 0) & (batch["attention_mask"][row] == 1))


def test_a_batch_of_bad_samples_alone_is_replaced_by_the_spare(processor):
    good, silent = sample("x", "yes"), sample("<image>\n" + "x " * 60, "y", image=True, identity="silent")
    collate = Collator(processor, max_length=40, keep_ids=True, leave_out=True, spare=good)
    gone = {"id": "gone", "place": 3, "bad": [Bad("gone", "no image")]}
    expected = Collator(processor, max_length=40, keep_ids=True)([good])
    for bad, names in (([silent], ["silent"]), ([gone], ["gone"]), ([silent, silent | {"id": "b"}], ["silent", "b"])):
        batch = collate(bad)
        assert [one.id for one in batch.pop("bad")] == names
        assert batch.keys() == expected.keys() and torch.equal(batch["labels"], expected["labels"])


def test_the_sample_that_the_processor_refuses_is_the_bad_one(processor):
    good = [sample("x", "yes", image=False, identity=f"good{n}") for n in range(3)]
    wrong = sample("<image>\nx", "yes", image=True, identity="wrong")
    wrong["conversations"][0]["value"] += " <image>"  # an image that does not exist
    with pytest.raises(InputError, match="sample wrong: the model's processor refuses it") as caught:
        Collator(processor)([*good, wrong])
    assert "good" not in str(caught.value)
    batch = Collator(processor, leave_out=True, keep_ids=True)([*good, wrong])
    assert batch["id"] == ["good0", "good1", "good2"] and [one.id for one in batch["bad"]] == ["wrong"]
