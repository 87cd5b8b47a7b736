"""Read finished runs and bring their metrics into one table by objective, noise and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cal_cli.data.noise import SWAP
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json
from cal_cli.runtime.runs import OPERATIONAL, find_completed_runs, read_config, read_summary

# keys in which the runs of one comparison may differ
VARIED = ("name", "seed", "noise", "objective", *OPERATIONAL)


@dataclass
class Result:
    """One finished and evaluated run."""

    run: Path
    objective: str  # its choice, and the options in which runs of that choice differ: `cal window=9`
    noise_kind: str  # `swap` for clean data, which are the same for every kind
    noise_ratio: float
    seed: int
    metrics: dict[str, float]
    intervals: dict[str, list[float] | None]  # of the metrics, over pictures
    engine: str  # the program that answered and scored
    headline: list[str]  # the metrics that the benchmark reports first
    options: dict  # of the objective
    settings: dict  # the rest of the config, which must be equal

    @property
    def noise(self) -> tuple[str, float]:
        """Its kind and ratio."""
        return self.noise_kind, self.noise_ratio


def collect_results(folders: list[str], benchmark: str, required: bool = True) -> tuple[list[Result], list[Path]]:
    """Read every completed run in the folders and their subfolders.

    Returns:
        The evaluated runs, and the runs without results on the benchmark.

    Raises:
        InputError: a folder is missing, nothing is evaluated although it is required, or runs cannot be compared: they
            differ in more than objective, noise and seed, or two of them agree in all three.
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
    check_comparable(results)
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
        noise_kind=noise.get("kind", SWAP) if noise["ratio"] else SWAP,
        noise_ratio=noise["ratio"],
        seed=summary["seed"],
        metrics=metrics,
        intervals={name: metric.get("ci95") for name, metric in document["metrics"].items()},
        engine=node.get("engine", "cal"),
        headline=[name for name in headline if name in metrics],
        options=flatten(config["objective"]) | describe_first_stage(config),
        settings=select_comparable(config),
    )


def flatten(node: dict, prefix: str = "") -> dict:
    """Return the options of a config node and of the nodes within it, by dotted names."""
    options: dict[str, Any] = {}
    for key, value in node.items():
        options |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return options


def select_comparable(config: dict) -> dict:
    """Return the part of a config that must be equal in all runs of one comparison."""
    kept = {key: value for key, value in config.items() if key not in VARIED}
    if kept["data"].get("seed") == config["seed"]:  # the default: the seed of the data is that of the run
        kept["data"] = {**kept["data"], "seed": "as the run"}
    before = read_config(get_projector_run(config))
    if before:  # the first stage must be equal too, whatever its folder
        kept["model"] = {**kept["model"], "projector": select_comparable(before)}
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


def check_comparable(results: list[Result]) -> None:
    """Raise InputError unless the runs differ in objective, noise and seed only, and in one of them."""
    places: dict[tuple, Path] = {}
    for result in results:
        first = results[0]
        differing = [key for key in first.settings if result.settings.get(key) != first.settings[key]]
        if differing:
            raise InputError(
                f"{result.run} and {first.run} differ in {', '.join(differing)}, not only in objective, noise and "
                "seed: give runs=... folders that can be compared"
            )
        place = (result.objective, result.noise, result.seed)
        if place in places:
            raise InputError(
                f"{result.run} and {places[place]} have the same objective, noise and seed: "
                "keep variants in separate folders (name=...)"
            )
        places[place] = result.run


def tabulate_metric(results: Sequence[Result], metric: str, baseline: str = "ce") -> pd.DataFrame:
    """Tabulate a metric: columns `kind`, `ratio` (of noise), `objective`, `seed` and `value`, the baseline first."""
    columns = ["kind", "ratio", "objective", "seed", "value"]
    table = pd.DataFrame([[*r.noise, r.objective, r.seed, r.metrics[metric]] for r in results], columns=columns)
    table["other"], table["later"] = table["objective"] != baseline, table["kind"] != SWAP
    return table.sort_values(["later", "kind", "ratio", "other", "objective", "seed"], ignore_index=True)[columns]


def name_noise(kind: str, ratio: float) -> str:
    """Name a kind and a ratio of noise; exchanged conversations by the ratio alone."""
    return f"{ratio:g}" if kind == SWAP else f"{kind} {ratio:g}"
