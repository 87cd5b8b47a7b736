"""Which tokens of a conversation are supervised: the assistant's text and its end token, and nothing else.

They are found in the text as the chat template renders it, and carried over to the tokens by the tokenizer's offsets,
never by tokenizing pieces.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from cal_cli.errors import InputError

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ADVICE = "give model.template=<file>.jinja, in which {% generation %} and {% endgeneration %} enclose the answers"


@dataclass
class Rendered:
    """A conversation as its template renders it, each image as one placeholder.

    Attributes:
        length: of the text, in characters.
        answers: where the assistant's texts with their end tokens begin and end in it.
    """

    length: int
    answers: list[tuple[int, int]]


def rendered(messages: Sequence[list[dict]], processor: Any) -> list[Rendered]:
    """Where each conversation's answers are: as the template marks them, else as `told_apart` finds them.

    Args:
        messages: of each conversation, as `apply_chat_template` takes them.
        processor: with a chat template and a fast tokenizer.

    Raises:
        InputError: there is no such tokenizer or no template, or answers cannot be told apart in what it renders.
    """
    if not getattr(processor.tokenizer, "is_fast", False):
        kind = type(processor.tokenizer).__name__
        raise InputError(f"the model's {kind} does not tell where its tokens lie in a text: it needs a fast tokenizer")
    template = processor.chat_template
    if isinstance(template, Mapping):  # several by name
        template = template.get("default")
    if template is None:
        raise InputError(f"the model has no chat template: {ADVICE}; for models of LLaVA's kind v1 and plain are there")
    if not MARK.search(template):
        return [told_apart(conversation, processor) for conversation in messages]
    found = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    texts = []
    for offsets, mask in zip(found["offset_mapping"], found["assistant_masks"], strict=True):
        runs = [list(run) for kept, run in groupby(zip(offsets, mask, strict=True), key=lambda token: token[1]) if kept]
        answers = [(run[0][0][0], run[-1][0][1]) for run in runs]
        texts.append(Rendered(max(end for _, end in offsets), answers))
    return texts


def told_apart(messages: list[dict], processor: Any) -> Rendered:
    """Find the answers of a conversation whose template does not mark them: what each adds to the turns before it.

    An answer begins where the prompt for it ends (`add_generation_prompt`), and ends before the white space that
    follows its end token.

    Raises:
        InputError: the template renders turns in another way when others follow.
    """

    def text(turns: list[dict], prompt: bool = False) -> str:
        try:
            return processor.apply_chat_template(turns, add_generation_prompt=prompt)
        except TemplateError as error:
            raise InputError(f"the model's chat template refuses the conversation ({error}): {ADVICE}") from error

    whole, answers = text(messages), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, through = text(messages[:place], prompt=True), text(messages[: place + 1])
        if not (whole.startswith(through) and through.startswith(before)):
            raise InputError(f"the model's chat template writes turns otherwise when others follow: {ADVICE}")
        answers.append((len(before), len(through.rstrip())))
    return Rendered(len(whole), answers)


def supervised(text: Rendered, offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> Tensor:
    """Which tokens begin within an answer, bool [length].

    Args:
        text: with images as placeholders.
        offsets: where each token begins and ends in the text with its images expanded, int64 [length, 2].
        replaced: what was put in the place of each placeholder, as processors of the library tell it: `span` in the
            text, `new_span` where it is expanded.

    Raises:
        InputError: the processor changed something else of the text.
    """
    growth = [(one["span"][1], size(one["new_span"]) - size(one["span"])) for one in replaced]
    if int(offsets.max()) > text.length + sum(more for _, more in growth):
        raise InputError("the processor changes the text beside its images: the answers cannot be found")
    starts, found = offsets[:, 0], torch.zeros(len(offsets), dtype=torch.bool)
    for start, end in text.answers:
        shift = sum(more for placeholder, more in growth if placeholder <= start)
        found |= (starts >= start + shift) & (starts < end + shift)
    return found


def size(span: tuple[int, int]) -> int:
    """A span's length."""
    return span[1] - span[0]
