"""The paper's tables 1 and 2: its figures above ours, and in how many benchmarks each row wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.table import Table

from cal_cli.reporting.results import collect_results, group_runs, is_number
from cal_cli.runtime.console import make_table
from cal_cli.runtime.errors import InputError
from cal_cli.statistics.seeds import mean_over_seeds


@dataclass
class Column:
    """A column of a table: its heading, the value of the benchmark, and the factor of this value."""

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
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text())
Published = Mapping[str, Mapping[str, Sequence[float | None]]]  # by table and row, a value for each of its columns


def load_published(path: str | None) -> Published:
    """Load further published rows, such as those of MGM, and return them below those of `PUBLISHED`.

    The file is a YAML of the same form, with the units of the paper; `null` stands for a benchmark without a value.

    Raises InputError if the file cannot be read, or a row does not have a number or null for each benchmark.
    """
    if path is None:
        return PUBLISHED
    if not Path(path).is_file():
        raise InputError(f"published={path}: there is no such file")
    try:
        given = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"published={path}: cannot be read as YAML, which docs/benchmarks.md shows") from error
    if not isinstance(given, dict) or not all(isinstance(rows, dict) for rows in given.values()):
        raise InputError(f"published={path}: must have {' and '.join(TABLES)}, each with rows by their name")
    for title, rows in given.items():
        if title not in TABLES:
            raise InputError(f"published={path}: {title}: there is no such table; allowed are {', '.join(TABLES)}")
        for model, values in rows.items():
            right = isinstance(values, list) and all(value is None or is_number(value) for value in values)
            if not right or len(values) != len(TABLES[title]):
                raise InputError(
                    f"published={path}: {title}, {model}: give a list of {len(TABLES[title])} numbers or null, for "
                    f"{', '.join(TABLES[title])}"
                )
    return {title: {**rows, **given.get(title, {})} for title, rows in PUBLISHED.items()}


def collect_paper_results(folders: list[str]) -> pd.DataFrame:
    """Read the results of every completed run in the folders: `Results.table` with the column `benchmark`.

    Raises InputError if no run has results on a benchmark of the paper, or if runs cannot be compared.
    """
    tables = [
        collect_results(folders, name, required=False).table.assign(benchmark=name)
        for columns in TABLES.values()
        for name in columns
    ]
    if all(table.empty for table in tables):
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on a benchmark of the paper; run "
            f"cal eval benchmark=paper checkpoint={folders[0]} first"
        )
    return pd.concat([table for table in tables if not table.empty], ignore_index=True)


def make_paper_rows(
    results: pd.DataFrame, baseline: str, published: Published = PUBLISHED
) -> dict[str, list[dict[str, Any]]]:
    """Make the rows of both tables: published ones, and one for each objective and noise ratio of the runs.

    `results` are those of `collect_paper_results`.

    Returns by table a list of rows `{"model", "cells": {benchmark: value or None}, "wins": [won, of], "source"}`. A
    cell of ours is a mean over seeds, `{"value", "ci95", "n"}`; with one seed the interval is that over images.
    """
    return {
        title: make_published_rows(title, published[title]) + _measure_rows(columns, results, baseline)
        for title, columns in TABLES.items()
    }


def make_published_rows(title: str, published: Mapping[str, Sequence[float | None]]) -> list[dict[str, Any]]:
    """Make the published rows of a table; those with CAL count wins against the same model without CAL."""
    rows = []
    for model, values in published.items():
        base = published.get(model.removesuffix(" + CAL"), values)
        source = f"the paper, {title}" if PUBLISHED[title].get(model) == values else "given by published="
        row: dict[str, Any] = {"model": model, "source": source}
        row["cells"] = {
            name: {"value": value, "ci95": None, "n": 1}
            for name, value in zip(TABLES[title], values, strict=True)
            if value is not None
        }
        if base is not values:
            both = [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
            row["wins"] = [sum(a > b for a, b in both), len(both)]
        rows.append(row)
    return rows


def _measure_rows(columns: Mapping[str, Column], results: pd.DataFrame, baseline: str) -> list[dict[str, Any]]:
    """Make a row for each objective and condition that has results on one of the benchmarks."""
    rows: dict[tuple, dict[str, Any]] = {}
    for name, column in columns.items():
        table = results[(results["benchmark"] == name) & (results["metric"] == column.metric)]
        for condition, objective, group in group_runs(table, baseline):
            clean = not condition.settings and not condition.noise_ratio
            noise = "" if clean else f", {condition.name}" if condition.settings else f", noise {condition.name}"
            new = {"model": f"{objective}{noise}", "cells": {}, "runs": set()}
            row = rows.setdefault((condition, objective), new)
            cell = mean_over_seeds((group["value"] * column.scale).tolist())
            if cell["n"] == 1 and group["low"].notna().all():
                cell["ci95"] = [float(group[edge].iloc[0]) * column.scale for edge in ("low", "high")]
            row["cells"][name] = cell
            row["runs"] |= set(map(str, group["run"]))
    for (condition, objective), row in rows.items():
        row["source"] = ", ".join(sorted(row.pop("runs")))
        base = rows.get((condition, baseline))
        if base is not None and objective != baseline:
            shared = [name for name in row["cells"] if name in base["cells"]]
            won = sum(row["cells"][name]["value"] > base["cells"][name]["value"] for name in shared)
            row["wins"] = [won, len(shared)]
    return [rows[key] for key in sorted(rows, key=lambda key: (key[0].order, key[1] != baseline, key[1]))]


def make_paper_table(title: str, rows: list[dict[str, Any]], brief: bool) -> Table:
    """Make one of the tables from rows of `make_paper_rows`.

    A brief one is for a terminal: without intervals, with narrow headings, and with sources in the caption.
    """
    columns = TABLES[title]
    headings = ["model", *(column.heading for column in columns.values()), "Win / All"]
    if brief:
        headings = [heading.replace(" / ", "/\n").replace("-", "\n").replace(" ", "\n") for heading in headings]
    table = make_table(*headings, *([] if brief else ["produced by"]), title=title)
    table.padding = (0, 0 if brief else 1)
    table.columns[0].no_wrap = True
    for column in table.columns[1 : len(columns) + 2]:
        column.justify = "right"
    for row in rows:
        texts = [row["model"], *(_format_cell(row["cells"].get(name), columns[name], brief) for name in columns)]
        texts.append("{}/{}".format(*row["wins"]) if "wins" in row else "")
        table.add_row(*texts, *([] if brief else [row["source"]]))
    if brief:
        by_source: dict[str, list[str]] = {}
        for row in rows:
            by_source.setdefault(row["source"], []).append(row["model"])
        table.caption = "\n".join(f"{source}: {', '.join(models)}" for source, models in by_source.items())
        table.caption_justify = "left"
    return table


def _format_cell(cell: dict[str, Any] | None, column: Column, brief: bool) -> str:
    if cell is None:
        return "-"
    text = f"{cell['value']:.{1 if column.scale < 1000 else 0}f}"
    return text if brief or not cell["ci95"] else f"{text} [{{:.1f}}, {{:.1f}}]".format(*cell["ci95"])
