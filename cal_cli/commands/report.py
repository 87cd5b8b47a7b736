"""`cal report`: compare finished runs, with intervals over seeds and paired differences to a baseline."""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from cal_cli.reporting.figures import (
    draw_curves,
    draw_differences,
    draw_noise_figure,
    make_curve_table,
    summarize_curves,
    tabulate_curves,
)
from cal_cli.reporting.paper import collect_paper_results, load_published, make_paper_rows, make_paper_table
from cal_cli.reporting.results import choose_baseline, collect_results, compare, describe_test, tabulate_metric
from cal_cli.reporting.tables import (
    compare_runs,
    compare_seeds,
    make_mean_tables,
    make_pair_table,
    summarize_metric,
)
from cal_cli.runtime.config import check_types
from cal_cli.runtime.console import make_console, make_table, render_markdown
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole
from cal_cli.runtime.runs import find_unfinished_runs, read_summary
from cal_cli.statistics.seeds import find_needed_seeds, format_interval


@dataclass
class ReportConfig:
    """The types of `conf/report.yaml`, which documents each key."""

    runs: Any
    results: str
    metrics: list[str] | None
    baseline: str | None
    targets: list[float]
    compare: list[str] | None
    published: str | None
    output: str | None


def report(config: DictConfig) -> None:
    """Print tables, and write them with figures."""
    settings = check_types(config, ReportConfig)
    folders = [str(run) for run in settings.runs] if isinstance(settings.runs, ListConfig) else [str(settings.runs)]
    console = make_console()
    if settings.compare is not None:
        report_pair(settings.compare, Path(settings.output or "runs/report/compare"), console)
        return
    output = Path(settings.output) if settings.output else Path("runs/report") / Path(folders[0]).name
    if settings.results == "paper":
        report_paper_tables(folders, settings, output, console)
    else:
        report_runs(folders, settings, output, console)


def report_runs(folders: list[str], settings: ReportConfig, output: Path, console: Console) -> None:
    """Report the results of runs on one benchmark: `report.md`, `report.json` and figures."""
    benchmark = settings.results
    results, unevaluated = collect_results(folders, benchmark)
    baseline = choose_baseline(results, settings.baseline)
    known = sorted(set.intersection(*(set(result.metrics) for result in results)))
    metrics = settings.metrics if settings.metrics is not None else results[0].headline or known[:1]
    for metric in metrics:
        if metric not in known:
            raise InputError(f"metrics={metric}: not among the results; there are {', '.join(known)}")
    values = {metric: tabulate_metric(results, metric, baseline) for metric in metrics}
    together = compare_seeds(results, benchmark, baseline)
    rows = [row for metric, table in values.items() for row in summarize_metric(table, metric, baseline, together)]
    pairs = compare_runs(results, benchmark, baseline)
    notes = write_notes(rows, bool(pairs), baseline, [str(run) for run in unevaluated])
    if unfinished := sum(len(find_unfinished_runs(Path(folder))) for folder in folders):
        notes.append(f"{unfinished} runs in these folders are not completed.")
    summary = read_summary(results[0].run)
    commands = sorted(read_summary(result.run)["command"] for result in results)

    title = f"{benchmark}, by condition and objective"
    console.print(title)
    tables = make_mean_tables(rows, baseline)
    parts = [f"# {title}\n"]
    for table in tables.values():
        console.print(table)
        parts.append(render_markdown(table))
    write_whole(output / "figure3.png", draw_noise_figure(values))
    parts.append("![metrics by noise](figure3.png)\n")
    if differences := draw_differences(rows, baseline):
        write_whole(output / "differences.png", differences)
        parts.append("![differences to the baseline](differences.png)\n")
    curves: dict[str, list[dict]] = {}
    for metric in metrics:
        rows_of_metric = summarize_curves(tabulate_curves(results, metric, baseline), metric, settings.targets)
        if rows_of_metric:
            curves[metric] = rows_of_metric
            table = make_curve_table(rows_of_metric, metric)
            console.print(table)
            parts.append(render_markdown(table))
    if curves:
        write_whole(output / "curves.png", draw_curves(curves))
        parts.append("![metrics while training](curves.png)\n")
    if pairs:
        table = make_pair_table(pairs, metrics, baseline)
        console.print(table)
        parts.append(render_markdown(table))
    for note in notes:
        console.print(note)
    versions = ", ".join(f"{package} {number}" for package, number in summary["versions"].items())
    parts += ["\n".join(notes), f"\nDevice: {summary['device']}. Versions: {versions}.\n", "Each run again:"]
    parts += ["```", *commands, "```\n"]
    document = {
        "benchmark": benchmark,
        "baseline": baseline,
        "rows": rows,
        "same_questions": pairs,
        "curves": [row for rows_of_metric in curves.values() for row in rows_of_metric],
        "notes": notes,
        "commands": commands,
        "device": summary["device"],
        "versions": summary["versions"],
    }
    write_whole(output / "report.json", json.dumps(document, indent=2) + "\n")
    write_whole(output / "report.md", "\n".join(parts))
    console.print(f"{output}: report.md, report.json and figures")


def write_notes(rows: list[dict], paired: bool, baseline: str, unevaluated: list[str]) -> list[str]:
    """Write what a reader must know to read the tables."""
    notes = []
    if any(row["mean"]["n"] == 1 for row in rows):
        notes.append("One seed has no interval over seeds: run more (-m seed=0,1,2) before believing a difference.")
    if any(row["mean"]["n"] > 1 for row in rows):
        both = any(row["over_seeds_and_questions"] for row in rows)
        notes.append(
            f"Intervals: 95 %. Means: Student's t over seeds. Differences to {baseline} are paired by seed"
            + (", over seeds and the questions' pictures together (two-level bootstrap)." if both else ".")
        )
        smallest = 2.0 ** (1 - max(row["mean"]["n"] for row in rows))
        notes.append(
            f"p: exact sign-flip test over seeds; the smallest possible here is {smallest:.2g}. Holm: adjusted for all "
            "comparisons of the table. Detectable: the true difference that as many seeds, with the spread of these, "
            "show with a probability of 80 % (paired t test at 5 %)."
        )
        spreads = [row["difference"]["spread"] for row in rows if row["difference"] and row["difference"]["spread"]]
        if spreads:
            needed = ", ".join(f"{size} {find_needed_seeds(median(spreads), size)}" for size in (0.05, 0.02, 0.01))
            notes.append(f"Seeds that true differences would need, with the median spread of all rows: {needed}.")
    if unevaluated:
        notes.append(f"Left out, completed but not evaluated: {', '.join(unevaluated)}.")
    if paired:
        notes.append(
            "The same questions: 95 % intervals by a paired bootstrap over their pictures; p: permutation test over "
            "pictures, of all scores together; right alone, where answers are right or wrong: the number of questions "
            f"that only the run, and that only {baseline}, has right."
        )
    return notes


def report_pair(given: list[str], output: Path, console: Console) -> None:
    """Compare two results on the same questions: `compare.json`."""
    if len(given) != 2:
        raise InputError(
            f"compare=[{','.join(given)}]: give two folders with results.json, such as <run>/eval/<benchmark>"
        )
    for folder in given:
        if not (Path(folder) / "results.json").is_file():
            raise InputError(f"compare: no results.json in {folder}; give a folder that cal eval wrote")
    found = compare(Path(given[0]), Path(given[1]))
    if found is None or found["differences"] is None:
        raise InputError(
            f"compare: {' and '.join(given)} have no predictions.jsonl about several pictures to draw from"
        )
    table = make_table("metric", "second minus first", title=f"{given[1]} minus {given[0]}")
    for metric, difference in found["differences"].items():
        table.add_row(metric.replace("_", " "), format_interval(difference, signed=True))
    console.print(table)
    console.print(
        f"{found['n']} questions; 95 % intervals by a paired bootstrap over their pictures. "
        f"{describe_test(found['test'])}"
    )
    write_whole(output / "compare.json", json.dumps({"first": given[0], "second": given[1], **found}, indent=2) + "\n")
    console.print(f"{output}: compare.json")


def report_paper_tables(folders: list[str], settings: ReportConfig, output: Path, console: Console) -> None:
    """Print the paper's tables 1 and 2 with our rows below its own: `paper.md` and `paper.json`."""
    results = collect_paper_results(folders)
    baseline = choose_baseline([result for found in results.values() for result in found], settings.baseline)
    tables = make_paper_rows(results, baseline, load_published(settings.published))
    for title, rows in tables.items():
        console.print(make_paper_table(title, rows, brief=True))
    note = (
        f"Win / All: benchmarks with a higher value than {baseline} (in the paper's rows: than without CAL). Several "
        "seeds: means with Student's 95 % interval; one seed: the bootstrap's interval over pictures. The paper's "
        "values are single runs."
    )
    console.print(note)
    pages = [render_markdown(make_paper_table(title, rows, brief=False)) for title, rows in tables.items()]
    write_whole(output / "paper.json", json.dumps({"tables": tables, "note": note}, indent=2) + "\n")
    write_whole(output / "paper.md", "\n".join(["# Tables 1 and 2\n", *pages, f"{note}\n"]))
    console.print(f"{output}: paper.md, paper.json")
