"""Find the supervised tokens of a conversation: the assistant's text and its end token.

They are found in the text that the chat template renders, and mapped to tokens by the tokenizer's offsets, never by
tokenizing pieces.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor

from cal_cli.runtime.errors import InputError

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ADVICE = "give model.template=<file>.jinja, with the answers between {% generation %} and {% endgeneration %}"


class RenderedText(NamedTuple):
    """A conversation as its template renders it, with one placeholder for each image."""

    length: int  # in characters
    answers: list[tuple[int, int]]  # begin and end of each of the assistant's texts with its end token


def render(messages: Sequence[list[dict]], processor: Any) -> list[RenderedText]:
    """Find the answers of each conversation: as the template marks them, else by `find_answers`.

    Raises:
        InputError: there is no such tokenizer or no template, or the answers cannot be found in the rendered text.
    """
    if not getattr(processor.tokenizer, "is_fast", False):
        kind = type(processor.tokenizer).__name__
        raise InputError(f"the model's {kind} does not return the offsets of its tokens: a fast tokenizer is needed")
    template = processor.chat_template
    if isinstance(template, Mapping):  # several templates by name
        template = template.get("default")
    if template is None:
        raise InputError(f"the model has no chat template: {ADVICE}; models like LLaVA can use v1 or plain")
    if not MARK.search(template):
        return [find_answers(conversation, processor) for conversation in messages]
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
        texts.append(RenderedText(max(end for _, end in offsets), answers))
    return texts


def find_answers(messages: list[dict], processor: Any) -> RenderedText:
    """Find the answers of a conversation whose template does not mark them, from what each adds to the turns before it.

    An answer begins where the prompt for it ends (`add_generation_prompt`), and ends before the white space that
    follows its end token.

    Raises InputError if the template renders a turn differently when others follow.
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
            raise InputError(f"the model's chat template renders a turn differently when others follow: {ADVICE}")
        answers.append((len(before), len(through.rstrip())))
    return RenderedText(len(whole), answers)


def find_supervised(text: RenderedText, offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> Tensor:
    """Find the answer within which each token begins, counted from 0, int64 [length]; -1 for the other tokens.

    `offsets` (int64 [length, 2]) are begin and end of each token in the text with expanded images; `replaced` are the
    expansions of the placeholders, as processors return them: `span` in the text, `new_span` in the expanded text.

    Raises InputError if the processor changed another part of the text.
    """
    growth = [(one["span"][1], measure(one["new_span"]) - measure(one["span"])) for one in replaced]
    if int(offsets.max()) > text.length + sum(more for _, more in growth):
        raise InputError("the processor changes more of the text than its images: the answers cannot be found")
    starts, found = offsets[:, 0], torch.full((len(offsets),), -1)
    for number, (start, end) in enumerate(text.answers):
        shift = sum(more for placeholder, more in growth if placeholder <= start)
        found[(starts >= start + shift) & (starts < end + shift)] = number
    return found


def measure(span: tuple[int, int]) -> int:
    """Return the length of a span."""
    return span[1] - span[0]
