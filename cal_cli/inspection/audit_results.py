"""What follows from the parts of an audit: the ranking, what is left out, the tables, the page and the clean data."""

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_cli.data.export import FORMATS, average_weights, export_samples
from cal_cli.data.llava_json import write_llava_json
from cal_cli.data.noise import find_rows
from cal_cli.data.sample import LOSS_WEIGHTS, Conversations, rename_images
from cal_cli.inspection.audit import AuditSummary, weigh_tokens
from cal_cli.inspection.detectors import DETECTORS, rank_samples
from cal_cli.inspection.pages import find_audited_samples, render_audit
from cal_cli.inspection.review import PRECISIONS, Design, Review, find_cut, read_verdicts
from cal_cli.runtime.config import SEEDS, limited
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json, write_parquet, write_whole

# the type of the weights of a row's answers, a number for each token of each answer, or for each answer
LEVELS = {"token": pa.list_(pa.list_(pa.float32())), "message": pa.list_(pa.float32())}


@dataclass(kw_only=True)
class Choices:
    """What to make of an audit: keys of `conf/data_audit.yaml`, which documents each."""

    seed: int = limited(0, below=SEEDS)
    rank: str = limited(choices=tuple(DETECTORS))
    clip: str | None
    score_column: str | None
    review: int = limited(0)
    verdicts: str | None
    clean: str = limited(choices=("drop", "weigh"))
    level: str = limited(choices=tuple(LEVELS))
    drop: float | None = limited(0, below=1)
    precision: float | None = limited(0)
    export: str | None
    page_samples: int = limited(0)
    max_length: int | None = limited(1)

    def check(self) -> None:
        """Raise InputError, before hours of work, for choices that exclude each other, or unreadable verdicts."""
        rank = self.rank if self.verdicts is None else read_verdicts(Path(self.verdicts))[0].rank
        for by in (self.rank, rank):
            key = {"score": "score_column", "clip": "clip", "neighbours": "clip"}.get(by)
            if key and getattr(self, key) is None:
                raise InputError(f"rank={by}: give {key}= too, from which its numbers come")
        if self.clean == "weigh" and (self.drop, self.max_length, self.precision) != (None, None, None):
            raise InputError("clean=weigh weighs all tokens of all samples: leave drop, max_length and precision out")
        if self.precision is not None and self.precision > 1:
            raise InputError(f"precision={self.precision}: allowed is a share from 0 to 1")
        if self.precision is not None and (self.verdicts is None or self.drop is not None):
            raise InputError("precision: the cut for it follows from verdicts=verdicts.json, and replaces drop=")
        if self.export is not None and self.export not in FORMATS:
            raise InputError(f"export={self.export}: allowed are {', '.join(FORMATS)}, or null")
        if self.export is not None and self.clean == "weigh" and not FORMATS[self.export].weighs:
            weighing = ", ".join(name for name, form in FORMATS.items() if form.weighs)
            raise InputError(f"export={self.export} has no place for weights: give {weighing}, or clean=drop")


@dataclass
class Decision:
    """What is left out of the data, and what is known of it.

    Attributes:
        table: the audited samples with `rank`, `dropped`, what `Design.assign` adds, and `verdict`. With verdicts,
            `p_mismatch` follows from them.
        design: how samples to judge were chosen; None if none were.
        review: `Review.describe`; None without verdicts.
    """

    table: pd.DataFrame
    design: Design | None
    review: dict[str, Any] | None


def decide(table: pd.DataFrame, share: float, choices: Choices) -> Decision:
    """Rank samples, read the verdicts on them, and decide which to leave out.

    Args:
        table: a row for each audited sample, with the columns that the ranking needs.
        share: the estimated fraction of mismatched samples.
        choices: what to make of the audit.

    Raises InputError if the verdicts are not on this audit.
    """
    design = Design(choices.rank, len(table), min(choices.review, choices.page_samples, len(table)), choices.seed)
    verdicts: list[dict[str, Any]] = []
    if choices.verdicts is not None:
        design, verdicts = read_verdicts(Path(choices.verdicts))
        known = dict(zip(table["index"], table["sample_id"], strict=True))
        if design.samples != len(table) or any(known.get(judged["index"]) != judged["id"] for judged in verdicts):
            raise InputError(f"verdicts={choices.verdicts}: of an audit of other data: its samples are not these")
    assigned = design.assign(rank_samples(table, design.rank)["index"].to_numpy())
    given = {judged["index"]: judged["verdict"] for judged in verdicts}
    review, ranked = Review(assigned, given), rank_samples(table, choices.rank)
    places, described = ranked["index"].to_numpy(), None
    cut = round((share if choices.drop is None else choices.drop) * len(table))
    if verdicts:
        calibrated = review.calibrate(places)
        table = table.assign(p_mismatch=pd.Series(calibrated, index=ranked.index))
        if choices.precision is not None:
            cut = find_cut(calibrated, choices.precision)
        elif choices.drop is None:
            cut = round(review.estimate_total()["value"])
        described = review.describe(places, calibrated, cut)
    elif choices.verdicts is not None:
        raise InputError(f"verdicts={choices.verdicts}: no sample is judged yet")
    dropped = review.settle(places, cut) if choices.clean == "drop" else set()
    ranks = pd.Series(range(1, len(ranked) + 1), index=ranked.index)
    table = table.assign(rank=ranks, dropped=table["index"].isin(dropped)).merge(assigned, on="index")
    table["verdict"] = table["index"].map(given).astype("object")
    return Decision(table, design if design.review else None, described)


def describe_review(review: Mapping[str, Any]) -> str:
    """Describe the verdicts and the estimate of the total in a sentence."""
    total, worst = review["total"], review["for_precision"][2]["cut"]
    low, high = (f"{edge:,.0f}" for edge in total["ci95"])
    return (
        f"Judged: {review['judged']:,}, of which {review['wrong']:,} wrong ({review['unsure']:,} unsure, not counted). "
        f"Estimated number of wrong texts: {total['value']:,.0f} [{low}, {high}] of {total['n']:,}. "
        f"The cut for a precision of {PRECISIONS[2]:.0%}, by the calibrated p_mismatch: the worst {worst:,}."
    )


def write_page(
    path: Path,
    data: Conversations,
    decision: Decision,
    tokens: Iterable[pa.Table],
    title: str,
    facts: list[str],
    samples: int,
) -> None:
    """Write the page: the samples to judge, and the worst ones until there are `samples`."""
    table = decision.table.sort_values("rank")
    extra = (table["turn"] >= 0) & (table["rank"] > samples)
    table = table.assign(listed=table["rank"] <= samples - int(extra.sum()))
    shown = table[table["listed"] | (table["turn"] >= 0)]
    design = None if decision.design is None else asdict(decision.design)
    write_whole(path, render_audit(find_audited_samples(data, shown, tokens), title, facts, design))


def write_clean(
    folder: Path,
    data: Conversations,
    decision: Decision,
    summary: AuditSummary,
    tokens: Callable[[], Iterable[pa.Table]],
    choices: Choices,
) -> list[str]:
    """Write the data without some samples, or with weights for their tokens; return what to type to train on them."""
    table = decision.table
    weights: Mapping[int, list] = {}
    if choices.clean == "weigh":
        calibrated = None if decision.review is None else dict(zip(table["index"], table["p_mismatch"], strict=True))
        weights = weigh_tokens(tokens(), summary.shares["samples"]["value"], calibrated)
        if choices.level == "message":
            weights = {place: average_weights(answers) for place, answers in weights.items()}
    audited = set(table["index"].tolist())
    unusable = {n for n, entry in enumerate(data.entries) if "image" in entry and n not in audited}
    left_out = unusable | set(table["index"][table["dropped"]].tolist())
    kept = np.array([place for place in range(len(data)) if place not in left_out])
    lines = []
    if choices.export is not None:
        label = DETECTORS[choices.rank][0]
        reasons = {
            row.place: f"judged {row.verdict}" if row.verdict == "wrong" else f"rank {row.rank} by {label}"
            for row in table[table["dropped"]].rename(columns={"index": "place"}).itertuples()
        }
        about = {"ranked_by": label, "audit": str(folder), "level": choices.level if weights else None}
        lines.append(export_samples(folder / "export", choices.export, data, reasons, unusable, weights, about))
    if (rows := find_rows(data)) is not None:
        write_json(folder / "rows.json", rows.kept[kept].tolist(), indent=None)
        words = [f"data.rows={folder}/rows.json"]
        if weights:
            of_row = {int(rows.kept[place]): of_answers for place, of_answers in weights.items()}
            column = pa.array([of_row.get(number) for number in range(len(rows.source))], LEVELS[choices.level])
            write_parquet(folder / "weights.parquet", pa.table({LOSS_WEIGHTS: column}))
            words += [f"data.weights={folder}/weights.parquet", "objective=column"]
        return [*lines, f"train on the {len(kept):,} others: the same data with {shlex.join(words)}"]
    if data.image_folder is None:
        return lines or ["the images are not files: give export=llava to have the others with their images"]
    entries = []
    for place in kept.tolist():
        entry = rename_images(data.entries[place], partial(os.path.join, data.image_folder.resolve()))
        entries.append({**entry, LOSS_WEIGHTS: weights[place]} if place in weights else entry)
    write_llava_json(entries, folder / "clean.json")
    words = ["cal", "train", "data=llava_json", f"data.path={folder / 'clean.json'}", "data.image_folder=/"]
    words += ["objective=column"] if weights else []
    return [*lines, f"train on the {len(kept):,} {'weighted samples' if weights else 'others'}: {shlex.join(words)}"]
