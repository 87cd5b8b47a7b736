"""`cal data-audit`: what in a data set its images contradict, and the data without it."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from cal_cli.commands.hydra_app import Job, get_job
from cal_cli.data.collator import Collator
from cal_cli.data.noise import NoiseConfig, load_noisy_data
from cal_cli.data.sample import Conversations
from cal_cli.inspection.audit import (
    TOKENS,
    Auditor,
    find_part,
    list_parts,
    read_parts,
    summarize_audit,
    write_sentences,
)
from cal_cli.inspection.audit_results import Choices, decide, describe_review, write_clean, write_page
from cal_cli.inspection.detectors import (
    DETECTORS,
    Embedder,
    add_similarity,
    describe_detector,
    draw_detectors,
    list_detectors,
    read_scores,
)
from cal_cli.inspection.repeats import describe_repeats, find_repeats
from cal_cli.models.load import ModelSource, check_objective, load_checkpoint
from cal_cli.runtime.config import check_types, limited
from cal_cli.runtime.console import make_console, make_table, show_progress
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import begin_work, fingerprint, read_json, write_json, write_parquet, write_whole
from cal_cli.runtime.processes import LaunchConfig, count_cores, count_processes, distribute, get_process_state
from cal_cli.runtime.runs import find_checkpoint, get_device_name, get_run_name, get_versions, hold
from cal_cli.statistics.seeds import format_interval
from cal_cli.training.record import identify_data


@dataclass(kw_only=True)
class DataAuditConfig(Choices):
    """The types and ranges of `conf/data_audit.yaml`, which documents each key."""

    checkpoint: str | None
    data: Any
    noise: NoiseConfig
    manifest: str | None
    batch_size: int = limited(1)
    workers: int = limited(0)
    dtype: str | None
    launch: LaunchConfig
    force: bool


def data_audit(config: DictConfig) -> None:
    """Contrast every sample that shows an image; write what the images contradict, and the data without it."""
    settings = check_types(config, DataAuditConfig)
    settings.check()
    if settings.launch.shard is not None:
        raise InputError("launch: cal data-audit distributes samples and does not shard models: give single or ddp")
    job = get_job()
    if distribute(settings.launch, count_processes(settings.launch), job.words, job.folder):
        return
    state = get_process_state()
    console = make_console(quiet=not state.is_main_process)
    checkpoint = find_checkpoint(settings.checkpoint)
    check_objective(ModelSource(str(checkpoint)).load_config(), f"checkpoint={checkpoint}")
    data, noisy = load_noisy_data(config, settings.noise, settings.manifest, console)
    parts = list_parts(data)
    if not parts:
        raise InputError("no sample shows an image: an audit needs some; give other data")
    scores = None if settings.score_column is None else read_scores(data, settings.score_column)
    node: Any = OmegaConf.to_container(config)
    workers = min(settings.workers, count_cores())
    identity = {
        "data": node["data"],
        "noise": node["noise"],
        "files": identify_data(node["data"], data),
        "versions": get_versions(),
    }

    def make_auditor() -> Auditor:
        model, processor = load_checkpoint(str(checkpoint), settings.dtype, state.device)
        return Auditor(model, Collator(processor, settings.max_length, leave_out=True), settings.batch_size, workers)

    audit = Passes(data, parts, job.folder, identity, settings.force, state, console)
    with hold(job.folder, console.print) if state.is_main_process else nullcontext():
        about = {"checkpoint": fingerprint(checkpoint), "max_length": settings.max_length, "dtype": settings.dtype}
        speed = audit.run("tokens", {**about, "columns": TOKENS.names}, make_auditor)
        if settings.clip is not None:
            embedder = partial(Embedder, settings.clip, state.device, settings.batch_size, workers)
            audit.run("clip", {"clip": fingerprint(settings.clip)}, embedder)
        if state.is_main_process:
            write_results(job, checkpoint, data, noisy, scores, len(parts), settings, speed, console)
    state.wait_for_everyone()  # the end of the first process ends the others


@dataclass
class Passes:
    """Passes over the parts of the data, each of which writes a file for each part, and continues after a kill."""

    data: Conversations
    parts: list[list[int]]
    folder: Path
    identity: dict[str, Any]
    force: bool
    state: Any
    console: Console

    def run(self, name: str, about: dict[str, Any], make: Callable[[], Any]) -> float | None:
        """Write the missing parts to the folder `name`; what is there with another identity is discarded.

        Returns the samples per second, None if no part was missing.
        """
        folder, state = self.folder / name, self.state
        if state.is_main_process and (differing := begin_work(folder, {**self.identity, **about}, self.force)):
            self.console.print(f"{folder}: starting again; the audit there differs in {', '.join(differing)}")
        state.wait_for_everyone()
        missing = [number for number in range(len(self.parts)) if not find_part(folder, number).is_file()]
        state.wait_for_everyone()  # no process writes before all have looked
        if 0 < len(missing) < len(self.parts):
            done = len(self.parts) - len(missing)
            self.console.print(f"{self.folder}: continuing after {done} of {len(self.parts)} parts")
        mine = missing[state.process_index :: state.num_processes]
        began = time.perf_counter()
        if mine:
            writer = make()
            began = time.perf_counter()
            with show_progress(name, sum(len(self.parts[number]) for number in mine), self.console) as advance:
                for number in mine:
                    writer.write_part(self.data, self.parts[number], find_part(folder, number))
                    advance(len(self.parts[number]))
        state.wait_for_everyone()
        samples = sum(len(self.parts[number]) for number in missing)
        return samples / (time.perf_counter() - began) if missing else None


def write_results(
    job: Job,
    checkpoint: Path,
    data: Conversations,
    noisy: dict[int, dict[str, Any]] | None,
    scores: np.ndarray | None,
    parts: int,
    settings: DataAuditConfig,
    speed: float | None,
    console: Console,
) -> None:
    """Write the tables, the page and the clean data from the parts of an audit, and print what was found."""
    folder = job.folder
    tokens = partial(read_parts, folder / "tokens", parts)
    try:
        summary = summarize_audit(tokens())
    except ValueError as error:
        raise InputError(f"{error}: cal data-check says why each cannot be used") from error
    table, repeats = find_repeats(data, summary.samples)
    if settings.clip is not None:
        table = add_similarity(table, list(read_parts(folder / "clip", parts)))
    if scores is not None:
        table["score"] = scores[table["index"].to_numpy()]
    if noisy is not None:
        table["is_noise"] = table["index"].isin(noisy.keys())
    decision = decide(table, summary.shares["samples"]["value"], settings)
    write_parquet(folder / "audit.parquet", pa.Table.from_pandas(decision.table, preserve_index=False))
    write_sentences(folder / "sentences.parquet", tokens(), summary.shares["sentences"]["value"])
    report: dict[str, Any] = {
        "command": job.command,
        "checkpoint": str(checkpoint),
        "samples": len(data),
        "with_image": sum("image" in entry for entry in data.entries),
        "audited": len(table),
        "mismatched": summary.shares,
        "repeats": repeats,
        "dropped": int(decision.table["dropped"].sum()),
        "review": decision.review,
        "samples_per_second": speed or read_json(folder / "audit.json", {}).get("samples_per_second"),
    }
    report |= describe_detection(folder / "detection.png", table)
    report |= {"device": get_device_name(), "versions": get_versions()}
    write_json(folder / "audit.json", report)
    facts = [*summary.describe(len(data), report["with_image"]), *describe_repeats(repeats)]
    facts += [] if decision.review is None else [describe_review(decision.review)]
    title = f"What do the images contradict? {get_run_name(checkpoint)}"
    write_page(folder / "audit.html", data, decision, tokens(), title, facts, settings.page_samples)
    facts += [f"{speed:,.1f} samples per second."] if speed else []
    for fact in facts:
        console.print(fact)
    if "detection" in report:
        console.print(tabulate_detection(report["detection"]))
    if decision.review is not None:
        console.print(tabulate_cuts(decision.review["cuts"]))
    console.print(f"{folder}: audit.html, audit.parquet, sentences.parquet, tokens/, audit.json")
    for line in write_clean(folder, data, decision, summary, tokens, settings):
        console.print(line, markup=False, soft_wrap=True)


def describe_detection(figure: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Describe and draw how well each number detects the samples that were changed; nothing if that is not known."""
    figure.unlink(missing_ok=True)  # of an earlier audit, with noise that was known
    positive = table["is_noise"].to_numpy() if "is_noise" in table else np.zeros(len(table), dtype=bool)
    if not positive.any() or positive.all():
        return {}
    named = {DETECTORS[name][0]: values for name, values in list_detectors(table).items()}
    write_whole(figure, draw_detectors(named, positive))
    return {"detection": {name: describe_detector(values, positive) for name, values in named.items()}}


def tabulate_detection(detectors: dict[str, Any]) -> Table:
    """Make a table of how well each number of a sample detects those that were changed."""
    table = make_table("changed samples, detected by", "area under the ROC curve", "average precision")
    for name, detector in detectors.items():
        auc = format_interval({"value": detector["auc"], "ci95": detector["ci95"]})
        table.add_row(name, auc, f"{detector['average_precision']:.3f}")
    return table


def tabulate_cuts(cuts: list[dict[str, Any]]) -> Table:
    """Make a table of the precision and recall of cuts of the ranking."""
    table = make_table("the worst", "of which wrong", "of all wrong texts")
    for cut in cuts:
        table.add_row(f"{cut['cut']:,}", format_interval(cut["precision"]), format_interval(cut["recall"]))
    return table
