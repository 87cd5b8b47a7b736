"""Generate greedy answers in batches: longest questions first, large batches halved."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from cal_cli.data.collator import to_messages
from cal_cli.evaluation.questions import Question
from cal_cli.runtime.errors import InputError


def make_batches(questions: Sequence[Question], lengths: Sequence[int], batch_size: int) -> list[list[list[int]]]:
    """Order questions into batches, longest first, with those about one picture together.

    Returns:
        Groups of batches of indices into `questions`. A picture's questions are in one group, and in one batch unless
        there are too many. Batches do not depend on which process takes which group.
    """
    by_picture: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_picture.setdefault(question.picture or f"none-{place}", []).append(place)
    pictures = [sorted(places, key=lambda place: -lengths[place]) for places in by_picture.values()]
    pictures.sort(key=lambda places: -lengths[places[0]])
    groups: list[list[list[int]]] = []
    for places in pictures:
        if groups and len(groups[-1]) == 1 and len(groups[-1][0]) + len(places) <= batch_size:
            groups[-1][0] += places
        else:
            groups.append([places[start : start + batch_size] for start in range(0, len(places), batch_size)])
    return groups


def count_tokens(questions: Sequence[Question], processor: Any) -> list[int]:
    """Count the tokens of each question's text, without those of its images."""
    return [len(ids) for ids in processor.tokenizer([question.question for question in questions])["input_ids"]]


@torch.inference_mode()
def generate_answers(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    keep: Callable[[dict[int, str]], None] = lambda answers: None,
) -> dict[int, str]:
    """Answer questions by greedy decoding, in batches padded on the left.

    `groups` are batches of indices into `questions`, as from `make_batches` (None means all questions); `keep` is
    called after each batch with its answers by index.

    Returns:
        The answers by index, without special tokens and outer white space.

    Raises InputError if a single question does not fit into memory.
    """
    if groups is None:
        groups = make_batches(questions, count_tokens(questions, processor), batch_size)
    answers: dict[int, str] = {}
    for batch in (batch for group in groups for batch in group):
        found = answer_batch(model, processor, questions, list(batch), max_new_tokens)
        answers |= found
        keep(found)
    return answers


def answer_batch(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch: list[int],
    max_new_tokens: int,
) -> dict[int, str]:
    """Answer one batch, by index; a batch that does not fit into memory is halved, repeatedly if needed."""
    try:
        texts = answer_questions(model, processor, [questions[place] for place in batch], max_new_tokens)
        return dict(zip(batch, texts, strict=True))
    except Exception as error:
        if not should_reduce_batch_size(error):
            raise
        if len(batch) == 1:
            raise InputError(
                f"question {questions[batch[0]].id!r} does not fit into memory, even alone: give a smaller "
                "benchmark.max_new_tokens, a dtype with fewer bits (dtype=bfloat16) or a larger device"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    halves = (
        answer_batch(model, processor, questions, half, max_new_tokens) for half in (batch[:middle], batch[middle:])
    )
    return {place: text for half in halves for place, text in half.items()}


def answer_questions(model: Any, processor: Any, questions: Sequence[Question], max_new_tokens: int) -> list[str]:
    """Answer questions in one batch."""
    shown = {question.picture: question.images() for question in questions}
    messages = [to_messages(make_turns(question), shown[question.picture]) for question in questions]
    batch = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
    ).to(model.device, model.dtype)
    pad = processor.tokenizer.pad_token_id
    output = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad)
    new_tokens = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]


def make_turns(question: Question) -> list[dict[str, str]]:
    """Return a question as the turn of a conversation."""
    return [{"from": "human", "value": question.question}]
