"""The token table: one row for each supervised token, with both scores, delta and weight."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.conversations import Conversations
from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits


@dataclass
class Piece:
    """One token of a sample as it is shown; `delta` and `weight` are None where it is not supervised."""

    text: str
    delta: float | None
    weight: float | None


@torch.no_grad()
def token_table(
    model: PreTrainedModel,
    processor: Any,
    data: Conversations,
    objective: ContrastiveAlignmentLoss,
    noisy: set[int] | None,
    batch_size: int,
) -> tuple[pa.Table, list[list[Piece]]]:
    """Contrast every supervised token of a data set.

    Args:
        model: in evaluation mode.
        processor: its processor.
        data: the samples.
        objective: the score that is contrasted and how it becomes a weight.
        noisy: places in the data of samples whose captions were exchanged; None where that is not known.
        batch_size: samples at once.

    Returns:
        A table (sample_id string, position int64, token_id int64, token string, logit_with_image,
        logit_without_image, delta, weight float32, is_noise bool or null) and each sample's text in pieces.
        The table's metadata names the score: with `logprob` the two logit columns hold log-probabilities.
    """
    collate, tokenizer = Collator(processor), processor.tokenizer
    rows: dict[str, list] = {field.name: [] for field in SCHEMA}
    pieces: list[list[Piece]] = []
    for start in range(0, len(data), batch_size):
        indices = range(start, min(start + batch_size, len(data)))
        samples = [data[index] for index in indices]
        batch = collate(samples).to(model.device)
        contrast = contrast_logits(model, batch, objective.score)
        weights = objective(model, batch).weights
        values = zip(
            contrast.sample_index.tolist(),
            contrast.position.tolist(),
            contrast.labels.tolist(),
            contrast.with_image.tolist(),
            contrast.without_image.tolist(),
            contrast.delta.tolist(),
            weights.tolist(),
            strict=True,
        )
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
                Piece(token_text(tokenizer, ids, position), *supervised.get((sample, position), (None, None)))
                for position in range(len(ids))
                if batch["attention_mask"][sample, position] and ids[position] != model.config.image_token_id
            ]
            pieces.append([piece for piece in text if piece.text])
    return pa.table(rows, SCHEMA.with_metadata({"score": objective.score})), pieces


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


def token_text(tokenizer, ids: list[int], position: int) -> str:
    """A token's text with the space before it, which decoding it alone would lose with some tokenizers."""
    before = ids[max(position - 1, 0) : position]
    return tokenizer.decode([*before, ids[position]])[len(tokenizer.decode(before)) :] if before else ""
