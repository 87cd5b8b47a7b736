"""From samples to tensors: only the assistant's tokens are supervised."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from cal_cli.data.conversations import Bad
from cal_cli.data.supervision import ADVICE, Rendered, rendered, supervised
from cal_cli.errors import InputError

IGNORED = -100  # the label of an unsupervised position, as everywhere in torch and transformers
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(turns: list[dict[str, str]], image: Any) -> list[dict]:
    """LLaVA turns as the messages of a chat template, the image, or each of a list, where `<image>` marks it."""
    images = iter(image if isinstance(image, list) else [image])
    messages = []
    for turn in turns:
        content: list[dict[str, Any]] = []
        for place, text in enumerate(turn["value"].split("<image>")):
            if place:
                content.append({"type": "image", "image": next(images)})
            if text:
                content.append({"type": "text", "text": text})
        messages.append({"role": ROLES[turn["from"]], "content": content})
    return messages


class UnusableSamples(InputError):
    """Samples of a batch cannot be used.

    Attributes:
        problem: what is wrong with them.
        wrong: of each sample of the batch, whether it is one of them.
    """

    def __init__(self, message: str, problem: str, wrong: list[bool]) -> None:
        super().__init__(message)
        self.problem, self.wrong = problem, wrong


@dataclass
class Collator:
    """Turn samples into one padded batch.

    Returns `input_ids`, `attention_mask` (int64 [batch, length]), `pixel_values` (where a sample has an image) and
    `labels` (int64 [batch, length]): the token itself where the assistant speaks, its end token included, and -100
    elsewhere; and `scores_without_image` (float32 [batch, length]) where the samples have them. How the assistant's
    tokens are found is told in `cal_cli.data.supervision`.

    Args:
        processor: a processor with a chat template and a fast tokenizer.
        max_length: tokens after which a sample is cut; None keeps everything.
        keep_ids: also return `id`, the samples' names, as `CALTrainer` takes them for its error messages.
        leave_out: leave bad samples out of a batch in which another is good. `bad` then lists them, beside those in
            whose place the data set gave another; it is there where there are any.

    Raises:
        InputError: a sample has no supervised token, or is cut within its image, or another stands in its place; with
            `leave_out`, all samples of the batch are bad.
    """

    processor: Any
    max_length: int | None = None
    keep_ids: bool = False
    leave_out: bool = False

    def __call__(self, samples: list[dict]) -> BatchFeature:
        bad = [one for sample in samples for one in sample.get("bad", ())]
        if bad and not self.leave_out:
            raise InputError(f"sample {bad[0].id!r}: {bad[0].problem}")
        try:
            batch = self._batch(samples)
        except UnusableSamples as error:
            kept = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if not wrong]
            if not self.leave_out or not kept:
                raise
            left_out = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if wrong]
            batch = self([{**sample, "bad": ()} for sample in kept])
            bad += [Bad(str(sample["id"]), error.problem) for sample in left_out] + batch.pop("bad", [])
        if bad:
            batch["bad"] = bad
        return batch

    def closes(self, sample: dict) -> bool:
        """Whether a sample's last supervised token is a special one, such as ends a turn: a model learns to stop by it.

        Of a bad sample, which training will name, nothing is said: True.
        """
        try:
            labels = replace(self, max_length=None)([sample])["labels"][0]
        except InputError:
            return True
        tokenizer = self.processor.tokenizer
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        return int(labels[labels != IGNORED][-1]) in special | {tokenizer.eos_token_id}

    def _batch(self, samples: list[dict]) -> BatchFeature:
        messages = [to_messages(sample["conversations"], sample["image"]) for sample in samples]
        texts = rendered(messages, self.processor)
        told = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        try:
            batch = self.processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"padding": True, "padding_side": "right", **told},
            )
        except ValueError as error:  # such as a template that shows fewer images than there are
            names = ", ".join(repr(sample["id"]) for sample in samples)
            raise InputError(f"the model's processor refuses the samples {names}: {error}") from error
        replaced = batch.pop("text_replacement_offsets", [()] * len(samples))  # text alone may come without
        batch.convert_to_tensors("pt")  # only now: there are processors that would try it with what was replaced
        chosen = self._supervised(texts, batch, replaced)
        batch["labels"] = batch["input_ids"].masked_fill(~chosen, IGNORED)
        if self.max_length is not None:
            beyond = batch["input_ids"][:, self.max_length :] == self.processor.image_token_id
            self._refuse(samples, beyond.any(dim=1), "is cut within its image")
            whole = batch["input_ids"].shape
            for name, value in batch.items():
                if getattr(value, "shape", None) == whole:  # token types too, where a model has them
                    batch[name] = value[:, : self.max_length]
        if "scores_without_image" in samples[0]:
            batch["scores_without_image"] = self._at_labels(samples, batch["labels"])
        unsupervised = (batch["labels"][:, 1:] == IGNORED).all(dim=1)
        self._refuse(samples, unsupervised, "has no supervised token")
        if self.keep_ids:
            batch["id"] = [sample["id"] for sample in samples]
        return batch

    def _supervised(self, texts: list[Rendered], batch: BatchFeature, replaced: list) -> Tensor:
        """Which tokens are the assistant's, bool [batch, length]; takes their offsets out of the batch.

        The processor's own mask is not used: in transformers 5.17 it is off by the length of the image, and there is
        none where the template marks no answers.
        """
        rows = [supervised(*one) for one in zip(texts, batch.pop("offset_mapping"), replaced, strict=True)]
        return torch.stack(rows) & batch["attention_mask"].bool()

    def _at_labels(self, samples: list[dict], labels: Tensor) -> Tensor:
        """Each sample's scores at the places of its supervised labels: float32 [batch, length], nan elsewhere."""
        scores = torch.full(labels.shape, torch.nan)
        for row, sample in enumerate(samples):
            supervised = labels[row] != IGNORED
            supervised[0] = False  # nothing predicts the first token
            scores[row, supervised] = torch.tensor(sample["scores_without_image"])
        return scores

    def _refuse(self, samples: list[dict], wrong: Any, problem: str) -> None:
        """Raise UnusableSamples, which names the samples for which `wrong` (bool [batch]) is true."""
        names = [repr(sample["id"]) for sample, refused in zip(samples, wrong.tolist(), strict=True) if refused]
        if names:
            cause = (
                f" at max_length={self.max_length}: give a larger one or shorten the sample"
                if self.max_length is not None
                else f": give each answer a text, or {ADVICE}"
            )
            raise UnusableSamples(f"sample {', '.join(names)} {problem}{cause}", problem, wrong.tolist())
