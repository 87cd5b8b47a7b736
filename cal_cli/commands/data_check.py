"""`cal data-check`: read a data set once, as training will; list every bad sample and write the good ones."""

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cal_cli.commands.hydra_app import get_job
from cal_cli.data.check import (
    Checked,
    check_entries,
    classify_problem,
    compute_quantiles,
    find_sources,
    name_images_by_path,
    read_source,
    tabulate,
)
from cal_cli.data.collator import Collator
from cal_cli.data.hf_datasets import Rows
from cal_cli.data.llava_json import get_id, write_llava_json
from cal_cli.runtime.config import build, check_types
from cal_cli.runtime.console import make_console, make_table, render_markdown, track_items
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole
from cal_cli.runtime.provenance import get_versions

SHOWN = 20  # bad samples on the terminal and in report.md; bad_samples.jsonl has all


@dataclass
class DataCheckConfig:
    """The types of `conf/data_check.yaml`, which documents each key."""

    model: Any
    data: Any
    max_length: int | None
    max_pixels: int
    workers: int | None


def data_check(config: DictConfig) -> None:
    """Write `report.md`, `report.json`, `bad_samples.jsonl`, `tokens.parquet` and the good samples to the job's folder.

    The good samples are in `clean.json`, with absolute paths of their images (`clean_<number>.json` for each of several
    sources); for `data=table`, `rows.json` has the numbers of the good rows.

    Raises:
        InputError: a wrong value, or a file that cannot be read at all.
    """
    settings = check_types(config, DataCheckConfig)
    if settings.max_pixels < 1 or (settings.workers is not None and settings.workers < 0):
        raise InputError(
            f"max_pixels={settings.max_pixels}, workers={settings.workers}: must be at least 1, and at least 0"
        )
    job, console = get_job(), make_console()
    node: Any = OmegaConf.to_container(config.data)
    sources = find_sources(node)
    collate = Collator(build(config, "model").load_processor(), settings.max_length)
    workers = (os.cpu_count() or 1) if settings.workers is None else settings.workers
    bad: list[dict[str, Any]] = []
    good: list[Checked] = []
    read, written = 0, []
    for number, (key, source) in enumerate(sources.items()):
        entries = read_source(source, key)
        checks = check_entries(entries, source, collate, settings.max_pixels, workers)
        clean: list[Any] = []
        for index, (entry, checked) in enumerate(track_items(checks, source.path, console, len(entries))):
            if checked.problem:
                bad.append({"source": source.path, "index": index, "id": get_id(entry), "problem": checked.problem})
                continue
            good.append(checked)
            clean.append(index if isinstance(source, Rows) else name_images_by_path(entry, source))
        read += len(entries)
        if clean and isinstance(source, Rows):
            written.append(job.folder / "rows.json")
            write_whole(written[-1], json.dumps(clean) + "\n")
        elif clean:
            written.append(job.folder / ("clean.json" if len(sources) == 1 else f"clean_{number}.json"))
            write_llava_json(clean, written[-1])
    write_whole(job.folder / "bad_samples.jsonl", "".join(json.dumps(one) + "\n" for one in bad))
    report = {
        "command": job.command,
        "data": node,
        "max_length": settings.max_length,
        "samples": read,
        "good": len(good),
        "bad": len(bad),
        "with_image": sum(one.kind == "image" for one in good),
        "problems": dict(Counter(classify_problem(one["problem"]) for one in bad).most_common()),
        "tokens": compute_quantiles([one.tokens for one in good]),
        "supervised_tokens": compute_quantiles([one.supervised for one in good]),
        "versions": get_versions(),
    }
    pq.write_table(pa.Table.from_pylist(tabulate(good)), job.folder / "tokens.parquet")
    write_whole(job.folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_whole(job.folder / "report.md", write_report(report, bad))
    print_report(console, report, bad, job.folder, written)


def write_report(report: dict[str, Any], bad: list[dict[str, Any]]) -> str:
    """Write the report as Markdown."""
    parts = [
        f"# Data check\n\n`{report['command']}`\n",
        f"{report['samples']} samples: {report['good']} good, {report['bad']} bad.\n",
        f"{report['with_image']} of the good ones show an image.\n",
    ]
    if report["tokens"]:
        table = make_table("tokens per sample", *report["tokens"])
        for name in ("tokens", "supervised_tokens"):
            table.add_row(name.replace("_", " "), *(f"{value:.0f}" for value in report[name].values()))
        parts.append(render_markdown(table))
    if bad:
        kinds, samples = make_table("problem", "samples"), make_table("sample", "problem")
        for kind, count in report["problems"].items():
            kinds.add_row(kind, str(count))
        for one in bad[:SHOWN]:
            samples.add_row(f"{one['index']} ({one['id']})".replace("|", " "), one["problem"].replace("|", " "))
        parts += [render_markdown(kinds), render_markdown(samples)]
        parts += [f"`bad_samples.jsonl` lists all {len(bad)}.\n"] if len(bad) > SHOWN else []
    return "\n".join(parts)


def print_report(
    console: Console, report: dict[str, Any], bad: list[dict[str, Any]], folder: Path, written: list[Path]
) -> None:
    """Print the result in a few lines, and what to type next."""
    for one in bad[:SHOWN]:
        console.print(f"bad: {one['source']}[{one['index']}] ({one['id']}): {one['problem']}", markup=False)
    if len(bad) > SHOWN:
        console.print(f"... and {len(bad) - SHOWN} more")
    console.print(f"{report['samples']} samples: {report['good']} good, {report['bad']} bad")
    if report["tokens"]:
        tokens, supervised = report["tokens"], report["supervised_tokens"]
        console.print(
            f"tokens per sample: median {tokens['p50']:.0f}, 99 % at most {tokens['p99']:.0f}, longest "
            f"{tokens['p100']:.0f}; supervised: median {supervised['p50']:.0f}, fewest {supervised['p0']:.0f}"
        )
    console.print(f"{folder}: report.md, report.json, bad_samples.jsonl, tokens.parquet")
    if len(written) == 1 and written[0].name == "rows.json":
        console.print(f"train on the good samples: the same data with data.rows={written[0]}")
    elif len(written) == 1:
        console.print(
            f"train on the good samples: cal train data=llava_json data.path={written[0]} data.image_folder=/"
        )
    elif written:
        console.print("the good samples: " + ", ".join(str(path) for path in written))
