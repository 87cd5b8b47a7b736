"""The token table: one row for each supervised token, with both scores, delta, weight and the kind of its word."""

from typing import Any, NamedTuple

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import Conversations, Entry
from cal_cli.inspection.word_kinds import Truth, find_truth
from cal_cli.objective import RuleLoss
from cal_cli.objective.contrast import contrast
from cal_cli.objective.forward import Positions, run_with_image

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
