"""The token table: each supervised token with both scores, delta, weight and the kind of its word; words and kinds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import CORRELATED, Conversations, Entry
from cal_cli.objective import RuleLoss
from cal_cli.objective.contrasts import contrast_tokens
from cal_cli.objective.passes import find_image_columns, run_with_image
from cal_cli.runtime.files import encode_figure
from cal_cli.statistics.bootstrap import compute_auc, estimate_auc_interval

# the paper's kinds of words
CORRELATED_WORD = "correlated"  # it can only be known by looking
IRRELEVANT_WORD = "irrelevant"  # it does not depend on the image
CONTRADICTED_WORD = "contradicted"  # it would depend on the image, and is wrong
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
    """What is known of a token: whether it does not describe its image, and its kind; None if that is unknown."""

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

    Returns a table with the columns of `SCHEMA`, and the text of each sample in pieces. The table's metadata names the
    `score` of delta, `logit` or `logprob`.
    """
    collate, tokenizer = Collator(processor, keep_text=True), processor.tokenizer
    special = set(tokenizer.all_special_ids)
    table: list[tuple] = []
    pieces: list[list[Piece]] = []
    for start in range(0, len(data), batch_size):
        places = range(start, min(start + batch_size, len(data)))
        batch = collate([data[place] for place in places]).to(model.device)
        entries = [data.entries[place] for place in places]
        truths = [
            find_truths(entry, None if noisy is None else noisy.get(place, False), batch, row)
            for row, (place, entry) in enumerate(zip(places, entries, strict=True))
        ]
        spelled = list(map(spell_tokens, batch["text"], batch["offsets"]))
        tokens: list[dict[int, Token]] = [{} for _ in places]
        for row, column, label, *scores, weight in score_batch(model, batch, objective):
            truth = truths[row].get(column, Truth())
            token = Token(tuple(scores[:2]), tuple(scores[2:]), weight, truth.kind, label in special)
            tokens[row][column] = token
            delta = token.logit_delta if objective.score == "logit" else token.logprob_delta
            text = tokenizer.decode([label])
            text = spelled[row][column] if "\ufffd" in text else text  # a part of a character, by its bytes
            named = (entries[row]["id"], column, label, text)
            table.append((*named, *token.logit, delta, weight, *truth, *token.logprob))
        shown = batch["attention_mask"].bool() & ~find_image_columns(model, batch["input_ids"])
        for row, texts in enumerate(spelled):
            # a token without text of its own may be supervised: a further token of one character
            kept = [
                column for column, text in enumerate(texts) if shown[row, column] and (text or column in tokens[row])
            ]
            pieces.append([Piece(texts[column], tokens[row].get(column)) for column in kept])
    columns = zip(*table, strict=True)
    values = {field.name: list(column) for field, column in zip(SCHEMA, columns, strict=True)}
    return pa.table(values, SCHEMA.with_metadata({"score": objective.score})), pieces


def score_batch(model: PreTrainedModel, batch: Mapping[str, Any], objective: RuleLoss) -> Iterable[tuple]:
    """Return, for each supervised token, row, column, label, both logits, both log-probabilities, and weight."""
    forward = run_with_image(model, batch, objective.reach)
    positions = forward.positions
    contrasts = [contrast_tokens(forward, score=score) for score in ("logit", "logprob")]
    columns = (
        positions.rows,
        positions.columns + 1,
        positions.labels,
        *(scores for contrast in contrasts for scores in (contrast.with_image, contrast.without_image)),
        objective.weigh_positions(objective.score_tokens(forward), forward),
    )
    return zip(*(column[positions.supervised].tolist() for column in columns), strict=True)


def spell_tokens(text: str, offsets: torch.Tensor) -> list[str]:
    """Return each token's part of a rendered text, for `text` and `offsets` of a sample, see `Collator`."""
    return [text[begin:end] for begin, end in offsets.tolist()]


def find_truths(
    entry: Entry, change: Mapping[str, Any] | bool | None, batch: Mapping[str, Any], row: int
) -> dict[int, Truth]:
    """Find what is known of the tokens of a sample's answers, by their columns.

    Args:
        entry: the sample after the change; its `correlated` marks, if it has some, give the kinds.
        change: what was changed in it, see `inject_noise`; False if nothing was, None if that is unknown.
        batch: with the text of the samples.
        row: the sample's row of the batch.
    """
    truths: dict[int, Truth] = {}
    answers = [(place, turn["value"]) for place, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    edited = isinstance(change, Mapping) and "spans" in change
    swapped = isinstance(change, Mapping) and not edited
    for number, (place, value) in enumerate(answers):
        marked: Mapping[int, bool] | None = None
        wrong: Mapping[int, bool] | None = None
        if entry.get(CORRELATED) is not None:
            spans = [mark[1:] for mark in entry[CORRELATED] if mark[0] == place]
            marked = find_touched(batch, row, number, value, spans)
        columns = find_answer(batch, row, number)
        if isinstance(change, Mapping) and edited and change["turn"] == place:
            wrong = find_touched(batch, row, number, value, change["spans"])
        elif change is not None:
            wrong = dict.fromkeys(columns, swapped)
        for column in columns:
            is_noise = None if wrong is None else wrong[column]
            truths[column] = Truth(is_noise, choose_kind(is_noise, None if marked is None else marked[column], swapped))
    return truths


def choose_kind(is_noise: bool | None, correlated: bool | None, swapped: bool) -> str | None:
    """Return the kind of a token's word, None if it is unknown; irrelevant words of swapped texts stay irrelevant."""
    if is_noise and not swapped:
        return CONTRADICTED_WORD
    if correlated is None:
        return None
    if not correlated:
        return IRRELEVANT_WORD
    return CONTRADICTED_WORD if is_noise else CORRELATED_WORD


def find_answer(batch: Mapping[str, Any], row: int, number: int) -> list[int]:
    """Return the columns of an answer's tokens, its end token included, in one row of a batch."""
    return (batch["answer"][row] == number).nonzero()[:, 0].tolist()


def find_touched(
    batch: Mapping[str, Any], row: int, number: int, value: str, spans: Sequence[Sequence[int]]
) -> dict[int, bool] | None:
    """Find the tokens of an answer that hold a character of one of the spans, by their columns.

    Args:
        batch: with the text of the samples.
        row: of the batch.
        number: of the answer in its sample, from 0.
        value: the answer's text.
        spans: begin and end in it; an empty span means what follows it, such as the end token of a cut text.

    Returns a bool for each token; None if the template does not render the answer as it is, so that places are unknown.
    """
    columns, offsets = find_answer(batch, row, number), batch["offsets"][row].tolist()
    if not columns:
        return {}
    shift = batch["text"][row].find(value, offsets[columns[0]][0])
    if not 0 <= shift < max(offsets[columns[-1]][1], 1):
        return None

    def touches(column: int, first: int, last: int) -> bool:
        begin, end = (place - shift for place in offsets[column])
        return begin >= first if first == last else begin < last and end > first

    touched: dict[int, bool] = {}
    for before, column in zip([-1, *columns], columns, strict=False):
        touched[column] = any(touches(column, *span) for span in spans)
        if offsets[column][0] == offsets[column][1] and before in touched:  # a further token of the character before
            touched[column] |= touched[before]
    return touched


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
    joined = []
    for word in words.values():
        text = "".join(piece.text for piece in word).strip().strip(EDGES).lower()
        tokens = [piece.token for piece in word if piece.token is not None]
        kind = next((token.kind for token in tokens if token.kind), None)
        if any(character.isalnum() for character in text):
            joined.append(Word(text, sum(token.logprob_delta for token in tokens), kind))
    return joined


def rank_words(samples: Iterable[Sequence[Piece]], least: int = 3, size: int = 12) -> list[list[RankedWord]]:
    """Rank the words of samples, each kind of a word apart, by their mean difference in log-probability.

    Args:
        samples: with an image each.
        least: number of occurrences below which a word is left out.
        size: of each list, at most.

    Returns the words that the image makes most probable, and those that it makes least probable.
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


# what is high for the tokens of a kind: delta, minus delta, and how near delta is to 0
EVIDENCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CORRELATED_WORD: np.positive,
    IRRELEVANT_WORD: lambda delta: -np.abs(delta),
    CONTRADICTED_WORD: np.negative,
}


def describe_kinds(delta: np.ndarray, weight: np.ndarray, kind: np.ndarray, sample: np.ndarray) -> dict[str, Any]:
    """Describe the tokens of each kind of word: number, mean delta and weight, and delta as a detector of the kind.

    Args:
        delta, weight: float [tokens].
        kind: str or None [tokens]; tokens of an unknown kind are left out.
        sample: int [tokens], the sample that each token belongs to.

    Returns:
        For each kind that occurs `tokens`, `delta` and `weight`, and, if another occurs too, `auc` and its `ci95`.
    """
    kinds: dict[str, Any] = {}
    known = np.array([of_token is not None for of_token in kind])
    delta, weight, kind, sample = delta[known], weight[known], kind[known], sample[known]
    for name, evidence in EVIDENCE.items():
        of_it = kind == name
        if of_it.any():
            kinds[name] = {
                "tokens": int(of_it.sum()),
                "delta": float(delta[of_it].mean()),
                "weight": float(weight[of_it].mean()),
            }
            if not of_it.all():
                scores = evidence(delta)
                interval = estimate_auc_interval(scores, of_it, sample)
                kinds[name] |= {"auc": compute_auc(scores, of_it), "ci95": interval}
    return kinds


def draw_histogram(deltas: Mapping[str, np.ndarray], title: str = "", bound: float = 5.0) -> bytes:
    """Draw distributions of delta (float [tokens]) by their names as a PNG.

    The label of each has its number of tokens, and the fraction at or below `bound`, the paper's upper clamp bound.
    """
    figure = Figure(figsize=(7, 4 + 0.2 * len(deltas)), layout="constrained")
    axes = figure.subplots()
    together = np.concatenate(list(deltas.values()))
    low, high = np.floor(together.min()), np.ceil(together.max())
    bins: Any = np.linspace(low, max(high, low + 1), 61)
    for name, delta in deltas.items():
        label = f"{name}: {len(delta):,} tokens, {(delta <= bound).mean():.1%} at or below {bound:g}"
        axes.hist(delta, bins, histtype="stepfilled" if len(deltas) < 3 else "step", alpha=0.6, label=label)
    axes.axvline(bound, color="black", linestyle="--")
    axes.set(xlabel="delta (with image minus without)", ylabel="tokens", yscale="log", title=title)
    figure.legend(loc="outside lower center", fontsize=8)
    return encode_figure(figure)
