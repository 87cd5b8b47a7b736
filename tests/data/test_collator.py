"""Masks: only the assistant's text and its end token are supervised, shown token by token."""

import pytest
import torch
from PIL import Image

from cal_cli.data.collator import IGNORED, Collator
from cal_cli.data.sample import Bad
from cal_cli.runtime.errors import InputError


def sample(*values, image=False, identity="s"):
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": identity, "image": Image.new("RGB", (48, 48)) if image else None, "conversations": turns}


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
