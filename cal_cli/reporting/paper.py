"""The paper's tables 1 and 2: its own figures beside those measured here, and in how many benchmarks each wins."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cal_cli.errors import InputError
from cal_cli.files import write_whole
from cal_cli.reporting.collect import Result, group, read_results
from cal_cli.reporting.statistics import mean_over_seeds


@dataclass
class Column:
    """A benchmark of a table: its heading, the value that stands for it, and by what that is multiplied there."""

    heading: str
    metric: str
    scale: float = 100


TABLES = {
    "table 1": {
        "ocrbench": Column("OCRBench", "ocrbench_accuracy", 1000),
        "docvqa": Column("VQA-Doc", "anls"),
        "chartqa": Column("VQA-Chart", "relaxed_overall"),
        "textvqa": Column("VQA-Text", "exact_match"),
        "scienceqa": Column("SQA", "exact_match"),
        "mmstar": Column("MMStar", "average"),
        "mmt": Column("MMT-Bench", "accuracy", 1),
    },
    "table 2": {
        "coco_caption": Column("COCO Caption", "coco_CIDEr"),
        "textcaps": Column("TextCaps", "textcaps_CIDEr"),
        "refcocog": Column("RefCOCOg val", "refcoco_ACC@0.5"),
        "refcocog_test": Column("RefCOCOg test", "refcoco_ACC@0.5"),
    },
}
# Xiao et al. 2024 (arXiv 2405.17871), tables 1 and 2, LLaVA-NeXT; single runs
PUBLISHED = {
    "table 1": {
        "LLaVA-NeXT-7B": [542, 75.1, 62.2, 64.2, 68.5, 33.7, 49.5],
        "LLaVA-NeXT-7B + CAL": [561, 77.3, 64.3, 65.0, 70.1, 35.5, 50.7],
        "LLaVA-NeXT-13B": [553, 78.4, 63.8, 67.0, 71.8, 37.5, 50.4],
        "LLaVA-NeXT-13B + CAL": [574, 80.1, 67.2, 67.1, 71.5, 38.1, 52.4],
    },
    "table 2": {
        "LLaVA-NeXT-7B": [112.0, 115.0, 77.6, 77.5],
        "LLaVA-NeXT-7B + CAL": [114.7, 124.7, 78.4, 78.1],
        "LLaVA-NeXT-13B": [118.5, 118.2, 79.8, 79.6],
        "LLaVA-NeXT-13B + CAL": [120.6, 124.4, 80.4, 80.3],
    },
}


def paper_tables(folders: list[str], baseline: str) -> dict[str, Any]:
    """Both tables: rows of the paper, and one for each objective and noise ratio of the runs.

    Args:
        folders: of runs.
        baseline: the objective that the others win against.

    Returns:
        By table a list of rows `{"model", "cells": {benchmark: value or None}, "wins": [won, of], "source"}`; a cell
        of ours is a mean over seeds, `{"value", "ci95", "n"}`, of one seed with the interval over its pictures.

    Raises:
        InputError: no run has results on any of the benchmarks, or runs cannot be compared.
    """
    found = {name: read_results(folders, name)[0] for columns in TABLES.values() for name in columns}
    if not any(found.values()):
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on a benchmark of the paper; run "
            f"cal eval benchmark=paper checkpoint={folders[0]} first"
        )
    return {title: published(title) + measured(columns, found, baseline) for title, columns in TABLES.items()}


def published(title: str) -> list[dict[str, Any]]:
    """The paper's rows of a table; those with CAL win against the same model without."""
    rows = []
    for model, values in PUBLISHED[title].items():
        base = PUBLISHED[title].get(model.removesuffix(" + CAL"), values)
        row: dict[str, Any] = {"model": model, "source": f"the paper, {title}"}
        row["cells"] = {
            name: {"value": value, "ci95": None, "n": 1} for name, value in zip(TABLES[title], values, strict=True)
        }
        if base is not values:
            row["wins"] = [sum(a > b for a, b in zip(values, base, strict=True)), len(values)]
        rows.append(row)
    return rows


def measured(columns: Mapping[str, Column], found: Mapping[str, list[Result]], baseline: str) -> list[dict[str, Any]]:
    """A row for each objective and noise ratio that has results on one of the benchmarks."""
    rows: dict[tuple[float, str], dict[str, Any]] = {}
    for name, column in columns.items():
        for objective, by_ratio in group(found[name], column.metric).items():
            for ratio, by_seed in by_ratio.items():
                runs = [r for r in found[name] if (r.objective, r.noise_ratio) == (objective, ratio)]
                noise = f", noise {ratio:g}" if ratio else ""
                row = rows.setdefault((ratio, objective), {"model": f"{objective}{noise}", "cells": {}, "runs": set()})
                cell = mean_over_seeds([value * column.scale for value in by_seed.values()])
                interval = runs[0].intervals[column.metric]
                if cell["n"] == 1 and interval:
                    cell["ci95"] = [bound * column.scale for bound in interval]
                row["cells"][name] = cell
                row["runs"] |= {f"{run.run} ({run.engine})" for run in runs}
    for (ratio, objective), row in rows.items():
        row["source"] = ", ".join(sorted(row.pop("runs")))
        base = rows.get((ratio, baseline))
        if base is not None and objective != baseline:
            shared = [name for name in row["cells"] if name in base["cells"]]
            won = sum(row["cells"][name]["value"] > base["cells"][name]["value"] for name in shared)
            row["wins"] = [won, len(shared)]
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0], key[1] != baseline, key[1]))]


def texts_of(row: dict[str, Any], columns: Mapping[str, Column], intervals: bool = True) -> list[str]:
    """A row of a table as text."""
    texts = [row["model"]]
    for name in columns:
        cell = row["cells"].get(name)
        text = "-" if cell is None else f"{cell['value']:.1f}" if columns[name].scale < 1000 else f"{cell['value']:.0f}"
        if intervals and cell is not None and cell["ci95"]:
            text += " [{:.1f}, {:.1f}]".format(*cell["ci95"])
        texts.append(text)
    wins = row.get("wins")
    return [*texts, f"{wins[0]}/{wins[1]}" if wins else "", row["source"]]


def headings(columns: Mapping[str, Column]) -> list[str]:
    """The columns of a table."""
    return ["model", *(column.heading for column in columns.values()), "Win / All", "produced by"]


def rich_paper_tables(tables: dict[str, Any]) -> list[Table]:
    """Both tables for a terminal: without intervals, and what produced them below."""
    found = []
    for title, rows in tables.items():
        columns = TABLES[title]
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
        table.add_column("model", no_wrap=True)
        for name in (*(column.heading for column in columns.values()), "Win / All"):
            table.add_column(name.replace(" / ", "/\n").replace("-", "\n").replace(" ", "\n"), justify="right")
        for row in rows:
            table.add_row(*texts_of(row, columns, intervals=False)[:-1])
        sources = dict.fromkeys(row["source"] for row in rows)
        models = {source: ", ".join(row["model"] for row in rows if row["source"] == source) for source in sources}
        table.caption = "\n".join(f"{source}: {of_it}" for source, of_it in models.items())
        table.caption_justify = "left"
        found.append(table)
    return found


def markdown_paper_tables(tables: dict[str, Any]) -> str:
    """Both tables as Markdown."""
    lines: list[str] = []
    for title, rows in tables.items():
        names = headings(TABLES[title])
        lines += [f"## {title.capitalize()}", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(texts_of(row, TABLES[title])) + " |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def report_paper_tables(folders: list[str], baseline: str, output: Path, console: Console) -> None:
    """The paper's tables 1 and 2 with our rows below its own."""
    tables = paper_tables(folders, baseline)
    for table in rich_paper_tables(tables):
        console.print(table)
    note = (
        f"Win / All: benchmarks with a higher value than {baseline} (the paper's: than without CAL). Of several seeds "
        "means with Student's 95 % interval, of one seed the bootstrap's over pictures; the paper's are single runs."
    )
    console.print(note)
    write_whole(output / "paper.json", json.dumps({"tables": tables, "note": note}, indent=2) + "\n")
    write_whole(output / "paper.md", f"# Tables 1 and 2\n\n{markdown_paper_tables(tables)}\n{note}\n")
    console.print(f"{output}: paper.md, paper.json")
