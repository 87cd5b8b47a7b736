"""The assistant's tokens with the processors of types that people train today; see `tests/training` for the rest."""

import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision")

from cal_cli.data.collator import Collator, to_messages
from cal_cli.objective import IGNORED
from cal_cli.runtime.errors import InputError
from tests.data.test_collator import answers, sample
from tests.models.published_processors import PROCESSORS, make_processor

pytestmark = pytest.mark.torchvision
WIDE, TALL = Image.new("RGB", (64, 24), "red"), Image.new("RGB", (20, 64), "blue")
# several images in a turn, images after text, a turn without an image between two with one, and text alone
TURNS = [
    (["<image>\nwhat is it?", "a red ring.", "where?", "top left\nand blue"], [WIDE]),
    (["<image><image>\nwhich?", "one", "why?", "x", "and <image> here?", "two"], [TALL, WIDE, WIDE]),
    (["what?", "a ring", "sure?", "yes"], []),
]


@pytest.fixture(scope="module")
def processors():
    return {name: make_processor(name) for name in PROCESSORS}


def make_samples():
    return [sample(*turns, images=images) for turns, images in TURNS]


@pytest.mark.parametrize("name", PROCESSORS)
def test_answers_are_the_texts_with_their_end(processors, name):
    processor = processors[name]
    batch = Collator(processor)(make_samples())
    end = PROCESSORS[name]["turn"][2]
    for row, (turns, _) in enumerate(TURNS):
        assert answers(processor, batch, row) == [f"{answer}{end}" for answer in turns[1::2]]
    alone = Collator(processor)(make_samples()[2:])
    assert answers(processor, alone, 0) == [f"{answer}{end}" for answer in TURNS[2][0][1::2]]


def test_what_a_prompt_leaves_to_the_model_is_supervised(processors):
    """Where the prompt opens what is thought, the last answer begins by closing it; earlier ones have none."""
    processor = make_processor("qwen3_5")
    assert "think>\n\n</think>\n\n" in processor.chat_template.replace("\\n", "\n")
    opened = processor.chat_template.rindex("\\n</think>")
    processor.chat_template = processor.chat_template[:opened] + processor.chat_template[opened:].replace(
        "\\n</think>\\n\\n", ""
    )
    batch = Collator(processor)(make_samples())
    assert answers(processor, batch, 2) == ["a ring<|im_end|>", "\n</think>\n\nyes<|im_end|>"]


@pytest.mark.parametrize("name", PROCESSORS)
def test_labels_are_the_library_s_own_mask_where_the_template_marks_answers(processors, name):
    labels = Collator(processors[name])(make_samples())["labels"]
    marked = make_processor(name, marks=("{% generation %}", "{% endgeneration %}"))
    assert torch.equal(Collator(marked)(make_samples())["labels"], labels)
    for row, one in enumerate(make_samples()):
        mask = mask_of_the_library(marked, one)
        assert (labels[row, : len(mask)] != IGNORED).tolist() == mask


def mask_of_the_library(processor, one):
    found = processor.apply_chat_template(
        [to_messages(one["conversations"], one["image"])],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="auto",
        processor_kwargs={
            "return_offsets_mapping": True,
            "return_text_replacement_offsets": True,
            "images_kwargs": {"return_tensors": "pt"},
        },
    )
    return [bool(value) for value in torch.as_tensor(found["assistant_masks"]).flatten().tolist()]


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_sample_is_not_cut_within_its_image(processors, name):
    one = sample("<image>\nx", "y", images=[WIDE], identity="cut")
    with pytest.raises(InputError, match="sample cut is cut within its image at max_length=8"):
        Collator(processors[name], max_length=8)([one])
