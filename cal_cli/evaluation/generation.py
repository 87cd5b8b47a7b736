"""Greedy answers in batches."""

from collections.abc import Callable
from typing import Any

import torch

from cal_cli.data.collator import to_messages


@torch.inference_mode()
def generate_answers(
    model: Any,
    processor: Any,
    questions: list[dict],
    batch_size: int,
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Answer every question by greedy decoding, in batches padded on the left.

    Args:
        model: in evaluation mode.
        processor: its processor, with a chat template.
        questions: each `{"image": picture or None, "question": str}`; the question may hold `<image>`.
        batch_size: questions answered at once.
        max_new_tokens: tokens after which an answer is cut.
        progress: called after each batch with the number of questions answered in it.

    Returns:
        The answers in the order of the questions, special tokens and outer space removed.
    """
    answers: list[str] = []
    for start in range(0, len(questions), batch_size):
        chunk = questions[start : start + batch_size]
        batch = processor.apply_chat_template(
            [to_messages([{"from": "human", "value": item["question"]}], item["image"]) for item in chunk],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
            processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
        ).to(model.device)
        output = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
        new_tokens = output[:, batch["input_ids"].shape[1] :]
        answers += [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]
        progress(len(chunk))
    return answers
