"""`cal report`: compare finished runs, with intervals over seeds and paired differences to a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from rich.console import Console

from cal_cli.reporting import figures, paper, tables
from cal_cli.reporting.results import RUNS, choose_baseline, collect_results, compare, store_runs
from cal_cli.runtime.config import check_types
from cal_cli.runtime.console import make_console, make_table, render_markdown
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json, write_whole
from cal_cli.runtime.runs import find_unfinished_runs
from cal_cli.statistics.seeds import format_interval


@dataclass
class ReportConfig:
    """The types of `conf/report.yaml`, which documents each key."""

    runs: Any
    results: str
    metrics: list[str] | None
    tuned: list[str]
    baseline: str | None
    targets: list[float]
    compare: list[str] | None
    published: str | None
    output: str | None


def report(config: DictConfig) -> None:
    """Print the headline, and write tables and figures."""
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
    """Report the results of runs on one benchmark: the headline on the terminal, all in `report.md` and figures."""
    benchmark = settings.results
    results = collect_results(folders, benchmark, tuned=settings.tuned)
    runs, before = results.table.drop_duplicates("run"), results.before_training
    baseline = choose_baseline(runs, settings.baseline)
    counts = results.table["metric"].value_counts()
    known = sorted(counts.index[counts == len(runs)])  # of every run
    metrics = settings.metrics if settings.metrics is not None else results.headline or known[:1]
    for metric in metrics:
        if metric not in known:
            raise InputError(f"metrics={metric}: not among the results; there are {', '.join(known)}")
    rows = tables.summarize_results(results, metrics, baseline)
    pairs = tables.compare_runs(runs, benchmark, baseline)
    curves: dict[str, list[dict]] = {}
    for metric in metrics:
        of_metric = figures.summarize_curves(figures.tabulate_curves(runs, metric, baseline), metric, settings.targets)
        curves |= {metric: of_metric} if of_metric else {}
    over = "seeds and images" if any(row["mean"]["n"] > 1 for row in rows) else "images, one seed"
    headline = tables.make_headline_table(rows, before, f"{benchmark}: mean ± half of the 95 % interval over {over}")
    alone = [str(run.folder) for run in results.runs if not run.questions]
    unevaluated = [str(run) for run in results.unevaluated]
    notes = [*results.tuned, *write_notes(rows, bool(pairs), baseline, unevaluated, alone)]
    if before:
        notes.append(f"Before training: {before['checkpoint']}, from which all runs started.")
    if unfinished := sum(len(find_unfinished_runs(Path(folder))) for folder in folders):
        notes.append(f"{unfinished} runs in these folders are not completed.")

    made = [*tables.make_mean_tables(rows, baseline).values()]
    made += [figures.make_curve_table(curves[name], name) for name in curves]
    made += [tables.make_pair_table(pairs, metrics, baseline)] if pairs else []
    drawn = {"figure3": figures.draw_noise_figure(rows, baseline, before)}
    drawn |= {"differences": differences} if (differences := figures.draw_differences(rows, baseline)) else {}
    drawn |= {"curves": figures.draw_curves(curves)} if curves else {}
    for name, figure in drawn.items():
        write_whole(output / f"{name}.png", figure)
    if not all((Path(folder) / RUNS).is_file() for folder in folders):  # else they have been stored
        store_runs(output, results.runs, results.starts)
    summaries = [run.summary for run in results.runs]
    commands = sorted(summary["command"] for summary in summaries)
    origin = describe_origins(summaries)
    sentence = tables.describe_headline(rows, before, baseline)
    parts = [f"# {benchmark}, by condition and objective\n", render_markdown(headline), f"{sentence}\n"]
    parts += [f"![{name}]({name}.png)\n" for name in drawn] + [render_markdown(table) for table in made]
    parts += ["\n".join(notes), f"\n{origin}\n", "Each run again:", "```", *commands, "```\n"]
    write_whole(output / "report.md", "\n".join(parts))
    document = {"benchmark": benchmark, "baseline": baseline, "before_training": before, "rows": rows}
    document |= {"same_questions": pairs, "curves": [row for of_metric in curves.values() for row in of_metric]}
    write_json(output / "report.json", document | {"notes": notes, "commands": commands, "origin": origin})
    console.print(headline)
    left_out = (note for note in notes if "not evaluated" in note or "not completed" in note)
    for line in filter(None, (sentence, *results.tuned, *left_out)):
        console.print(line)
    console.print(f"{output / 'report.md'}: differences, tests, intervals and commands\n{output / 'figure3.png'}")


def describe_origins(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Describe the devices and versions of runs: all of them where they differ."""
    devices = sorted({summary["device"] for summary in summaries})
    packages: dict[str, set[str]] = {}
    for summary in summaries:
        for package, number in summary["versions"].items():
            packages.setdefault(package, set()).add(number)
    versions = ", ".join(f"{package} {' and '.join(sorted(numbers))}" for package, numbers in packages.items())
    return f"Device: {' and '.join(devices)}. Versions: {versions}."


def write_notes(
    rows: list[dict], paired: bool, baseline: str, unevaluated: list[str], alone: Sequence[str]
) -> list[str]:
    """Write what a reader must know to read the tables."""
    notes = []
    if any(row["mean"]["n"] == 1 for row in rows):
        notes.append("One seed: intervals over images alone. Run more (-m seed=0,1,2) before believing a difference.")
    if any(row["mean"]["n"] > 1 for row in rows):
        compared = [row["difference"] for row in rows if row["difference"]]
        notes.append(
            "Intervals: 95 %, over seeds and images together, and the checkpoints that seeds started from if these "
            f"differ. Differences to {baseline} are paired by seed and image."
        )
        notes.append(
            f"p: two-sided, of the same model. Holm: adjusted for all {len(compared)} differences of this report. "
            "Detectable: the true difference that as many seeds and images would show with a probability of 80 %."
        )
        if alone:
            notes.append(f"Over seeds alone, as the scores of their answers are missing: {', '.join(alone)}.")
    if unevaluated:
        notes.append(f"Left out, completed but not evaluated: {', '.join(unevaluated)}.")
    if paired:
        notes.append(
            "The same questions: 95 % intervals over their images, paired; p: permutation test over "
            "images, of all scores together; right alone, where answers are right or wrong: the number of questions "
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
    comparison = compare(Path(given[0]), Path(given[1]))
    if comparison is None or comparison["differences"] is None:
        raise InputError(f"compare: {' and '.join(given)} have no predictions.jsonl about several images to draw from")
    table = make_table("metric", "second minus first", title=f"{given[1]} minus {given[0]}")
    for metric, difference in comparison["differences"].items():
        table.add_row(metric.replace("_", " "), format_interval(difference, signed=True))
    console.print(table)
    test = comparison["test"]
    console.print(f"{comparison['n']} questions; 95 % intervals over their images, paired.")
    if test["only_first"] is not None:
        console.print(f"Right in the first only {test['only_first']}, in the second only {test['only_second']}.")
    console.print(f"Permutation test over images: p = {test['p']:.3g}.")
    write_json(output / "compare.json", {"first": given[0], "second": given[1], **comparison})
    console.print(f"{output}: compare.json")


def report_paper_tables(folders: list[str], settings: ReportConfig, output: Path, console: Console) -> None:
    """Print the paper's tables 1 and 2 with our rows below its own: `paper.md` and `paper.json`."""
    results = paper.collect_paper_results(folders)
    baseline = choose_baseline(results, settings.baseline)
    of_table = paper.make_paper_rows(results, baseline, paper.load_published(settings.published))
    for title, rows in of_table.items():
        console.print(paper.make_paper_table(title, rows, brief=True))
    note = (
        f"Win / All: benchmarks with a higher value than {baseline} (in the paper's rows: than without CAL). Several "
        "seeds: means with Student's 95 % interval; one seed: the bootstrap's interval over images. The paper's "
        "values are single runs."
    )
    console.print(note)
    pages = [render_markdown(paper.make_paper_table(title, rows, brief=False)) for title, rows in of_table.items()]
    write_json(output / "paper.json", {"tables": of_table, "note": note})
    write_whole(output / "paper.md", "\n".join(["# Tables 1 and 2\n", *pages, f"{note}\n"]))
    console.print(f"{output}: paper.md, paper.json")
