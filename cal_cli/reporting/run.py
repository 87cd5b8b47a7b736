"""`cal report`: finished runs side by side, with intervals over seeds and paired differences to CE."""

import json
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cal_cli.config import typed
from cal_cli.errors import InputError
from cal_cli.files import write_whole
from cal_cli.reporting.collect import collect, group
from cal_cli.reporting.figure import noise_figure
from cal_cli.reporting.pairs import pair_cells, pair_headings, pairs_of, pairs_table, report_pair
from cal_cli.reporting.paper import report_paper_tables
from cal_cli.reporting.statistics import cell, mean_over_seeds, paired_difference
from cal_cli.runs import summary_of


@dataclass
class ReportConfig:
    """The types of `conf/report.yaml`; what each key means stands there."""

    runs: Any
    results: str
    metrics: list[str] | None
    baseline: str
    compare: list[str] | None
    output: str | None


def report(config: DictConfig) -> None:
    """Print the tables and write `report.md`, `report.json` and one figure a metric.

    Raises:
        InputError: a wrong value, nothing to report, or runs that cannot be compared.
    """
    settings = typed(config, ReportConfig)
    folders = [str(run) for run in settings.runs] if isinstance(settings.runs, ListConfig) else [str(settings.runs)]
    console = Console(soft_wrap=True, highlight=False)
    if settings.compare is not None:
        report_pair(settings.compare, Path(settings.output or "runs/report/compare"), console)
        return
    output = Path(settings.output) if settings.output else Path("runs/report") / Path(folders[0]).name
    if settings.results == "paper":
        report_paper_tables(folders, settings.baseline, output, console)
        return
    results, unevaluated = collect(folders, settings.results)
    known = sorted(set.intersection(*(set(result.metrics) for result in results)))
    metrics = settings.metrics if settings.metrics is not None else results[0].headline or known[:1]
    for metric in metrics:
        if metric not in known:
            raise InputError(f"metrics={metric}: not among the results; there are {', '.join(known)}")
    rows = [row for metric in metrics for row in rows_of(group(results, metric), metric, settings.baseline)]
    pairs = pairs_of(results, settings.results, settings.baseline)
    notes = notes_of(rows, settings.baseline, [str(run) for run in unevaluated])
    if pairs:
        notes.append(
            "The same questions: 95 % intervals by a paired bootstrap over their pictures; right alone: questions that "
            f"the run, or {settings.baseline}, alone has right, and p of McNemar's exact test, in which questions "
            "about one picture count as independent."
        )
    console.print(f"{settings.results}, by objective and noise ratio")
    for table in rich_tables(rows, settings.baseline):
        console.print(table)
    if pairs:
        console.print(pairs_table(pairs, metrics, settings.baseline))
    for note in notes:
        console.print(note)
    commands = sorted(summary_of(result.run)["command"] for result in results)
    summary = summary_of(results[0].run)
    figures = {metric: figure_name(metric) for metric in metrics}
    for metric, file in figures.items():
        write_whole(output / file, noise_figure(group(results, metric), metric))
    document = {
        "benchmark": settings.results,
        "baseline": settings.baseline,
        "rows": rows,
        "same_questions": pairs,
        "notes": notes,
        "commands": commands,
        "device": summary["device"],
        "versions": summary["versions"],
    }
    write_whole(output / "report.json", json.dumps(document, indent=2) + "\n")
    write_whole(output / "report.md", markdown(document))
    console.print(f"{output}: report.md, report.json, " + ", ".join(figures.values()))


def figure_name(metric: str) -> str:
    """The file of a metric's figure."""
    return f"figure3_{re.sub(r'[^0-9A-Za-z_.-]+', '_', metric)}.png"


def rows_of(grouped: dict[str, dict[float, dict[int, float]]], metric: str, baseline: str) -> list[dict]:
    """One row for each noise ratio and objective: mean over seeds and paired difference to the baseline."""
    rows = []
    for ratio in sorted({ratio for by_ratio in grouped.values() for ratio in by_ratio}):
        for objective, by_ratio in grouped.items():
            if ratio not in by_ratio:
                continue
            base = grouped.get(baseline, {}).get(ratio, {})
            rows.append(
                {
                    "metric": metric,
                    "noise_ratio": ratio,
                    "objective": objective,
                    "seeds": sorted(by_ratio[ratio]),
                    "values": [by_ratio[ratio][seed] for seed in sorted(by_ratio[ratio])],
                    "mean": mean_over_seeds(list(by_ratio[ratio].values())),
                    "difference": None if objective == baseline else paired_difference(by_ratio[ratio], base),
                }
            )
    return rows


def notes_of(rows: list[dict], baseline: str, unevaluated: list[str]) -> list[str]:
    """What a reader must know beside the numbers."""
    notes = []
    if any(row["mean"]["n"] == 1 for row in rows):
        notes.append("One seed has no interval over seeds: run more (-m seed=0,1,2) before believing a difference.")
    if any(row["mean"]["n"] > 1 for row in rows):
        notes.append(f"Intervals: 95 %, Student's t over seeds; differences to {baseline} are paired by seed.")
    if unevaluated:
        notes.append(f"Left out, completed but not evaluated: {', '.join(unevaluated)}.")
    return notes


def cells_of(row: dict) -> list[str]:
    """A row of the table as text."""
    difference = cell(row["difference"], signed=True)
    return [f"{row['noise_ratio']:g}", row["objective"], str(len(row["seeds"])), cell(row["mean"]), difference]


def headings(baseline: str) -> list[str]:
    """The columns of a table."""
    return ["noise", "objective", "seeds", "mean", f"minus {baseline}"]


def rich_tables(rows: list[dict], baseline: str) -> list[Table]:
    """A table for each metric, a line between noise ratios."""
    tables = []
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        table = Table(*headings(baseline), title=metric.replace("_", " "), box=SIMPLE_HEAD, pad_edge=False)
        for _, section in groupby(of_metric, key=lambda row: row["noise_ratio"]):
            for row in section:
                table.add_row(*cells_of(row))
            table.add_section()
        tables.append(table)
    return tables


def markdown(document: dict) -> str:
    """The report as Markdown: tables, figures, notes and the commands that regenerate each run."""
    columns = headings(document["baseline"])
    lines = [f"# {document['benchmark']}, by objective and noise ratio", ""]
    for metric, rows in groupby(document["rows"], key=lambda row: row["metric"]):
        lines += [f"## {metric.replace('_', ' ')}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(cells_of(row)) + " |" for row in rows]
        lines += ["", f"![{metric} by noise ratio]({figure_name(metric)})", ""]
    metrics = list(dict.fromkeys(row["metric"] for row in document["rows"]))
    if document["same_questions"]:
        names = pair_headings(metrics)
        lines += [f"## The same questions, minus {document['baseline']}", ""]
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        lines += ["| " + " | ".join(pair_cells(pair, metrics)) + " |" for pair in document["same_questions"]]
        lines.append("")
    versions = ", ".join(f"{package} {number}" for package, number in document["versions"].items())
    lines += [
        *document["notes"],
        "",
        f"Device: {document['device']}. Versions: {versions}.",
        "",
        "Each run again:",
        "```",
    ]
    return "\n".join([*lines, *document["commands"], "```"]) + "\n"
