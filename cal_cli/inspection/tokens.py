"""The token table: one row for each supervised token, with both scores, delta and weight."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import Conversations
from cal_cli.objective import RuleLoss
from cal_cli.objective.forward import run_with_image

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
    ]
)


@dataclass
class Piece:
    """One token of a sample as text; `delta` and `weight` are None if it is not supervised."""

    text: str
    delta: float | None
    weight: float | None


@torch.no_grad()
def make_token_table(
    model: PreTrainedModel,
    processor: Any,
    data: Conversations,
    objective: RuleLoss,
    noisy: set[int] | None,
    batch_size: int,
) -> tuple[pa.Table, list[list[Piece]]]:
    """Contrast every supervised token of a data set.

    Args:
        model: in evaluation mode.
        processor: of the model.
        data: the samples.
        objective: defines the score that is contrasted, and the weights.
        noisy: indices of the samples whose captions were exchanged; None if that is unknown.
        batch_size: samples in a batch.

    Returns:
        A table with the columns of `SCHEMA`, and the text of each sample in pieces. The table's metadata names the
        score: with `logprob` the two logit columns hold log-probabilities.
    """
    collate, tokenizer = Collator(processor), processor.tokenizer
    rows: dict[str, list] = {field.name: [] for field in SCHEMA}
    pieces: list[list[Piece]] = []
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        samples = [data[index] for index in indices]
        batch = collate(samples).to(model.device)
        forward = run_with_image(model, batch, objective.reach)
        scores, positions = objective.score_tokens(forward), forward.positions
        without_image = torch.where(positions.has_image, scores.without_image, scores.with_image)
        columns = (
            positions.rows,
            positions.columns + 1,
            positions.labels,
            scores.with_image,
            without_image,
            scores.with_image - without_image,
            objective.weigh_positions(scores, forward),
        )
        values = zip(*(column[positions.supervised].tolist() for column in columns), strict=True)
        supervised: dict[tuple[int, int], tuple[float, float]] = {}
        for sample, position, token_id, with_image, without_image, delta, weight in values:
            supervised[sample, position] = (delta, weight)
            is_noise = None if noisy is None else start + sample in noisy
            token = tokenizer.decode([token_id])
            row = (samples[sample]["id"], position, token_id, token, with_image, without_image, delta, weight, is_noise)
            for column, value in zip(rows.values(), row, strict=True):
                column.append(value)
        for sample, ids in enumerate(batch["input_ids"].tolist()):
            text = [
                Piece(decode_token(tokenizer, ids, position), *supervised.get((sample, position), (None, None)))
                for position in range(len(ids))
                if batch["attention_mask"][sample, position] and ids[position] != model.config.image_token_id
            ]
            pieces.append([piece for piece in text if piece.text])
    return pa.table(rows, SCHEMA.with_metadata({"score": objective.score})), pieces


def decode_token(tokenizer: Any, ids: list[int], position: int) -> str:
    """Decode one token with the space before it, which some tokenizers drop when they decode it alone."""
    before = ids[max(position - 1, 0) : position]
    return tokenizer.decode([*before, ids[position]])[len(tokenizer.decode(before)) :] if before else ""
