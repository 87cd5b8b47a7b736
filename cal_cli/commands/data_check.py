"""`cal data-check`: read a data set once, as training will; list every bad sample and write the good ones."""

import json
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig, OmegaConf

from cal_cli.commands.hydra_app import get_job
from cal_cli.data.check import Checked, check_entries, classify_problem, compute_quantiles, convert_boxes, find_sources
from cal_cli.data.collator import Collator
from cal_cli.data.formats import describe_split
from cal_cli.data.llava_json import read_entries, write_llava_json
from cal_cli.data.sample import rename_images
from cal_cli.data.tables import Rows
from cal_cli.data.validate import get_id, normalize
from cal_cli.runtime.config import build, check_types, limited
from cal_cli.runtime.console import make_console, make_table, render_markdown, track_items
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json, write_parquet, write_whole
from cal_cli.runtime.processes import count_cores
from cal_cli.runtime.runs import get_versions

SHOWN = 20  # bad samples on the terminal and in report.md; bad_samples.jsonl has all


@dataclass(kw_only=True)
class DataCheckConfig:
    """The types and ranges of `conf/data_check.yaml`, which documents each key."""

    model: Any
    data: Any
    max_length: int | None = limited(1)
    max_pixels: int = limited(1)
    boxes: str | None = limited(choices=(None, "image"))
    workers: int | None = limited(0)


def data_check(config: DictConfig) -> None:
    """Write `report.md`, `report.json`, `bad_samples.jsonl`, `tokens.parquet` and the good samples to the job's folder.

    The good samples are in `clean.json`, with absolute paths of their images (`clean_<number>.json` for each of several
    sources); for `data=table`, `rows.json` has the numbers of the good rows.
    """
    settings = check_types(config, DataCheckConfig)
    job, console = get_job(), make_console()
    node: Any = OmegaConf.to_container(config.data)
    sources = find_sources(node)
    if settings.boxes and any(isinstance(source, Rows) for source in sources.values()):
        raise InputError(f"boxes={settings.boxes}: rewriting boxes needs data in JSON, such as data=llava_json")
    collate = Collator(build(config, "model").load_processor(), settings.max_length)
    workers = count_cores() if settings.workers is None else min(settings.workers, count_cores())
    bad: list[dict[str, Any]] = []
    good: list[Checked] = []
    notes: list[str] = []
    read, written, converted = 0, [], 0
    for number, (key, source) in enumerate(sources.items()):
        entries = source if isinstance(source, Rows) else read_entries(source, key)
        checks = check_entries(entries, source, collate, settings.max_pixels, workers)
        clean: list[Any] = []
        missing: list[int] = []
        for index, (entry, checked) in enumerate(track_items(checks, source.path, console, len(entries))):
            if checked.problem:
                bad.append({"source": source.path, "index": index, "id": get_id(entry), "problem": checked.problem})
                continue
            good.append(checked)
            if isinstance(source, Rows):
                clean.append(index)
                missing += [index] if checked.kind == "text" else []
                continue
            kept = normalize(entry)
            if settings.boxes and checked.size is not None:
                changed = convert_boxes(kept, checked.size)
                converted += changed != kept
                kept = changed
            clean.append(rename_images(kept, partial(os.path.join, source.folder.resolve())))
        if isinstance(source, Rows):
            notes += [*source.describe_images(missing), *describe_split(node["path"], node["name"], node["split"])]
        read += len(entries)
        if clean and isinstance(source, Rows):
            written.append(job.folder / "rows.json")
            write_json(written[-1], clean, indent=None)
        elif clean:
            written.append(job.folder / ("clean.json" if len(sources) == 1 else f"clean_{number}.json"))
            write_llava_json(clean, written[-1])
    counts = {"samples": read, "with_converted_boxes": converted}
    facts = {"command": job.command, "data": node, "max_length": settings.max_length, "notes": notes}
    write_results(facts | counts, good, bad, job.folder, written)


def write_results(
    facts: dict[str, Any], good: list[Checked], bad: list[dict[str, Any]], folder: Path, written: list[Path]
) -> None:
    """Write what was found to a folder, and print it; `written` are the files with the good samples."""
    write_whole(folder / "bad_samples.jsonl", "".join(json.dumps(sample) + "\n" for sample in bad))
    report = facts | {
        "good": len(good),
        "bad": len(bad),
        "with_image": sum(sample.kind == "image" for sample in good),
        "begin_with_answer": sum(sample.begins_with_answer for sample in good),
        "special_tokens": dict(Counter(token for sample in good for token in sample.special)),
        "problems": dict(Counter(classify_problem(sample["problem"]) for sample in bad).most_common()),
        "tokens": compute_quantiles([sample.tokens for sample in good]),
        "supervised_tokens": compute_quantiles([sample.supervised for sample in good]),
        "versions": get_versions(),
    }
    counts = [{"tokens": sample.tokens, "supervised": sample.supervised, "kind": sample.kind} for sample in good]
    write_parquet(folder / "tokens.parquet", pa.Table.from_pylist(counts))
    write_json(folder / "report.json", report)
    write_whole(folder / "report.md", write_report(report, bad))
    print_report(report, bad, folder, written)


def write_report(report: dict[str, Any], bad: list[dict[str, Any]]) -> str:
    """Write the report as Markdown."""
    parts = [f"# Data check\n\n`{report['command']}`\n", f"{describe(report)}\n"]
    if report["tokens"]:
        table = make_table("tokens per sample", *report["tokens"])
        for name in ("tokens", "supervised_tokens"):
            table.add_row(name.replace("_", " "), *(f"{value:.0f}" for value in report[name].values()))
        parts.append(render_markdown(table))
    kinds, samples = make_table("problem", "samples"), make_table("sample", "problem")
    for kind, count in report["problems"].items():
        kinds.add_row(kind, str(count))
    for sample in bad[:SHOWN]:
        samples.add_row(f"{sample['index']} ({sample['id']})".replace("|", " "), sample["problem"].replace("|", " "))
    parts += [render_markdown(kinds), render_markdown(samples)] if bad else []
    return "\n".join(parts)


def describe(report: dict[str, Any]) -> str:
    """Describe the numbers of good and bad samples."""
    counts = f"{report['samples']} samples: {report['good']} good, {report['bad']} bad"
    counts += f"; {report['with_image']} of the good ones show an image"
    counts += "".join(f"; {note}" for note in report["notes"])
    if report["begin_with_answer"]:
        counts += f"; {report['begin_with_answer']} begin with an answer, which training leaves out, as LLaVA does"
    for token, number in report["special_tokens"].items():
        counts += f"; {number} hold{'s' * (number == 1)} {token} in a text, which the model reads as its special token"
    if converted := report["with_converted_boxes"]:
        counts += f"; the boxes of {converted} sample{'s' * (converted != 1)} now refer to "
        counts += "its image" if converted == 1 else "their images"
    return counts


def print_report(report: dict[str, Any], bad: list[dict[str, Any]], folder: Path, written: list[Path]) -> None:
    """Print the result in a few lines, and what to type next."""
    console = make_console()
    for sample in bad[:SHOWN]:
        console.print(f"bad: {sample['source']}[{sample['index']}] ({sample['id']}): {sample['problem']}", markup=False)
    if len(bad) > SHOWN:
        console.print(f"... and {len(bad) - SHOWN} more")
    console.print(describe(report), markup=False)
    if report["tokens"]:
        tokens, supervised = report["tokens"], report["supervised_tokens"]
        console.print(
            f"tokens per sample: median {tokens['p50']:.0f}, 99 % at most {tokens['p99']:.0f}, longest "
            f"{tokens['p100']:.0f}; supervised: median {supervised['p50']:.0f}, fewest {supervised['p0']:.0f}"
        )
    console.print(f"{folder}: report.md, report.json, bad_samples.jsonl, tokens.parquet")
    for path in written:
        command = shlex.join(["cal", "train", "data=llava_json", f"data.path={path}", "data.image_folder=/"])
        same = f"the same data with {shlex.quote(f'data.rows={path}')}"
        console.print(f"train on the good samples: {same if path.stem == 'rows' else command}", markup=False)
