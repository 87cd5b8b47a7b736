"""From samples to tensors: only the assistant's tokens are supervised."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature

from cal_cli.data.sample import LOSS_WEIGHTS, Bad
from cal_cli.data.supervision import ADVICE, RenderedText, find_supervised, render
from cal_cli.objective import IGNORED
from cal_cli.runtime.errors import InputError, shorten

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(turns: list[dict[str, str]], image: Any) -> list[dict]:
    """Convert LLaVA turns to the messages of a chat template, with the image, or each of a list, at its `<image>`."""
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
    """Some samples of a batch cannot be used.

    Attributes:
        problem: what is wrong with them.
        wrong: for each sample of the batch, whether it is one of them.
    """

    def __init__(self, message: str, problem: str, wrong: list[bool]) -> None:
        super().__init__(message)
        self.problem, self.wrong = problem, wrong


@dataclass
class Collator:
    """Turn samples into one padded batch.

    Returns `input_ids`, `attention_mask` (int64 [batch, length]), `pixel_values` (if a sample has an image) and
    `labels` (int64 [batch, length]): the token itself where the assistant speaks, its end token included, and -100
    elsewhere; and `scores_without_image` and `loss_weights` (float32 [batch, length]) if the samples have them. See
    `cal_cli.data.supervision` for how the assistant's tokens are found.

    Args:
        processor: a processor with a chat template and a fast tokenizer.
        max_length: number of tokens after which a sample is cut; None keeps everything.
        keep_ids: also return `id`, the samples' names, which `CALTrainer` uses in error messages.
        leave_out: leave bad samples out of a batch that has a good one. If there are any, `bad` lists them, together
            with those that the dataset replaced.

    Raises:
        InputError: a sample has no supervised token, is cut within its image, has another number of loss weights than
            tokens, or was replaced by another; with `leave_out`, all samples of the batch are bad.
    """

    processor: Any
    max_length: int | None = None
    keep_ids: bool = False
    leave_out: bool = False

    def __call__(self, samples: list[dict]) -> BatchFeature:
        bad = [one for sample in samples for one in sample.get("bad", ())]
        if bad and not self.leave_out:
            raise InputError(f"sample {bad[0].id}: {bad[0].problem}")
        try:
            batch = self._batch(samples)
        except UnusableSamples as error:
            kept = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if not wrong]
            if not self.leave_out or not kept:
                raise
            left_out = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if wrong]
            batch = self([{**sample, "bad": ()} for sample in kept])
            bad += [Bad(shorten(str(sample["id"])), error.problem) for sample in left_out] + batch.pop("bad", [])
        if bad:
            batch["bad"] = bad
        return batch

    def closes_answers(self, sample: dict) -> bool:
        """Return whether a sample's last supervised token is a special one, which teaches a model to stop.

        For a bad sample, which training reports, this is True.
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
        texts = render(messages, self.processor)
        offsets = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        try:
            batch = self.processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                processor_kwargs={"padding": True, "padding_side": "right", **offsets},
            )
        except ValueError as error:  # for example a template that shows fewer images than there are
            names = ", ".join(shorten(str(sample["id"])) for sample in samples)
            raise InputError(f"the model's processor refuses the samples {names}: {error}") from error
        replaced = batch.pop("text_replacement_offsets", [()] * len(samples))  # missing for text only
        batch.convert_to_tensors("pt")  # only now: some processors would convert the replacement offsets too
        answers = self._find_supervised(texts, batch, replaced)
        batch["labels"] = batch["input_ids"].masked_fill(answers < 0, IGNORED)
        if LOSS_WEIGHTS in samples[0]:
            batch[LOSS_WEIGHTS] = self._place_weights(samples, answers)
        if self.max_length is not None:
            beyond = batch["input_ids"][:, self.max_length :] == self.processor.image_token_id
            self._refuse(samples, beyond.any(dim=1), "is cut within its image")
            shape = batch["input_ids"].shape
            for name, value in batch.items():
                if getattr(value, "shape", None) == shape:  # token types too, if the model has them
                    batch[name] = value[:, : self.max_length]
        if "scores_without_image" in samples[0]:
            batch["scores_without_image"] = place([one["scores_without_image"] for one in samples], batch["labels"])
        if "token_weights" in samples[0]:
            batch[LOSS_WEIGHTS] = place([one["token_weights"] for one in samples], batch["labels"])
        unsupervised = (batch["labels"][:, 1:] == IGNORED).all(dim=1)
        self._refuse(samples, unsupervised, "has no supervised token")
        if self.keep_ids:
            batch["id"] = [str(sample["id"]) for sample in samples]
        return batch

    def _find_supervised(self, texts: list[RenderedText], batch: BatchFeature, replaced: list) -> Tensor:
        """Find the answer of each of the assistant's tokens, int64 [batch, length], -1 elsewhere; removes the offsets.

        The processor's own mask is not used: in transformers 5.17 it is shifted by the length of the image, and it does
        not exist if the template does not mark answers.
        """
        rows = [find_supervised(*one) for one in zip(texts, batch.pop("offset_mapping"), replaced, strict=True)]
        return torch.stack(rows).masked_fill(batch["attention_mask"] == 0, -1)

    def _place_weights(self, samples: list[dict], answers: Tensor) -> Tensor:
        """Put the weights that come with the samples at the tokens of their answers: float32 [batch, length], else 1.

        Raises UnusableSamples if there are not as many numbers as an answer has tokens.
        """
        weights, wrong, problem = torch.ones(answers.shape), [False] * len(samples), ""
        for row, sample in enumerate(samples):
            for number, given in enumerate(sample[LOSS_WEIGHTS] or ()):
                tokens = answers[row] == number
                if isinstance(given, list) and len(given) != int(tokens.sum()):
                    problem = f"has {len(given)} loss_weights for an answer of {int(tokens.sum())} tokens"
                    wrong[row] = True
                else:
                    weights[row, tokens] = torch.as_tensor(given, dtype=torch.float32)
        if any(wrong):
            names = ", ".join(shorten(str(one["id"])) for one, refused in zip(samples, wrong, strict=True) if refused)
            raise UnusableSamples(
                f"sample {names} {problem}: give a number for each answer, or for each of its tokens, the end token "
                "included",
                problem,
                wrong,
            )
        return weights

    def _refuse(self, samples: list[dict], wrong: Any, problem: str) -> None:
        """Raise UnusableSamples with the names of the samples for which `wrong` (bool [batch]) is true."""
        names = [shorten(str(sample["id"])) for sample, refused in zip(samples, wrong.tolist(), strict=True) if refused]
        if names:
            cause = (
                f" at max_length={self.max_length}: give a larger value or shorten the sample"
                if self.max_length is not None
                else f": give every answer a text, or {ADVICE}"
            )
            raise UnusableSamples(f"sample {', '.join(names)} {problem}{cause}", problem, wrong.tolist())


def place(numbers: list[list[float]], labels: Tensor) -> Tensor:
    """Put each sample's numbers at its supervised labels: float32 [batch, length], nan elsewhere."""
    placed = torch.full(labels.shape, torch.nan)
    for row, values in enumerate(numbers):
        supervised = labels[row] != IGNORED
        supervised[0] = False  # nothing predicts the first token
        placed[row, supervised] = torch.tensor(values)
    return placed
