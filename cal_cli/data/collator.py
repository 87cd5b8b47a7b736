"""From samples to tensors: only the assistant's tokens are supervised."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import BatchFeature

from cal_cli.data.sample import LOSS_WEIGHTS, Bad
from cal_cli.objective import IGNORED
from cal_cli.runtime.errors import InputError, shorten

IMAGES = {"return_tensors": "pt"}  # otherwise Llama 4's tiles are nested by image
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


def to_messages(turns: list[dict[str, str]], image: Any) -> list[dict]:
    """Convert LLaVA turns to the messages of a chat template, with the image, or each of a list, at its `<image>`."""
    images = iter(image if isinstance(image, list) else [image])
    messages = []
    for turn in turns:
        content: list[dict[str, Any]] = []
        for place, text in enumerate(turn["value"].split("<image>")):
            if place:
                if (shown := next(images, images)) is images:
                    raise ValueError("its text has more images than it comes with")
                content.append({"type": "image", "image": shown})
            if text:
                content.append({"type": "text", "text": text})
        messages.append({"role": ROLES[turn["from"]], "content": content})
    return messages


class RenderedText(NamedTuple):
    """A conversation as its template renders it, with one placeholder for each image."""

    text: str
    answers: list[tuple[int, int]]  # begin and end of each of the assistant's texts with its end token


class UnusableSamples(InputError):
    """Some samples of a batch cannot be used.

    Attributes:
        problem: what is wrong with them.
        wrong: for each sample of the batch, whether it is one of them.
    """

    def __init__(self, message: str, problem: str = "", wrong: Sequence[bool] = ()) -> None:
        super().__init__(message)  # alone where a worker's error is raised again
        self.problem, self.wrong = problem, wrong


@dataclass
class Collator:
    """Turn samples into one padded batch.

    Returns `input_ids`, `attention_mask` (int64 [batch, length]), `pixel_values` (if a sample has an image) and
    `labels` (int64 [batch, length]): the token itself where the assistant speaks, its end token included, and -100
    elsewhere; and `scores_without_image` and `loss_weights` (float32 [batch, length]) if the samples have them. See
    `cal_cli.data.collator` for how the assistant's tokens are found.

    Args:
        processor: a processor with a chat template and a fast tokenizer.
        max_length: number of tokens after which a sample is cut; None keeps everything.
        keep_ids: also return `id`, the samples' names, which `CALTrainer` uses in error messages, and their
            `place` in the data if samples have it.
        keep_text: also return `text`, each sample as the template renders it; `offsets`, int64 [batch, length, 2],
            begin and end of each token in it, where a token reaches from the end of the one before it and those of
            images are empty; and `answer`, int64 [batch, length], the number of the answer that a token belongs to,
            from 0, and -1 elsewhere.
        leave_out: leave bad samples out of a batch that has a good one. If there are any, `bad` lists them, together
            with those that the dataset replaced.
        spare: with `leave_out`, a good sample that stands in for a batch in which all are bad.

    Raises InputError if a sample has no supervised token, is cut within its image, is refused by the processor, has
    another number of loss weights than tokens, or was replaced by another; with `leave_out` and no spare, all samples
    of the batch are bad.
    """

    processor: Any
    max_length: int | None = None
    keep_ids: bool = False
    leave_out: bool = False
    keep_text: bool = False
    spare: dict | None = None

    def __call__(self, samples: list[dict]) -> BatchFeature:
        bad = [replaced for sample in samples for replaced in sample.get("bad", ())]
        if bad and not self.leave_out:
            raise InputError(f"sample {bad[0].id}: {bad[0].problem}")
        samples = [sample for sample in samples if "conversations" in sample]
        if not samples and self.spare is None:
            raise UnusableSamples(f"sample {bad[0].id}: {bad[0].problem}", bad[0].problem, [])
        try:
            batch = self._batch(samples or [self.spare or {}])
        except UnusableSamples as error:
            kept = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if not wrong]
            kept = kept or ([] if self.spare is None else [self.spare])
            if not self.leave_out or not kept:
                raise
            left_out = [sample for sample, wrong in zip(samples, error.wrong, strict=True) if wrong]
            batch = self([{**sample, "bad": ()} for sample in kept])
            bad += [Bad(shorten(str(sample["id"])), error.problem) for sample in left_out] + batch.pop("bad", [])
        if bad:
            batch["bad"] = bad
        return batch

    def find_end(self, sample: dict) -> int | None:
        """Return the special token that closes a sample's last answer, which teaches a model to stop; None for none."""
        labels = replace(self, max_length=None)([sample])["labels"][0]
        tokenizer = self.processor.tokenizer
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        end = int(labels[labels != IGNORED][-1])
        return end if end in special | {tokenizer.eos_token_id} else None

    def _batch(self, samples: list[dict]) -> BatchFeature:
        offsets = {"return_offsets_mapping": True, "return_text_replacement_offsets": True}
        try:
            messages = [to_messages(sample["conversations"], sample["image"]) for sample in samples]
            texts = render(messages, self.processor)
            batch = self.processor.apply_chat_template(
                messages,
                tokenize=True,
                return_dict=True,
                return_tensors="auto",  # SmolVLM's own default is another
                processor_kwargs={"padding": True, "padding_side": "right", "images_kwargs": IMAGES, **offsets},
            )
        except InputError:
            raise
        except (ValueError, IndexError, TemplateError) as error:  # such as a text with the model's own image token
            raise self._name_refused(samples, error) from error
        replaced = batch.pop("text_replacement_offsets", [()] * len(samples))  # missing for text only
        batch.convert_to_tensors("pt")  # only now: some processors would convert the replacement offsets too
        # The processor's own mask is not used: in transformers 5.17 it is shifted by the length of the image, and it
        # does not exist if the template does not mark answers.
        offsets = batch.pop("offset_mapping")
        located = [find_supervised(*one) for one in zip(texts, offsets, replaced, strict=True)]
        answers = torch.stack(located).masked_fill(batch["attention_mask"] == 0, -1)
        if self.keep_text:
            batch["text"], batch["answer"] = [text.text for text in texts], answers
            batch["offsets"] = torch.stack([tile(*one) for one in zip(offsets, replaced, strict=True)])
        batch["labels"] = batch["input_ids"].masked_fill(answers < 0, IGNORED)
        if LOSS_WEIGHTS in samples[0]:
            batch[LOSS_WEIGHTS] = self._place_weights(samples, answers)
        if self.max_length is not None:
            beyond = [find_within_images(*one)[self.max_length :].any() for one in zip(offsets, replaced, strict=True)]
            self._refuse(samples, torch.stack(beyond), "is cut within its image")
            shape = batch["input_ids"].shape
            for name, value in batch.items():
                if getattr(value, "shape", ())[:2] == shape:  # token types too, if the model has them
                    batch[name] = value[:, : self.max_length]
        if "scores_without_image" in samples[0]:
            batch["scores_without_image"] = place([one["scores_without_image"] for one in samples], batch["labels"])
        if "token_weights" in samples[0]:
            batch[LOSS_WEIGHTS] = place([one["token_weights"] for one in samples], batch["labels"])
        unsupervised = (batch["labels"][:, 1:] == IGNORED).all(dim=1)
        self._refuse(samples, unsupervised, "has no supervised token")
        if self.keep_ids:
            batch["id"] = [str(sample["id"]) for sample in samples]
            if "place" in samples[0]:
                batch["place"] = [sample["place"] for sample in samples]
        return batch

    def _name_refused(self, samples: list[dict], error: Exception) -> Exception:
        """Return the error that names the samples which processor or template refuse; `error` is that of the batch."""
        if len(samples) == 1:
            problem = f"the model's processor refuses it: {str(error).splitlines()[0]}"
            if isinstance(error, TemplateError):
                problem = f"the model's chat template refuses the conversation ({error}): {ADVICE}"
            return UnusableSamples(f"sample {shorten(str(samples[0]['id']))}: {problem}", problem, [True])
        causes: list[UnusableSamples | None] = []
        for sample in samples:
            try:
                self._batch([sample])
                causes.append(None)
            except UnusableSamples as cause:
                causes.append(cause)
        first = next((cause for cause in causes if cause), None)
        return error if first is None else UnusableSamples(str(first), first.problem, [bool(cause) for cause in causes])

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
            refused = [sample for sample, is_wrong in zip(samples, wrong, strict=True) if is_wrong]
            raise UnusableSamples(
                f"sample {list_names(refused)} {problem}: give a number for each answer, or for each of its tokens, "
                "the end token included",
                problem,
                wrong,
            )
        return weights

    def _refuse(self, samples: list[dict], wrong: Any, problem: str) -> None:
        """Raise UnusableSamples with the names of the samples for which `wrong` (bool [batch]) is true."""
        refused = [sample for sample, is_wrong in zip(samples, wrong.tolist(), strict=True) if is_wrong]
        if refused:
            cause = (
                f" at max_length={self.max_length}: give a larger value or shorten the sample"
                if self.max_length is not None
                else f": give every answer a text, or {ADVICE}"
            )
            raise UnusableSamples(f"sample {list_names(refused)} {problem}{cause}", problem, wrong.tolist())


NAMED = 5  # samples in a message, at most


def list_names(samples: Sequence[dict]) -> str:
    """List the ids of samples for a message; of many, the first ones."""
    listed = ", ".join(shorten(str(sample["id"])) for sample in samples[:NAMED])
    return f"{listed} and {len(samples) - NAMED} more" if len(samples) > NAMED else listed


def place(numbers: list[list[float]], labels: Tensor) -> Tensor:
    """Put each sample's numbers at its supervised labels: float32 [batch, length], nan elsewhere."""
    placed = torch.full(labels.shape, torch.nan)
    for row, values in enumerate(numbers):
        supervised = labels[row] != IGNORED
        supervised[0] = False  # nothing predicts the first token
        placed[row, supervised] = torch.tensor(values)
    return placed


STAND_IN = "<the answer>"  # for an answer, to see where a template puts it
MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ADVICE = "give model.template=<file>.jinja, with the answers between {% generation %} and {% endgeneration %}"


def render(messages: Sequence[list[dict]], processor: Any) -> list[RenderedText]:
    """Find the answers of each conversation: as the template marks them, else by `find_answers`.

    Raises InputError if there is no such tokenizer or no template, or the answers cannot be found in the rendered text.
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
    rendered = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True},
    )
    written = processor.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    texts = []
    for text, offsets, mask in zip(written, rendered["offset_mapping"], rendered["assistant_masks"], strict=True):
        runs = [list(run) for kept, run in groupby(zip(offsets, mask, strict=True), key=lambda token: token[1]) if kept]
        answers = [(run[0][0][0], run[-1][0][1]) for run in runs]
        texts.append(RenderedText(text, answers))
    return texts


def find_answers(messages: list[dict], processor: Any) -> RenderedText:
    """Find the answers of a conversation whose template does not mark them, from what each adds to the turns before it.

    An answer begins where the prompt for it ends (`add_generation_prompt`), and ends before the white space that
    follows its end token. If the template renders it differently once others follow, as Qwen3.5's leaves out what was
    thought, it is the answer's own text with its end token.

    Raises InputError if an answer cannot be found.
    """

    def text(turns: list[dict], prompt: bool = False) -> str:
        return processor.apply_chat_template(turns, add_generation_prompt=prompt)

    whole, answers = text(messages), []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, through = text(messages[:place], prompt=True), text(messages[: place + 1])
        if whole.startswith(through) and through.startswith(before):
            answers.append((len(before), len(through.rstrip())))
            continue
        marked = {**message, "content": [{"type": "text", "text": STAND_IN}]}
        start, _, after = text([*messages[:place], marked, *messages[place + 1 :]]).partition(STAND_IN)
        end = len(whole) - len(after)
        closing = text([*messages[:place], marked]).partition(STAND_IN)[2].rstrip()
        if not (whole.startswith(start) and whole.endswith(after) and after.startswith(closing) and len(start) < end):
            raise InputError(f"the model's chat template renders a turn differently when others follow: {ADVICE}")
        answers.append((len(start), end + len(closing)))
    return RenderedText(whole, answers)


def find_supervised(text: RenderedText, offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> Tensor:
    """Find the answer within which each token begins, counted from 0, int64 [length]; -1 for the other tokens.

    `offsets` (int64 [length, 2]) are begin and end of each token in the text with expanded images; `replaced` are the
    expansions of the placeholders, as processors return them: `span` in the text, `new_span` in the expanded text.

    Raises InputError if the processor changed another part of the text.
    """
    growth = [(image["span"][1], find_growth(image)) for image in replaced]
    if int(offsets.max()) > len(text.text) + sum(more for _, more in growth):
        raise InputError("the processor changes more of the text than its images: the answers cannot be found")
    starts, answers = offsets[:, 0], torch.full((len(offsets),), -1)
    for number, (start, end) in enumerate(text.answers):
        shift = sum(more for placeholder, more in growth if placeholder <= start)
        answers[(starts >= start + shift) & (starts < end + shift)] = number
    return answers


def find_within_images(offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> Tensor:
    """Find the tokens of the images, with the marks around them, bool [length]; see `find_supervised`."""
    starts, within = offsets[:, 0], torch.zeros(len(offsets), dtype=torch.bool)
    for image in replaced:
        within |= (starts >= image["new_span"][0]) & (starts < image["new_span"][1])
    return within


def find_growth(replaced: Mapping[str, Any]) -> int:
    """Return how many characters longer an image's tokens are than its placeholder."""
    (begin, end), (new_begin, new_end) = replaced["span"], replaced["new_span"]
    return new_end - new_begin - (end - begin)


def tile(offsets: Tensor, replaced: Sequence[Mapping[str, Any]]) -> Tensor:
    """Return begin and end of each token in the rendered text, int64 [length, 2]; see `Collator`.

    `offsets` and `replaced` are as in `find_supervised`.
    """
    ends = offsets[:, 1].cummax(dim=0).values
    placed, shift = ends.clone(), 0
    for image in replaced:
        begin, end = image["span"]
        grown = end + shift + find_growth(image)
        placed[(ends > begin + shift) & (ends < grown)] = begin
        shift += find_growth(image)
        placed[ends >= grown] = ends[ends >= grown] - shift
    return torch.stack([torch.cat([placed.new_zeros(1), placed[:-1]]), placed], dim=1)


def collate_good(collate: Collator, samples: list[dict]) -> BatchFeature | None:
    """Collate samples, without the bad ones if `collate` leaves them out; None if all are bad."""
    try:
        return collate(samples)
    except UnusableSamples:
        if not collate.leave_out:
            raise
        return None
