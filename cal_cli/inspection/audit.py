"""The pass of an audit: the log-probability of every supervised token, with its image and without it, part by part.

Each part of the data has a file, written when the part is done, so that an audit that was killed continues after its
last part, and memory does not grow with the data.
"""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.placed import PlacedSamples, collate_good
from cal_cli.data.sample import Conversations
from cal_cli.inspection.tokens import decode_token
from cal_cli.objective import find_sentence_ends
from cal_cli.objective.contrast import contrast
from cal_cli.objective.forward import run_with_image
from cal_cli.objective.sentences import split_sentences
from cal_cli.runtime.files import write_whole

PART = 256  # samples of a part
TOKENS = pa.schema(
    [
        ("index", pa.int64()),  # of the sample in the data
        ("sample_id", pa.string()),
        ("position", pa.int32()),  # of the token in the model's input
        ("token", pa.string()),
        ("special", pa.bool_()),  # no text, such as the end token
        ("turn", pa.int32()),  # number of the answer in the sample
        ("sentence", pa.int32()),  # number of the sentence in the sample
        ("logprob_with_image", pa.float32()),
        ("logprob_without_image", pa.float32()),
    ]
)


def list_parts(data: Conversations) -> list[list[int]]:
    """List the parts of a data set: the places of the samples that show an image, `PART` at a time."""
    shown = [place for place, entry in enumerate(data.entries) if "image" in entry]
    return [shown[start : start + PART] for start in range(0, len(shown), PART)]


def find_part(folder: Path, number: int) -> Path:
    """Return the file of a part."""
    return folder / f"{number:06d}.parquet"


def read_parts(folder: Path, count: int) -> Iterator[pa.Table]:
    """Read the tables of all parts, with the columns of `TOKENS`, one at a time."""
    return (pq.read_table(find_part(folder, number)) for number in range(count))


class Auditor:
    """Writes parts of an audit.

    Args:
        model: in evaluation mode.
        collate: with the model's processor.
        batch_size: samples in a batch; those of similar lengths share one.
        workers: processes that prepare batches.
    """

    def __init__(self, model: PreTrainedModel, collate: Collator, batch_size: int, workers: int) -> None:
        self.model, self.collate, self.batch_size, self.workers = model, collate, batch_size, workers
        self.tokenizer = collate.processor.tokenizer
        self.ends = find_sentence_ends(self.tokenizer)
        self.special = set(self.tokenizer.all_special_ids)

    def write_part(self, data: Conversations, places: Sequence[int], path: Path) -> None:
        """Contrast the samples at some places, and write the table of their tokens; bad samples have none."""
        by_length = sorted(places, key=lambda place: count_characters(data.entries[place]))
        loader = DataLoader(
            Subset(PlacedSamples(data), by_length),
            self.batch_size,
            num_workers=self.workers,
            collate_fn=partial(collate_good, self.collate),
        )
        rows: list[tuple] = []
        for good, batch in loader:
            if good:
                ids = [str(data.entries[place]["id"]) for place in good]
                rows += self._contrast(batch.to(self.model.device), good, ids)
        rows.sort(key=lambda row: (row[0], row[2]))
        columns = zip(*rows, strict=True) if rows else ([] for _ in TOKENS)
        table = pa.table([pa.array(column, field.type) for column, field in zip(columns, TOKENS, strict=True)], TOKENS)
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_whole(path, buffer.getvalue())

    @torch.no_grad()
    def _contrast(self, batch: Any, places: Sequence[int], ids: Sequence[str]) -> list[tuple]:
        """Return a row of `TOKENS` for each supervised token of a batch."""
        forward = run_with_image(self.model, batch)
        found, positions = contrast(forward, score="logprob"), forward.positions
        turns = number_within(positions.turns, positions.rows)
        sentences = number_within(split_sentences(positions, self.ends), positions.rows)
        written = batch["input_ids"].tolist()
        columns = (found.sample_index, found.position, found.labels, turns, sentences)
        scores = (found.with_image, found.without_image)
        rows = []
        for row, position, label, turn, sentence, *both in zip(*(c.tolist() for c in (*columns, *scores)), strict=True):
            text = decode_token(self.tokenizer, written[row], position)
            rows.append((places[row], ids[row], position, text, label in self.special, turn, sentence, *both))
        return rows


def number_within(numbers: Tensor, rows: Tensor) -> Tensor:
    """Number from 0 within each row of a batch what is numbered through the batch; both int64 [positions], sorted."""
    firsts = torch.cat([rows.new_ones(1, dtype=torch.bool), rows.diff() != 0])
    return numbers - numbers[firsts][firsts.cumsum(0) - 1]


def count_characters(entry: dict) -> int:
    """Count the characters of an entry's conversation."""
    return sum(len(turn["value"]) for turn in entry["conversations"])
