"""The token table: each supervised token with both scores, delta, weight and the kind of its word; words, ranked."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import CORRELATED, Conversations, Entry
from cal_cli.objective import RuleLoss
from cal_cli.objective.contrasts import contrast
from cal_cli.objective.passes import Positions, run_with_image

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("logit_with_image", pa.float32()),
        ("logit_without_image", pa.float32()),
        ("delta", pa.float32()),
        ("weight", pa.float32()),
        ("is_noise", pa.bool_()),
        ("kind", pa.string()),
        ("logprob_with_image", pa.float32()),
        ("logprob_without_image", pa.float32()),
    ]
)


class Token(NamedTuple):
    """What is known of a supervised token; `logit` and `logprob` are scores with the image, and without it.

    `special` marks tokens that are no text, such as the end token.
    """

    logit: tuple[float, float]
    logprob: tuple[float, float]
    weight: float
    kind: str | None = None
    special: bool = False

    @property
    def logit_delta(self) -> float:
        """The raw logit with the image minus the raw logit without it."""
        return self.logit[0] - self.logit[1]

    @property
    def logprob_delta(self) -> float:
        """The log-probability with the image minus that without it, in nats."""
        return self.logprob[0] - self.logprob[1]


class Piece(NamedTuple):
    """One token of a sample as text; `token` is None if it is not supervised."""

    text: str
    token: Token | None


class Truth(NamedTuple):
    """What is known of a token: whether it does not describe its picture, and its kind; None if that is unknown."""

    is_noise: bool | None = None
    kind: str | None = None


@torch.no_grad()
def make_token_table(
    model: PreTrainedModel,
    processor: Any,
    data: Conversations,
    objective: RuleLoss,
    noisy: dict[int, dict[str, Any]] | None,
    batch_size: int,
) -> tuple[pa.Table, list[list[Piece]]]:
    """Contrast every supervised token of a data set.

    Args:
        model: in evaluation mode.
        processor: of the model.
        data: the samples.
        objective: defines the weights, and the score of `delta`; one whose weights the model alone gives.
        noisy: what was changed, by the index of a sample, see `inject_noise`; None if that is unknown.
        batch_size: samples in a batch.

    Returns:
        A table with the columns of `SCHEMA`, and the text of each sample in pieces. The table's metadata names the
        `score` of delta, `logit` or `logprob`.
    """
    collate, tokenizer = Collator(processor), processor.tokenizer
    special = set(tokenizer.all_special_ids)
    rows: dict[str, list] = {field.name: [] for field in SCHEMA}
    pieces: list[list[Piece]] = []
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        samples = [data[index] for index in indices]
        batch = collate(samples).to(model.device)
        forward = run_with_image(model, batch, objective.reach)
        positions = forward.positions
        contrasts = [contrast(forward, score=score) for score in ("logit", "logprob")]
        columns = (
            positions.rows,
            positions.columns + 1,
            positions.labels,
            *(scores for found in contrasts for scores in (found.with_image, found.without_image)),
            objective.weigh_positions(objective.score_tokens(forward), forward),
        )
        values = zip(*(column[positions.supervised].tolist() for column in columns), strict=True)
        supervised: dict[tuple[int, int], Token] = {}
        entries = [data.entries[index] for index in indices]
        truths = find_truths(entries, start, noisy, positions, batch["input_ids"].tolist(), tokenizer)
        for sample, position, token_id, *numbers, weight in values:
            truth = truths[sample, position]
            token = Token(tuple(numbers[:2]), tuple(numbers[2:]), weight, truth.kind, token_id in special)
            supervised[sample, position] = token
            delta = token.logit_delta if objective.score == "logit" else token.logprob_delta
            named = (samples[sample]["id"], position, token_id, tokenizer.decode([token_id]))
            row = (*named, *token.logit, delta, weight, *truth, *token.logprob)
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
        for sample, ids in enumerate(batch["input_ids"].tolist()):
            text = [
                Piece(decode_token(tokenizer, ids, position), supervised.get((sample, position)))
                for position in range(len(ids))
                if batch["attention_mask"][sample, position] and ids[position] != model.config.image_token_id
            ]
            pieces.append([piece for piece in text if piece.text])
    return pa.table(rows, SCHEMA.with_metadata({"score": objective.score})), pieces


def find_truths(
    entries: list[Entry],
    start: int,
    noisy: dict[int, dict[str, Any]] | None,
    positions: Positions,
    ids: list[list[int]],
    tokenizer: Any,
) -> dict[tuple[int, int], Truth]:
    """Find what is known of each supervised token of a batch, by row and column, see `find_truth`.

    `entries` are those of the batch, and `start` is the index of the first.
    """
    supervised = positions.supervised
    places = list(zip(positions.rows[supervised].tolist(), (positions.columns[supervised] + 1).tolist(), strict=True))
    answers: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for place, turn in zip(places, positions.turns[supervised].tolist(), strict=True):
        answers.setdefault(place[0], {}).setdefault(turn, []).append(place)
    found: dict[tuple[int, int], Truth] = {}
    for row, turns in answers.items():
        chosen = list(turns.values())
        pieces = [[decode_token(tokenizer, ids[row], column) for _, column in answer] for answer in chosen]
        truths = find_truth(entries[row], (noisy or {}).get(start + row), noisy is not None, pieces)
        for answer, known in zip(chosen, truths, strict=True):
            found |= dict(zip(answer, known, strict=True))
    return found


def decode_token(tokenizer: Any, ids: list[int], position: int) -> str:
    """Decode one token with the space before it, which some tokenizers drop when they decode it alone."""
    before = ids[max(position - 1, 0) : position]
    return tokenizer.decode([*before, ids[position]])[len(tokenizer.decode(before)) :] if before else ""


EDGES = ".,;:!?\"'()[]{}<>"  # characters that do not belong to a word at its ends


class Word(NamedTuple):
    """A word of an answer: its kind is that of its first token that has one."""

    text: str
    delta: float  # sum over its tokens, in nats
    kind: str | None


class RankedWord(NamedTuple):
    """A word over all its occurrences of one kind."""

    text: str
    kind: str | None
    times: int
    delta: float  # mean


def number_words(texts: Sequence[str | None]) -> list[int]:
    """Number the words that tokens belong to, from 0; -1 for a token that belongs to none.

    A word begins where a token begins with white space, after one that ends with it, and after a token of no word.
    `texts` are those of the tokens; None for one of no word, such as one of the prompt or a special one.
    """
    numbers: list[int] = []
    count, before = 0, None
    for text in texts:
        count += text is not None and (before is None or before[-1:].isspace() or text[:1].isspace())
        numbers.append(-1 if text is None else count - 1)
        before = text
    return numbers


def join_words(pieces: Sequence[Piece]) -> list[Word]:
    """Join the supervised tokens of a sample to words, in lower case and without punctuation at their ends.

    By the chain rule the differences of a word's tokens in log-probability add up to that of the word. Special tokens
    belong to none; see `number_words`.
    """
    words: dict[int, list[Piece]] = {}
    inside = [None if piece.token is None or piece.token.special else piece.text for piece in pieces]
    for number, piece in zip(number_words(inside), pieces, strict=True):
        if number >= 0:
            words.setdefault(number, []).append(piece)
    found = []
    for word in words.values():
        text = "".join(piece.text for piece in word).strip().strip(EDGES).lower()
        tokens = [piece.token for piece in word if piece.token is not None]
        kind = next((token.kind for token in tokens if token.kind), None)
        if any(character.isalnum() for character in text):
            found.append(Word(text, sum(token.logprob_delta for token in tokens), kind))
    return found


def rank_words(samples: Iterable[Sequence[Piece]], least: int = 3, size: int = 12) -> list[list[RankedWord]]:
    """Rank the words of samples, each kind of a word apart, by their mean difference in log-probability.

    Args:
        samples: with an image each.
        least: number of occurrences below which a word is left out.
        size: of each list, at most.

    Returns:
        The words that the image makes most probable, and those that it makes least probable.
    """
    table = pd.DataFrame([word for pieces in samples for word in join_words(pieces)], columns=list(Word._fields))
    grouped = table.groupby(["text", "kind"], dropna=False, sort=True)["delta"].agg(["size", "mean"])
    ranked = [
        RankedWord(text, kind if isinstance(kind, str) else None, int(count), float(mean))
        for (text, kind), count, mean in grouped[grouped["size"] >= least].itertuples()
    ]
    visual = sorted((word for word in ranked if word.delta > 0), key=lambda word: -word.delta)
    contradicted = sorted((word for word in ranked if word.delta < 0), key=lambda word: word.delta)
    return [visual[:size], contradicted[:size]]


CORRELATED_WORD = "correlated"  # it can only be known by looking
IRRELEVANT_WORD = "irrelevant"  # it does not depend on the picture
CONTRADICTED_WORD = "contradicted"  # it would depend on the picture, and is wrong
WORD_KINDS = (CORRELATED_WORD, IRRELEVANT_WORD, CONTRADICTED_WORD)


def find_truth(
    entry: Entry, change: Mapping[str, Any] | None, noise_known: bool, answers: Sequence[Sequence[str]]
) -> list[list[Truth]]:
    """Find what is known of the tokens of a sample's answers.

    Args:
        entry: the sample after the change; its `correlated` marks, if it has some, give the kinds.
        change: what was changed in it, see `inject_noise`; None if nothing was.
        noise_known: whether the changes are known at all.
        answers: for each answer, the text of each token, special tokens included.

    Returns:
        For each answer, an item for each token.
    """
    places = [place for place, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    found = []
    for place, pieces in zip(places, answers, strict=False):
        text = entry["conversations"][place]["value"]
        marked: list[bool] | None = None
        if entry.get(CORRELATED) is not None:
            spans = [mark[1:] for mark in entry[CORRELATED] if mark[0] == place]
            marked = find_touched(pieces, text, spans)
        exchanged = change is not None and "spans" not in change
        wrong: list[bool] | None = [exchanged] * len(pieces)
        if change is not None and change.get("turn") == place:
            wrong = find_touched(pieces, text, change["spans"])
        found.append(
            [
                describe(
                    (None if wrong is None else wrong[n]) if noise_known else None,
                    None if marked is None else marked[n],
                    exchanged,
                )
                for n in range(len(pieces))
            ]
        )
    return found


def describe(is_noise: bool | None, correlated: bool | None, exchanged: bool) -> Truth:
    """Combine whether a token is noise and its word marked; irrelevant words of `exchanged` texts stay so."""
    if is_noise and not exchanged:
        return Truth(is_noise, CONTRADICTED_WORD)
    if correlated is None:
        return Truth(is_noise)
    if not correlated:
        return Truth(is_noise, IRRELEVANT_WORD)
    return Truth(is_noise, CONTRADICTED_WORD if is_noise else CORRELATED_WORD)


def find_touched(pieces: Sequence[str], text: str, spans: Sequence[Sequence[int]]) -> list[bool] | None:
    """Find the tokens that hold a character of one of the spans.

    Args:
        pieces: the text of each token of an answer, special tokens included.
        text: the answer.
        spans: begin and end in the answer; an empty span means what follows it, such as the end token of a cut text.

    Returns:
        bool for each token; None if the tokens do not spell the answer, so that their places are unknown.
    """
    shift = "".join(pieces).find(text)
    if shift < 0:
        return None
    ends = [end - shift for end in accumulate(map(len, pieces))]
    places = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
    return [any(touches(place, span) for span in spans) for place in places]


def touches(place: tuple[int, int], span: Sequence[int]) -> bool:
    """Return whether a token at a place holds a character of a span, or follows it if it is empty."""
    begin, end = span
    return place[0] >= begin if begin == end else place[0] < end and place[1] > begin
