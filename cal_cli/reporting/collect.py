"""Read finished runs and group them by objective and noise ratio."""

import json
from dataclasses import dataclass
from pathlib import Path

from cal_cli.errors import InputError
from cal_cli.runs import OPERATIONAL, completed_runs, read_config, summary_of

# what may differ between the runs of one comparison
APART = ("name", "seed", "noise", "objective", *OPERATIONAL)


@dataclass
class Result:
    """One finished and evaluated run."""

    run: Path
    objective: str  # its choice, and what tells it from others of that choice: `pmi window=9`
    noise_ratio: float
    seed: int
    metrics: dict[str, float]
    intervals: dict[str, list[float] | None]  # of the metrics, over pictures
    engine: str  # what answered and scored
    headline: list[str]  # the metrics that stand for the benchmark
    options: dict  # of the objective
    settings: dict  # the config less what may differ


def collect(folders: list[str], benchmark: str) -> tuple[list[Result], list[Path]]:
    """Read every completed run in or below the folders.

    Returns:
        The evaluated runs, and the runs that have no results on the benchmark.

    Raises:
        InputError: a folder is missing, nothing is evaluated, or runs cannot be compared: they differ in more than
            objective, noise and seed, or two of them agree in all three.
    """
    results, unevaluated = read_results(folders, benchmark)
    if not results:
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on {benchmark}; "
            f"run cal eval benchmark={benchmark} checkpoint={folders[0]} first"
        )
    return results, unevaluated


def read_results(folders: list[str], benchmark: str) -> tuple[list[Result], list[Path]]:
    """As `collect`, where there may be no results."""
    results, unevaluated = [], []
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"runs={folder}: there is no such folder")
        for run in completed_runs(Path(folder)):
            path = run / "eval" / benchmark / "results.json"
            if not path.is_file():
                unevaluated.append(run)
                continue
            summary = summary_of(run)
            told = json.loads(path.read_text())
            node = told.get("settings", {})
            headline = node.get("benchmark", {}).get("headline") or []
            metrics = {name: metric["value"] for name, metric in told["metrics"].items()}
            intervals = {name: metric.get("ci95") for name, metric in told["metrics"].items()}
            ratio = summary["noise"]["ratio"]
            config = read_config(run)
            settings = comparable(config)
            options = config["objective"] | stage_1(config)
            results.append(
                Result(
                    run=run,
                    objective=summary["objective"],
                    noise_ratio=ratio,
                    seed=summary["seed"],
                    metrics=metrics,
                    intervals=intervals,
                    engine=node.get("engine", "cal"),
                    headline=[name for name in headline if name in metrics],
                    options=options,
                    settings=settings,
                )
            )
    tell_apart(results)
    if results:
        check_comparable(results)
    return results, unevaluated


def comparable(config: dict) -> dict:
    """What must be the same in all runs of one comparison."""
    kept = {key: value for key, value in config.items() if key not in APART}
    if kept["data"].get("seed") == config["seed"]:  # the default: the data follow the run's seed
        kept["data"] = {**kept["data"], "seed": "as the run"}
    before = read_config(projector_run(config))
    if before:  # what must be the same of the stage before, wherever it lies
        kept["model"] = {**kept["model"], "projector": comparable(before)}
    return kept


def projector_run(config: dict) -> Path:
    """The run of `stage=pretrain` from whose projector a run started; a folder that is none where there was none."""
    return Path(config.get("model", {}).get("projector") or "none").parent


def stage_1(config: dict) -> dict:
    """The objective of the stage before, where it was another one's: a run's own says what it is called by."""
    before = read_config(projector_run(config)).get("objective")
    return {} if before in (None, config["objective"]) else {"stage_1": summary_of(projector_run(config))["objective"]}


def tell_apart(results: list[Result]) -> None:
    """Add to an objective's name the options in which runs of the same choice differ."""
    by_choice: dict[str, list[dict]] = {}
    for result in results:
        by_choice.setdefault(result.objective, []).append(result.options)
    for result in results:
        same = by_choice[result.objective]
        told = [f"{key}={value}" for key, value in result.options.items() if any(o.get(key) != value for o in same)]
        result.objective = " ".join([result.objective, *told])


def check_comparable(results: list[Result]) -> None:
    """Raise InputError unless the runs differ in objective, noise ratio and seed alone, and in one of them."""
    first = results[0]
    places: dict[tuple[str, float, int], Path] = {}
    for result in results:
        differing = [key for key in first.settings if result.settings.get(key) != first.settings[key]]
        if differing:
            raise InputError(
                f"{result.run} and {first.run} differ in {', '.join(differing)}, not in objective, noise and seed "
                "alone: give runs=... folders that can be compared"
            )
        place = (result.objective, result.noise_ratio, result.seed)
        if place in places:
            raise InputError(
                f"{result.run} and {places[place]} have the same objective, noise ratio and seed: "
                "keep what differs between them in folders of their own (name=...)"
            )
        places[place] = result.run


def group(results: list[Result], metric: str) -> dict[str, dict[float, dict[int, float]]]:
    """A metric by objective, noise ratio and seed; `ce` first, the rest by name."""
    grouped: dict[str, dict[float, dict[int, float]]] = {}
    for result in sorted(results, key=lambda r: (r.objective != "ce", r.objective, r.noise_ratio, r.seed)):
        by_ratio = grouped.setdefault(result.objective, {})
        by_ratio.setdefault(result.noise_ratio, {})[result.seed] = result.metrics[metric]
    return grouped
