"""An audit: the log-probability of every supervised token with its image and without it, and what follows from it.

Each part of the data has a file, written when the part is done, so that an audit that was killed continues after its
last part, and memory does not grow with the data.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator, collate_good
from cal_cli.data.sample import Conversations, load_samples
from cal_cli.inspection.tokens import spell_tokens
from cal_cli.objective.contrasts import contrast_tokens
from cal_cli.objective.passes import run_with_image
from cal_cli.objective.rules import MismatchPosterior, TokenScores
from cal_cli.runtime.files import write_parquet
from cal_cli.statistics.seeds import format_interval
from cal_cli.statistics.shares import compute_posterior, estimate_share

PART = 256  # samples of a part
ENDS = (".", "!", "?", "。", "！", "？", "\n")  # of sentences
CLOSING = "\"')]}”’»"  # may follow the end of a sentence within a token
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
        ("image", pa.dictionary(pa.int32(), pa.string())),  # a hash of the pixels: equal for equal images
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
        self.model, self.batch_size, self.workers = model, batch_size, workers
        self.collate = replace(collate, keep_ids=True, keep_text=True)
        self.special = set(collate.processor.tokenizer.all_special_ids)

    def write_part(self, data: Conversations, places: Sequence[int], path: Path) -> None:
        """Contrast the samples at some places, and write the table of their tokens; bad samples have none."""
        by_length = sorted(places, key=lambda i: sum(len(turn["value"]) for turn in data.entries[i]["conversations"]))
        collate = partial(collate_with_hashes, self.collate)
        rows: list[tuple] = []
        for batch, hashes in load_samples(data, by_length, self.batch_size, self.workers, collate):
            if batch is not None:
                batch.pop("bad", None)
                scored = self._contrast(batch.to(self.model.device), batch["place"], batch["id"])
                rows += [(*row, hashes[row[0]]) for row in scored]
        rows.sort(key=lambda row: (row[0], row[2]))
        columns = zip(*rows, strict=True) if rows else ([] for _ in TOKENS)
        table = pa.table([pa.array(column, field.type) for column, field in zip(columns, TOKENS, strict=True)], TOKENS)
        write_parquet(path, table)

    @torch.no_grad()
    def _contrast(self, batch: Any, places: Sequence[int], ids: Sequence[str]) -> list[tuple]:
        """Return a row of `TOKENS`, without the image, for each supervised token of a batch."""
        contrast = contrast_tokens(run_with_image(self.model, batch), score="logprob")
        spelled = [spell_tokens(*rendered) for rendered in zip(batch["text"], batch["offsets"], strict=True)]
        answers = batch["answer"].tolist()
        columns = (
            contrast.sample_index,
            contrast.position,
            contrast.labels,
            contrast.with_image,
            contrast.without_image,
        )
        rows: list[tuple] = []
        for row, tokens in groupby(zip(*(c.tolist() for c in columns), strict=True), key=itemgetter(0)):
            ended, turn, sentence = False, -1, -1  # of the token before
            for _, position, label, *both in tokens:
                text, special, answer = spelled[row][position], label in self.special, answers[row][position]
                ends = special or text.rstrip(CLOSING + " ").endswith(ENDS)
                ends = ends if text else ended  # without text: a further token of the character before
                # ends that follow each other, such as a full stop and the end token, are of the same sentence
                sentence += answer != turn or (ended and not ends)
                rows.append((places[row], ids[row], position, text, special, answer, sentence, *both))
                ended, turn = ends, answer
        return rows


def collate_with_hashes(collate: Collator, samples: list[dict]) -> tuple[Any, dict[int, str]]:
    """Collate samples without the bad ones, and hash the images of each good one, by its place."""
    good = [sample for sample in samples if "bad" not in sample]
    images = [sample["image"] if isinstance(sample["image"], list) else [sample["image"]] for sample in good]
    hashes = {sample["place"]: hash_images(shown) for sample, shown in zip(good, images, strict=True)}
    return collate_good(collate, samples), hashes


def hash_images(images: Sequence[Image.Image]) -> str:
    """Return 16 hexadecimal digits for the sizes and pixels of images."""
    digest = hashlib.blake2b(digest_size=8)
    for image in images:
        digest.update(f"{image.size}".encode() + image.tobytes())
    return digest.hexdigest()


LONGEST = 200  # characters of a stretch of text in a table


@dataclass
class AuditSummary:
    """What an audit found, without its tokens.

    Attributes:
        samples: a row for each sample, in the order of the data: `index`, `sample_id`, `tokens`, `evidence`
            (log p(text | image, prompt) - log p(text | prompt), in nats), `contradiction` (minus the smallest such sum
            over a stretch of consecutive tokens, at least 0), `begin` and `end` (the stretch, in tokens of the sample),
            `stretch` (its text), `loss` (mean cross-entropy with the image), `mean_delta` (evidence for each token),
            `image` (a hash) and `p_mismatch` (the probability that the text was not written for its image).
        shares: for `samples` and `sentences` the estimated share that is mismatched, see `estimate_share`.
    """

    samples: pd.DataFrame
    shares: dict[str, dict[str, Any]]

    def describe(self, samples: int, shown: int) -> list[str]:
        """Describe the audit in sentences; `shown` of the data's `samples` have an image."""
        audited = len(self.samples)
        facts = [f"{samples:,} samples, of which {shown:,} show an image and {audited:,} were audited."]
        if audited < shown:
            facts.append(f"{shown - audited:,} cannot be used; cal data-check says why.")
        for name, share in self.shares.items():
            facts.append(f"Estimated share of mismatched {name}: {format_interval(share)} of {share['n']:,}.")
        return facts


def summarize_audit(parts: Iterable[pa.Table]) -> AuditSummary:
    """Summarise the parts of an audit, tables with the columns of `TOKENS`.

    A text is modelled as written for its image, with probability p(text | image, prompt), or not, with
    p(text | prompt); the fraction of the latter has the largest likelihood over all samples, or sentences.

    Raises ValueError if there is no sample.
    """
    samples, sentences = [], []
    for part in parts:
        if not len(part):  # all of its samples are bad
            continue
        tokens = add_delta(part)
        samples.append(summarize_samples(tokens))
        sentences.append(summarize_sentences(tokens)[["index", "evidence"]])
    if not samples:
        raise ValueError("no sample could be audited")
    table, of_sentences = pd.concat(samples, ignore_index=True), pd.concat(sentences, ignore_index=True)
    shares = {
        "samples": estimate_share(table["evidence"].to_numpy()),
        "sentences": estimate_share(of_sentences["evidence"].to_numpy(), of_sentences["index"].to_numpy()),
    }
    table["p_mismatch"] = compute_posterior(table["evidence"].to_numpy(), shares["samples"]["value"])
    return AuditSummary(table, shares)


def add_delta(part: pa.Table) -> pd.DataFrame:
    """Return a part with the column `delta`, the log-probability with the image minus that without it, in nats."""
    tokens = part.to_pandas()
    return tokens.assign(delta=tokens["logprob_with_image"] - tokens["logprob_without_image"])


def summarize_samples(tokens: pd.DataFrame) -> pd.DataFrame:
    """Summarise the tokens of each sample: the columns of `AuditSummary.samples` without `p_mismatch`.

    The tokens of a sample are consecutive rows.
    """
    index, ids, images = (tokens[name].to_numpy() for name in ("index", "sample_id", "image"))
    texts = tokens["token"].where(~tokens["special"], "").to_numpy()
    deltas, logprobs = (tokens[name].to_numpy(np.float64) for name in ("delta", "logprob_with_image"))
    rows = []
    for first, last in pairwise([0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]):
        delta = deltas[first:last]
        smallest, begin, end = find_stretch(delta)
        rows.append(
            {
                "index": index[first],
                "sample_id": ids[first],
                "tokens": len(delta),
                "evidence": delta.sum(),
                "contradiction": -smallest,
                "begin": begin,
                "end": end,
                "stretch": "".join(texts[first + begin : first + end]).strip()[:LONGEST],
                "loss": -logprobs[first:last].mean(),
                "mean_delta": delta.mean(),
                "image": images[first],
            }
        )
    return pd.DataFrame(rows)


def summarize_sentences(tokens: pd.DataFrame) -> pd.DataFrame:
    """Summarise the tokens of each sentence: `index`, `sample_id`, `turn`, `sentence`, `text` and `evidence`.

    Special tokens, such as the end token, count for the evidence and are not part of the text.
    """
    spoken = tokens.assign(token=tokens["token"].where(~tokens["special"], ""))
    grouped = spoken.groupby(["index", "sentence"], sort=False)
    return grouped.agg(
        sample_id=("sample_id", "first"),
        turn=("turn", "first"),
        text=("token", lambda pieces: "".join(pieces).strip()),
        evidence=("delta", "sum"),
    ).reset_index()


def find_stretch(delta: np.ndarray) -> tuple[float, int, int]:
    """Find the stretch of consecutive tokens with the smallest sum, float [tokens]; 0 and an empty stretch at best.

    It maximises the ratio of likelihoods for a part of the text that was written without the image. Returns the sum,
    and the stretch's begin and end. Source: the maximum-scoring segment of sequence analysis, in linear time.

    Example:
        >>> find_stretch(np.array([3.0, -2.0, 1.0, -4.0, 5.0]))
        (-5.0, 1, 4)
    """
    sums = np.concatenate([[0.0], np.cumsum(delta)])
    highest = np.maximum.accumulate(sums)
    end = int((sums - highest).argmin())
    begin = int(sums[: end + 1].argmax())
    return float(sums[end] - sums[begin]), begin, end


def write_sentences(path: Path, parts: Iterable[pa.Table], share: float) -> None:
    """Write the table of all sentences, part by part, with the probability that each is mismatched, given the share."""
    temporary, writer = path.with_name(f".{path.name}"), None
    for part in parts:
        if not len(part):
            continue
        sentences = summarize_sentences(add_delta(part))
        posterior = compute_posterior(sentences["evidence"].to_numpy(), share)
        rows = pa.Table.from_pandas(sentences.assign(p_mismatch=posterior), preserve_index=False)
        writer = writer or pq.ParquetWriter(temporary, rows.schema)
        writer.write_table(rows)
    if writer is not None:
        writer.close()
        os.replace(temporary, path)


def weigh_tokens(
    parts: Iterable[pa.Table], share: float, p_wrong: Mapping[int, float] | None = None
) -> dict[int, list[list[float]]]:
    """Compute the weights of the tokens of each answer, by the place of the sample: see `MismatchPosterior`.

    Args:
        parts: of the audit.
        share: the fraction of mismatched samples.
        p_wrong: the probability that each sample is wrong, by its place, where it is known better than from the
            evidence: 1 minus it then is the weight of the text, which multiplies those of its tokens.
    """
    rule = MismatchPosterior(rho=min(share, 0.999) if p_wrong is None else 0.0, estimated=False)
    weights: dict[int, list[list[float]]] = {}
    for part in parts:
        with_image, without_image, index = (
            torch.from_numpy(part[name].to_numpy().copy())
            for name in ("logprob_with_image", "logprob_without_image", "index")
        )
        values = rule(TokenScores(with_image, without_image, index)).double().numpy()
        if p_wrong is not None:
            values = values * np.array([1 - p_wrong[place] for place in index.tolist()])
        values = values.round(4)
        turns = part.to_pandas()[["index", "turn"]].assign(weight=values)
        for (place, _), answer in turns.groupby(["index", "turn"], sort=False)["weight"]:
            weights.setdefault(place, []).append(answer.tolist())
    return weights
