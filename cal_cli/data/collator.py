"""From samples to tensors: the chat template says which tokens are the assistant's, and only those are supervised."""

from dataclasses import dataclass

from transformers import BatchFeature, ProcessorMixin

IGNORED = -100  # the label of an unsupervised position, as everywhere in torch and transformers
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(turns: list[dict[str, str]], image) -> list[dict]:
    """LLaVA turns as the messages of a chat template, the image where `<image>` marks it."""
    messages = []
    for turn in turns:
        before, marker, after = turn["value"].partition("<image>")
        content = [{"type": "text", "text": before}] if before else []
        if marker:
            content.append({"type": "image", "image": image})
        if after:
            content.append({"type": "text", "text": after})
        messages.append({"role": ROLES[turn["from"]], "content": content})
    return messages


@dataclass
class Collator:
    """Turn samples into one padded batch.

    Returns `input_ids`, `attention_mask` (int64 [batch, length]), `pixel_values` (where a sample has an image) and
    `labels` (int64 [batch, length]): the token itself where the assistant speaks, its end token included, and -100
    elsewhere. The mask is the chat template's own, found by the tokenizer's offsets, never by tokenizing pieces.

    Args:
        processor: a processor whose chat template marks the assistant's text with `{% generation %}`.
        max_length: tokens after which a sample is cut; None keeps everything.

    Raises:
        InputError: a sample is left without a supervised token, or the cut falls inside its image.
    """

    processor: ProcessorMixin
    max_length: int | None = None

    def __call__(self, samples: list[dict]) -> BatchFeature:
        messages = [to_messages(sample["conversations"], sample["image"]) for sample in samples]
        batch = self.processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            return_tensors=None,  # as lists: the library finds the assistant's tokens one by one
            processor_kwargs={"padding": True},
        ).convert_to_tensors("pt")
        supervised = batch.pop("assistant_masks").bool()
        batch["labels"] = batch["input_ids"].masked_fill(~supervised, IGNORED)
        return batch
