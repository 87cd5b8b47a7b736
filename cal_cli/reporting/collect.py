"""Read finished runs and bring their metrics into one table by condition, objective and seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from cal_cli.data.noise_kinds import SWAP
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json
from cal_cli.runtime.runs import OPERATIONAL, find_completed_runs, flatten, read_config, read_summary

# keys that are no part of a run's condition
VARIED = ("name", "seed", "noise", "objective", *OPERATIONAL)
AS_THE_RUN = "as the run"  # the value of a seed that is that of the run


@dataclass(frozen=True)
class Condition:
    """Under what runs were trained: objectives are compared with one another under the same condition."""

    settings: tuple[tuple[str, Any], ...]  # keys of the config in which the runs differ, and their values
    noise_kind: str  # `swap` for clean data, which are the same for every kind
    noise_ratio: float

    @property
    def name(self) -> str:
        """Settings and noise in words; the ratio alone for exchanged conversations."""
        noise = f"{self.noise_ratio:g}" if self.noise_kind == SWAP else f"{self.noise_kind} {self.noise_ratio:g}"
        settings = [f"{key}={write_setting(value)}" for key, value in self.settings]
        return ", ".join([*settings, f"noise {noise}" if settings else noise])

    @property
    def order(self) -> tuple:
        """The place of the condition in a table."""
        values = [(0, value, "") if is_number(value) else (1, 0, str(value)) for _, value in self.settings]
        return *values, self.noise_kind != SWAP, self.noise_kind, self.noise_ratio


def is_number(value: Any) -> bool:
    """Return whether a value of a config is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_setting(value: Any) -> str:
    """Write a value of a config: a number in its shortest form, a path by its last three parts."""
    text = f"{value:g}" if is_number(value) else str(value)
    return "/".join(text.split("/")[-3:])


@dataclass
class Result:
    """One finished and evaluated run."""

    run: Path
    objective: str  # its choice, and the options in which runs of that choice differ: `cal window=9`
    condition: Condition
    seed: int
    metrics: dict[str, float]
    intervals: dict[str, list[float] | None]  # of the metrics, over pictures
    engine: str  # the program that answered and scored
    headline: list[str]  # the metrics that the benchmark reports first
    options: dict  # of the objective
    settings: dict  # the rest of the config, by dotted names


def collect_results(folders: list[str], benchmark: str, required: bool = True) -> tuple[list[Result], list[Path]]:
    """Read every completed run in the folders and their subfolders.

    Returns:
        The evaluated runs, and the runs without results on the benchmark.

    Raises:
        InputError: a folder is missing, nothing is evaluated although it is required, or two runs are of the same
            condition, objective and seed.
    """
    results, unevaluated = [], []
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"runs={folder}: there is no such folder")
        for run in find_completed_runs(Path(folder)):
            path = run / "eval" / benchmark / "results.json"
            document = read_json(path, {})
            if document.get("metrics"):
                results.append(_read_result(run, document))
            else:
                unevaluated.append(run)
    if required and not results:
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on {benchmark}; "
            f"run cal eval benchmark={benchmark} checkpoint={folders[0]} first"
        )
    name_variants(results)
    find_conditions(results)
    check_distinct(results)
    return results, unevaluated


def _read_result(run: Path, document: dict) -> Result:
    summary, config = read_summary(run), read_config(run)
    noise = summary["noise"]
    node = document.get("settings", {})
    metrics = {name: metric["value"] for name, metric in document["metrics"].items()}
    headline = node.get("benchmark", {}).get("headline") or []
    return Result(
        run=run,
        objective=summary["objective"],
        condition=Condition((), noise.get("kind", SWAP) if noise["ratio"] else SWAP, noise["ratio"]),
        seed=summary["seed"],
        metrics=metrics,
        intervals={name: metric.get("ci95") for name, metric in document["metrics"].items()},
        engine=node.get("engine", "cal"),
        headline=[name for name in headline if name in metrics],
        options=flatten(config["objective"]) | describe_first_stage(config),
        settings=flatten(select_settings(config)),
    )


def select_settings(config: dict) -> dict:
    """Return the part of a config that makes a run's condition, without what is as in every run by default."""
    kept = {key: value for key, value in config.items() if key not in VARIED}
    if kept["data"].get("seed") == config["seed"]:  # the default: the seed of the data is that of the run
        kept["data"] = {**kept["data"], "seed": AS_THE_RUN}
    noise_seed = config["noise"].get("seed", config["seed"])
    kept["noise"] = {"seed": AS_THE_RUN if noise_seed == config["seed"] else noise_seed}
    before = read_config(get_projector_run(config))
    if before:  # whatever its folder
        kept["model"] = {**kept["model"], "projector": select_settings(before)}
    return kept


def get_projector_run(config: dict) -> Path:
    """Return the run of `stage=pretrain` whose projector a run started from; a missing folder if there was none."""
    return Path(config.get("model", {}).get("projector") or "none").parent


def describe_first_stage(config: dict) -> dict:
    """Return the objective of the first stage, if it differs from that of the run."""
    before = read_config(get_projector_run(config)).get("objective")
    if before in (None, config["objective"]):
        return {}
    return {"stage_1": read_summary(get_projector_run(config))["objective"]}


def name_variants(results: list[Result]) -> None:
    """Append to an objective's name the options in which runs of the same choice differ."""
    by_choice: dict[str, list[dict]] = {}
    for result in results:
        by_choice.setdefault(result.objective, []).append(result.options)
    for result in results:
        same = by_choice[result.objective]
        varied = [f"{key}={value}" for key, value in result.options.items() if any(o.get(key) != value for o in same)]
        result.objective = " ".join([result.objective, *varied])


def find_conditions(results: list[Result]) -> None:
    """Add to each condition the settings in which the runs differ."""
    names = dict.fromkeys(name for result in results for name in result.settings)
    differing = [name for name in names if len({str(result.settings.get(name)) for result in results}) > 1]
    for result in results:
        values = [result.settings.get(name) for name in differing]
        plain = [value if value is None or isinstance(value, int | float) else str(value) for value in values]
        result.condition = replace(result.condition, settings=tuple(zip(differing, plain, strict=True)))


def check_distinct(results: list[Result]) -> None:
    """Raise InputError if two runs are of the same condition, objective and seed."""
    places: dict[tuple, Path] = {}
    for result in results:
        place = (result.objective, result.condition, result.seed)
        if place in places:
            raise InputError(
                f"{result.run} and {places[place]} have the same objective, noise, seed and settings: "
                "give runs=... without one of them"
            )
        places[place] = result.run


def choose_baseline(results: Sequence[Result], given: str | None) -> str:
    """Return the objective that others are compared with: the given one; else `ce`, or the first if no run has `ce`.

    Raises InputError if no run has the given one.
    """
    objectives = sorted({result.objective for result in results})
    if given is None:
        return "ce" if "ce" in objectives else objectives[0]
    if given not in objectives:
        raise InputError(f"baseline={given}: no run has this objective; there are {', '.join(objectives)}")
    return given


def sort_results(results: Sequence[Result], baseline: str) -> list[Result]:
    """Sort results by condition, objective and seed, the baseline first."""
    return sorted(results, key=lambda r: (r.condition.order, r.objective != baseline, r.objective, r.seed))


def tabulate_metric(results: Sequence[Result], metric: str, baseline: str = "ce") -> pd.DataFrame:
    """Tabulate a metric: columns `condition`, `objective`, `seed` and `value`, in their order, the baseline first."""
    rows = [[r.condition, r.objective, r.seed, r.metrics[metric]] for r in sort_results(results, baseline)]
    return pd.DataFrame(rows, columns=["condition", "objective", "seed", "value"])
