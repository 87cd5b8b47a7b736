"""`cal data-audit`: what in a data set its images contradict, and the data without it."""

import os
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cal_cli.commands.hydra_app import Job, get_job
from cal_cli.data.collator import Collator
from cal_cli.data.llava_json import write_llava_json
from cal_cli.data.noise import ChangedEntries, NoiseConfig, load_noisy_data
from cal_cli.data.sample import LOSS_WEIGHTS, Conversations, rename_images
from cal_cli.data.tables import Rows
from cal_cli.inspection.audit import (
    RANKS,
    Auditor,
    AuditSummary,
    add_delta,
    find_part,
    list_detectors,
    list_parts,
    read_parts,
    summarize_audit,
    summarize_sentences,
    weigh_tokens,
)
from cal_cli.inspection.detection import describe_detector, draw_detectors
from cal_cli.inspection.pages import find_audited_samples, render_audit
from cal_cli.models.load import ModelSource, check_objective, load_checkpoint
from cal_cli.runtime.config import check_types, limited
from cal_cli.runtime.console import make_console, make_table, show_progress
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json, write_parquet, write_whole
from cal_cli.runtime.processes import (
    LaunchConfig,
    count_cores,
    count_processes,
    get_process_state,
    is_worker,
    run_workers,
)
from cal_cli.runtime.provenance import begin_work, fingerprint, get_device_name, get_versions
from cal_cli.runtime.runs import find_checkpoint, get_run_name, hold
from cal_cli.statistics.mixture import compute_posterior
from cal_cli.statistics.seeds import format_interval
from cal_cli.toy.model import BASE
from cal_cli.training.record import identify_data


@dataclass(kw_only=True)
class DataAuditConfig:
    """The types and ranges of `conf/data_audit.yaml`, which documents each key."""

    seed: int
    checkpoint: str | None
    data: Any
    noise: NoiseConfig
    manifest: str | None
    rank: str = limited(choices=RANKS)
    clean: str = limited(choices=("drop", "weigh"))
    drop: float | None = limited(0, below=1)
    page_samples: int = limited(0)
    max_length: int | None
    batch_size: int = limited(1)
    workers: int = limited(0)
    dtype: str | None
    launch: LaunchConfig
    force: bool


def data_audit(config: DictConfig) -> None:
    """Contrast every sample that shows an image; write what the images contradict, and the data without it."""
    settings = check_types(config, DataAuditConfig)
    if settings.clean == "weigh" and (settings.drop is not None or settings.max_length is not None):
        raise InputError("clean=weigh weighs all tokens of all samples: leave drop and max_length out")
    if settings.launch.shard is not None:
        raise InputError("launch: cal data-audit distributes samples and does not shard models: give single or ddp")
    job, processes = get_job(), count_processes(settings.launch)
    if processes * settings.launch.machines > 1 and not is_worker():
        if code := run_workers([*job.words, f"hydra.run.dir='{job.folder}'"], settings.launch, processes, job.folder):
            raise SystemExit(code)
        return
    state = get_process_state()
    console = make_console(quiet=not state.is_main_process)
    checkpoint = find_checkpoint(settings.checkpoint, {"tiny": BASE})
    check_objective(ModelSource(str(checkpoint)).load_config(), f"checkpoint={checkpoint}")
    data, noisy = load_noisy_data(config, settings.noise, settings.manifest, console)
    if settings.clean == "weigh" and find_rows(data) is not None:
        raise InputError("clean=weigh writes loss_weights into JSON: give data=llava_json, or clean=drop")
    parts = list_parts(data)
    if not parts:
        raise InputError("no sample shows an image: an audit needs some; give other data")
    with hold(job.folder, console.print) if state.is_main_process else nullcontext():
        if state.is_main_process:
            begin(job.folder / "tokens", checkpoint, config, data, settings, console)
        state.wait_for_everyone()
        missing = [number for number in range(len(parts)) if not find_part(job.folder / "tokens", number).is_file()]
        state.wait_for_everyone()  # no process writes before all have looked
        if 0 < len(missing) < len(parts):
            console.print(f"{job.folder}: continuing after {len(parts) - len(missing)} of {len(parts)} parts")
        mine = missing[state.process_index :: state.num_processes]
        if mine:
            model, processor = load_checkpoint(str(checkpoint), settings.dtype, state.device)
            collate = Collator(processor, settings.max_length, leave_out=True)
            auditor = Auditor(model, collate, settings.batch_size, min(settings.workers, count_cores()))
            with show_progress("audit", sum(len(parts[number]) for number in mine), console) as advance:
                for number in mine:
                    auditor.write_part(data, parts[number], find_part(job.folder / "tokens", number))
                    advance(len(parts[number]))
        state.wait_for_everyone()
        if state.is_main_process:
            write_results(job, checkpoint, data, noisy, len(parts), settings, console)
    state.wait_for_everyone()  # the end of the first process ends the others


def begin(
    folder: Path, checkpoint: Path, config: DictConfig, data: Conversations, settings: DataAuditConfig, console: Console
) -> None:
    """Discard the parts of an audit of other data, or with another model or other settings, and say so."""
    node: Any = OmegaConf.to_container(config)
    identity = {
        "checkpoint": fingerprint(checkpoint),
        "data": node["data"],
        "noise": node["noise"],
        "files": identify_data(node["data"], data),
        "max_length": settings.max_length,
        "dtype": settings.dtype,
        "versions": get_versions(),
    }
    if differing := begin_work(folder, identity, settings.force):
        console.print(f"{folder}: starting again; the audit there differs in {', '.join(differing)}")


def write_results(
    job: Job,
    checkpoint: Path,
    data: Conversations,
    noisy: dict[int, dict[str, Any]] | None,
    parts: int,
    settings: DataAuditConfig,
    console: Console,
) -> None:
    """Write the tables, the page and the clean data from the parts of an audit, and print what was found."""
    folder = job.folder
    try:
        summary = summarize_audit(read_parts(folder / "tokens", parts))
    except ValueError as error:
        raise InputError(f"{error}: cal data-check says why each cannot be used") from error
    ranked = summary.rank(settings.rank)
    drop = summary.shares["samples"]["value"] if settings.drop is None else settings.drop
    dropped = set(ranked["index"][: round(drop * len(ranked))].tolist()) if settings.clean == "drop" else set()
    ranks = pd.Series(range(1, len(ranked) + 1), index=ranked.index)
    table = summary.samples.assign(rank=ranks, dropped=summary.samples["index"].isin(dropped))
    if noisy is not None:
        table["is_noise"] = table["index"].isin(noisy.keys())
    write_parquet(folder / "audit.parquet", pa.Table.from_pandas(table, preserve_index=False))
    write_sentences(folder / "sentences.parquet", read_parts(folder / "tokens", parts), summary)
    shown = sum("image" in entry for entry in data.entries)
    facts = describe_facts(summary, len(data), shown)
    tokens = read_parts(folder / "tokens", parts)
    page = find_audited_samples(data, ranked[: settings.page_samples], tokens, None if noisy is None else noisy.keys())
    title = f"What do the images contradict? {get_run_name(checkpoint)}"
    write_whole(folder / "audit.html", render_audit(page, title, facts))
    report: dict[str, Any] = {
        "command": job.command,
        "checkpoint": str(checkpoint),
        "samples": len(data),
        "with_image": shown,
        "audited": len(ranked),
        "mismatched": summary.shares,
        "dropped": len(dropped),
    }
    if noisy is not None and 0 < table["is_noise"].sum() < len(table):
        detectors, positive = list_detectors(table), table["is_noise"].to_numpy()
        write_whole(folder / "detection.png", draw_detectors(detectors, positive))
        report["detection"] = {name: describe_detector(found, positive) for name, found in detectors.items()}
    else:
        (folder / "detection.png").unlink(missing_ok=True)  # of an earlier audit, with noise that was known
    report |= {"device": get_device_name(), "versions": get_versions()}
    write_json(folder / "audit.json", report)
    for fact in facts:
        console.print(fact)
    if "detection" in report:
        console.print(tabulate_detection(report["detection"]))
    console.print(f"{folder}: audit.html, audit.parquet, sentences.parquet, tokens/, audit.json")
    unusable = {n for n, entry in enumerate(data.entries) if "image" in entry} - set(table["index"].tolist())
    console.print(write_clean(folder, data, dropped | unusable, parts, summary, settings), markup=False)


def describe_facts(summary: AuditSummary, samples: int, shown: int) -> list[str]:
    """Describe the audit in sentences."""
    audited = len(summary.samples)
    facts = [f"{samples:,} samples, of which {shown:,} show an image and {audited:,} were audited."]
    if audited < shown:
        facts.append(f"{shown - audited:,} cannot be used; cal data-check says why.")
    for name, share in summary.shares.items():
        facts.append(f"Estimated share of mismatched {name}: {format_interval(share)} of {share['n']:,}.")
    return facts


def write_sentences(path: Path, parts: Iterator[pa.Table], summary: AuditSummary) -> None:
    """Write the table of all sentences, part by part, with the probability that each is mismatched."""
    temporary, writer = path.with_name(f".{path.name}"), None
    for part in parts:
        if not len(part):
            continue
        sentences = summarize_sentences(add_delta(part))
        posterior = compute_posterior(sentences["evidence"].to_numpy(), summary.shares["sentences"]["value"])
        rows = pa.Table.from_pandas(sentences.assign(p_mismatch=posterior), preserve_index=False)
        writer = writer or pq.ParquetWriter(temporary, rows.schema)
        writer.write_table(rows)
    if writer is not None:
        writer.close()
        os.replace(temporary, path)


def tabulate_detection(found: dict[str, Any]) -> Table:
    """Make a table of how well each number of a sample detects those that were changed."""
    table = make_table("changed samples, detected by", "area under the ROC curve", "average precision")
    for name, detector in found.items():
        auc = format_interval({"value": detector["auc"], "ci95": detector["ci95"]})
        table.add_row(name, auc, f"{detector['average_precision']:.3f}")
    return table


def find_rows(data: Conversations) -> Rows | None:
    """Return the rows behind a data set, None if it has none."""
    entries = data.entries
    while isinstance(entries, ChangedEntries):
        entries = entries.entries
    return entries if isinstance(entries, Rows) else None


def write_clean(
    folder: Path, data: Conversations, left_out: set[int], parts: int, summary: AuditSummary, settings: DataAuditConfig
) -> str:
    """Write the data without some samples, or with weights for their tokens; return what to type to train on them."""
    kept = [place for place in range(len(data)) if place not in left_out]
    if (rows := find_rows(data)) is not None:
        write_json(folder / "rows.json", rows.kept[kept].tolist(), indent=None)
        return f"train on the {len(kept):,} others: the same data with {shlex.quote(f'data.rows={folder}/rows.json')}"
    if data.image_folder is None:
        return "the images are not files: write the data with cal noise-inject ratio=0 to have the others as clean.json"
    weights: dict[int, list[list[float]]] = {}
    if settings.clean == "weigh":
        weights = weigh_tokens(read_parts(folder / "tokens", parts), summary.shares["samples"]["value"])
    entries = []
    for place in kept:
        entry = rename_images(data.entries[place], partial(os.path.join, data.image_folder.resolve()))
        entries.append({**entry, LOSS_WEIGHTS: weights[place]} if place in weights else entry)
    write_llava_json(entries, folder / "clean.json")
    words = ["cal", "train", "data=llava_json", f"data.path={folder / 'clean.json'}", "data.image_folder=/"]
    words += ["objective=column"] if weights else []
    return f"train on the {len(kept):,} {'weighted samples' if weights else 'others'}: {shlex.join(words)}"
