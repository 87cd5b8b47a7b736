"""The conversation templates, against LLaVA's own preprocessing restated: pieces tokenized, masks counted by length."""

import pytest
import sentencepiece

from cal_cli.data.collator import IGNORED, to_messages
from cal_cli.models.llava import SYSTEM, add_image_token, load_tokenizer_with_image, make_chat_template
from cal_cli.runtime.errors import InputError
from tests.models.parts import llama_tokenizer, save_like_vicuna
from tests.models.published_kinds import byte_tokenizer

IMAGE = "an image"
CONVERSATIONS = {
    "one turn": (["<image>\nwhat is red?"], ["the ring is red."]),
    "image last": (["what is red?\n<image>"], ["a ring"]),
    "image alone": (["<image>"], ["a ring"]),
    "several": (["<image><image>\nwhich is <image> red?", "and <image>\nor <image>"], ["the first", "no"]),
    "two turns": (["<image>\nwhere is the ring?", "and the cross?"], ["top left.", "in the middle\nof it, twice."]),
    "no image": (["where is the ring?", "sure?"], ["left", "yes"]),
    "odd spaces": (["  <image>  what?  "], ["  the  cross "]),
    "unicode": (["<image>\nwhat is written?"], ["Grüße, 世界 🙂!"]),
    "a number": (["<image>\nhow many?"], ["3"]),
    "a number of several": (["<image> 3 <image>4", "<image>"], ["7", "12"]),
}


def turns_of(questions, answers):
    pairs = zip(questions, answers, strict=True)
    return [turn for q, a in pairs for turn in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]


def pieces(tokenizer, text):
    """The tokens of a prompt, the image as one: each piece between images tokenized alone, one start token kept."""
    image = tokenizer.convert_tokens_to_ids("<image>")
    parts = [encode(tokenizer, piece) for piece in text.split("<image>")]
    ids = parts[0]
    for part in parts[1:]:
        ids = [*ids, image, *part[1:]]
    return ids


def encode(tokenizer, text):
    """A text by itself, as LLaVA's slow tokenizer has it: SentencePiece's own, where there is its model.

    SentencePiece puts a space before any text; before what follows an end token the slow tokenizer takes it away.
    """
    words = getattr(tokenizer, "sentencepiece", None)
    if words is None:  # the library's fast tokenizer puts none before a text that begins with one
        return tokenizer(f" {text}" if text.startswith(" ") else text).input_ids
    first, *others = text.split("</s>")
    ids = [tokenizer.bos_token_id, *(words.encode(first) if first else [])]
    for part in others:
        ids += [tokenizer.eos_token_id, *words.encode(f"<unk>{part}")[len(words.encode("<unk>")) :]]
    return ids


def llava_v1(tokenizer, turns):
    """Token ids and labels: the text is put together, then each round's question is masked by its length."""
    text = SYSTEM + " "
    for turn in turns:
        value = turn["value"]
        if value.count("<image>") == 1:  # of several LLaVA-NeXT leaves each where it stands
            value = ("<image>\n" + value.replace("<image>", "").strip()).strip()
        text += f"USER: {value} " if turn["from"] == "human" else f"ASSISTANT: {value}</s>"
    ids = pieces(tokenizer, text)
    labels, place = list(ids), 1
    labels[0] = IGNORED
    for number, part in enumerate(text.split("</s>")[:-1]):
        question = part.split("ASSISTANT: ")[0] + "ASSISTANT: "
        length, masked = len(pieces(tokenizer, part)), len(pieces(tokenizer, question)) - 2
        if number:  # a text of its own begins with a space that it has not behind an end token
            spaced = length + 1 - len(pieces(tokenizer, f"</s>{part}"))  # 1 with Vicuna's words
            length, masked = length - spaced, masked - spaced
        labels[place : place + masked] = [IGNORED] * masked
        place += length
    assert place == len(ids), "LLaVA would drop this sample"
    return ids, labels


def llava_plain(tokenizer, turns):
    ids = pieces(tokenizer, "<image>" + turns[1]["value"] + "\n")
    return ids, [IGNORED, IGNORED, *ids[2:]]


def ours(tokenizer, name, turns):
    shown = sum(turn["value"].count("<image>") for turn in turns)
    rendered = tokenizer.apply_chat_template(
        to_messages(turns, [IMAGE] * shown),
        chat_template=make_chat_template(name, tokenizer),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids = rendered["input_ids"]
    return ids, [i if kept else IGNORED for i, kept in zip(ids, rendered["assistant_masks"], strict=True)]


@pytest.fixture(scope="module", params=["tokenizer.json", "tokenizer.model"])
def tokenizer(request, tmp_path_factory):
    if request.param == "tokenizer.json":
        tokenizer = llama_tokenizer()
        add_image_token(tokenizer)
        return tokenizer
    folder = save_like_vicuna(tmp_path_factory.mktemp("vicuna") / "vicuna")
    tokenizer = load_tokenizer_with_image(folder)
    tokenizer.sentencepiece = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    return tokenizer


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_v1_gives_the_tokens_and_the_mask_of_llava(tokenizer, name):
    turns = turns_of(*CONVERSATIONS[name])
    assert ours(tokenizer, "v1", turns) == llava_v1(tokenizer, turns)


@pytest.mark.parametrize("caption", ["a red ring in the top left", "3", "12 rings", " the ring", "Grüße"])
def test_plain_gives_the_tokens_and_the_mask_of_llava(tokenizer, caption):
    turns = turns_of(["describe it briefly.\n<image>"], [caption])
    assert ours(tokenizer, "plain", turns) == llava_plain(tokenizer, turns)


def test_v1_token_by_token(tokenizer):
    ids, labels = ours(tokenizer, "v1", turns_of(["<image>\nred?", "two?"], ["the ring", "no"]))
    assert "A chat between a curious user" in tokenizer.decode(ids)
    supervised = [tokenizer.convert_ids_to_tokens(i) for i in labels if i != IGNORED]
    assert "".join(supervised) == "▁the▁ring</s>▁no</s>"
    unsupervised = [i for i, label in zip(ids, labels, strict=True) if label == IGNORED]
    assert tokenizer.convert_tokens_to_ids("<image>") in unsupervised
    assert labels.count(tokenizer.eos_token_id) == 2


def test_plain_token_by_token(tokenizer):
    ids, labels = ours(tokenizer, "plain", turns_of(["<image>"], ["the ring"]))
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:2] == ["<s>", "<image>"]
    assert "".join(tokens[2:]).replace("<0x0A>", "\n") == "▁the▁ring\n"
    assert [label != IGNORED for label in labels] == [False, False, *[True] * (len(ids) - 2)]


@pytest.fixture(scope="module")
def gemma():
    """A tokenizer with Gemma's special tokens, which writes no space before a text."""
    marks = {"sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"}
    tokenizer = byte_tokenizer(marks, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    add_image_token(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    ("questions", "answers", "expected"),
    [
        (
            ["<image>\nred?", "two?"],
            ["the ring", "no"],
            "<bos><start_of_turn>user\n<image>\nred?<end_of_turn>\n<start_of_turn>model\n[the ring<end_of_turn>\n]"
            "<start_of_turn>user\ntwo?<end_of_turn>\n<start_of_turn>model\n[no<end_of_turn>\n<eos>]",
        ),
        (
            ["red?\n<image>"],
            ["yes"],
            "<bos><start_of_turn>user\n<image>\nred?<end_of_turn>\n<start_of_turn>model\n[yes<end_of_turn>\n<eos>]",
        ),
        (["hi"], ["yes"], "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n[yes<end_of_turn>\n<eos>]"),
    ],
)
def test_gemma_turns_are_supervised_behind_model(gemma, questions, answers, expected):
    ids, labels = ours(gemma, "gemma", turns_of(questions, answers))
    written, before = "", False
    for token, label in zip(ids, labels, strict=True):
        inside = label != IGNORED
        written += ("[" if inside and not before else "]" if before and not inside else "") + gemma.decode([token])
        before = inside
    assert written + "]" * before == expected


def test_a_system_turn_takes_the_place_of_the_template_s_own(tokenizer):
    turns = [{"from": "system", "value": "Be brief."}, *turns_of(["hi"], ["hello"])]
    ids, _ = ours(tokenizer, "v1", turns)
    text = tokenizer.decode(ids)
    assert "Be brief. USER: hi ASSISTANT: hello</s>" in text and "curious" not in text


def test_a_generation_prompt_ends_where_the_answer_begins(tokenizer):
    template = make_chat_template("v1", tokenizer)
    turns = turns_of(["<image>\nred?"], ["the ring"])
    asked = tokenizer.apply_chat_template(
        to_messages(turns[:1], IMAGE), chat_template=template, add_generation_prompt=True, tokenize=False
    )
    whole = tokenizer.apply_chat_template(to_messages(turns, IMAGE), chat_template=template, tokenize=False)
    assert whole == asked + " the ring</s>"


def test_wrong_names_and_tokenizers_are_refused(tokenizer):
    with pytest.raises(InputError, match="allowed are v1, plain, gemma"):
        make_chat_template("v2", tokenizer)
    endless = llama_tokenizer()
    endless.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        make_chat_template("v1", endless)
