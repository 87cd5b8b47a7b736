"""`cal token-weight-dump`: which tokens look at the image, as a table, a page and a histogram."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cal_cli.commands.hydra_app import get_job
from cal_cli.data.noise import NoiseConfig, load_noisy_data
from cal_cli.data.sample import CORRELATED, Conversations, get_image_names
from cal_cli.inspection.pages import HeatmapSample, render_heatmap
from cal_cli.inspection.tokens import Piece, RankedWord, describe_kinds, draw_histogram, make_token_table, rank_words
from cal_cli.models.load import ModelSource, check_objective, load_checkpoint
from cal_cli.objective import RuleLoss
from cal_cli.objective.contrasts import Cached, Reference
from cal_cli.runtime.config import build, check_types, limited, list_names
from cal_cli.runtime.console import make_console, make_table
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, write_json, write_parquet, write_whole
from cal_cli.runtime.runs import LEARNT, find_checkpoint, get_result_folder, get_run_name
from cal_cli.statistics.bootstrap import compute_auc, estimate_auc_interval
from cal_cli.statistics.seeds import format_interval


@dataclass(kw_only=True)
class TokenWeightDumpConfig:
    """The types and ranges of `conf/token_weight_dump.yaml`, which documents each key."""

    seed: int
    checkpoint: Any
    data: Any
    samples: int | None = limited(1)
    objective: Any
    noise: NoiseConfig
    manifest: str | None
    batch_size: int = limited(1)
    heatmap_samples: int = limited(0)
    output: str | None


def token_weight_dump(config: DictConfig) -> None:
    """Write the table of tokens, the page, the histogram and `kinds.json`; print how well delta detects kinds.

    Several checkpoints are also compared in a page and a histogram of their own.
    """
    settings = check_types(config, TokenWeightDumpConfig)
    names = list_names(settings.checkpoint)
    checkpoints = [find_checkpoint(name) for name in names]
    if len(names) > 1 and settings.output is not None:
        raise InputError("output is the folder of one checkpoint: leave it out, or give one checkpoint")
    objective = build(config, "objective")
    reads_more = objective.rule.once or isinstance(objective.contrast, Cached | Reference)
    if not objective.rule.reads or "given" in objective.rule.reads or reads_more:
        raise InputError(
            "cal token-weight-dump shows weights that a checkpoint alone gives: choose an objective with a weight rule "
            "that needs neither another model nor scores from before training, such as cal, posterior, ratio or gce"
        )
    for checkpoint in checkpoints:
        check_objective(ModelSource(str(checkpoint)).load_config(), f"checkpoint={checkpoint}")
    console = make_console()
    data, noisy = load_noisy_data(config, settings.noise, settings.manifest, console, settings.samples)
    if not any("image" in entry for entry in data.entries):
        raise InputError(f"none of the first {len(data)} samples shows an image: delta needs one; give other data")
    choice = str(get_job().choices["data"])
    dumps = {}
    for checkpoint in checkpoints:
        folder = get_result_folder(checkpoint, "tokens", choice)
        folder = Path(settings.output) if settings.output else folder
        name = get_run_name(checkpoint)
        name = str(checkpoint) if name in dumps else name
        dumps[name] = dump_checkpoint(checkpoint, copy.deepcopy(objective), data, noisy, settings, folder, console)
    if len(dumps) > 1:
        folder = Path("runs/tokens") / choice / "compared"
        pieces = {name: dumped.pieces for name, dumped in dumps.items()}
        write_samples(folder, f"Which tokens look at the image? {len(dumps)} models", pieces, data, noisy, settings)
        deltas = {name: dumped.delta for name, dumped in dumps.items()}
        write_whole(folder / "delta_histogram.png", draw_histogram(deltas))
        console.print(f"{folder}: heatmap.html and delta_histogram.png compare them")


class Dump(NamedTuple):
    """What is compared between checkpoints: the text of each sample in pieces, and delta, float [tokens]."""

    pieces: list[list[Piece]]
    delta: np.ndarray


def dump_checkpoint(
    checkpoint: Path,
    objective: RuleLoss,
    data: Conversations,
    noisy: dict[int, dict[str, Any]] | None,
    settings: TokenWeightDumpConfig,
    folder: Path,
    console: Console,
) -> Dump:
    """Write the files of one checkpoint, and print what was found."""
    learnt = read_json(checkpoint / LEARNT) or read_json(checkpoint.parent / LEARNT, {})
    if learnt.keys() == objective.state.keys():  # of a run with the same rule
        objective.restore(learnt)
    model, processor = load_checkpoint(str(checkpoint), "float32")
    table, pieces = make_token_table(model, processor, data, objective, noisy, settings.batch_size)
    write_parquet(folder / "tokens.parquet", table)
    name = get_run_name(checkpoint)
    write_samples(folder, f"Which tokens look at the image? {name}", {name: pieces}, data, noisy, settings)

    with_image = {entry["id"] for entry in data.entries if "image" in entry}
    ids = table["sample_id"].to_pylist()
    known = table["is_noise"].is_valid().to_numpy() | (noisy is None)
    seen = np.array([identity in with_image for identity in ids]) & known
    delta = table["delta"].to_numpy()[seen]
    noise = None if noisy is None else np.array(table["is_noise"].to_pylist())[seen]
    known_noise = {} if noise is None else {"of the image": delta[~noise], "not of the image": delta[noise]}
    parts = {label: part for label, part in known_noise.items() if len(part)} or {"delta": delta}
    write_whole(folder / "delta_histogram.png", draw_histogram(parts, name))
    _, sample = np.unique(np.array(ids)[seen], return_inverse=True)
    kinds = describe_kinds(delta, table["weight"].to_numpy()[seen], np.array(table["kind"].to_pylist())[seen], sample)
    write_json(folder / "kinds.json", kinds, indent=1)
    console.print(f"{folder}: {len(ids):,} tokens of {len(data)} samples; mean delta {delta.mean():.2f} with an image")
    if noise is not None and noise.any() and not noise.all():
        interval = estimate_auc_interval(-delta, noise, sample)
        console.print(
            "a low delta detects the tokens that do not describe their image with an area under the ROC curve of "
            f"{compute_auc(-delta, noise):.3f}"
            + ("" if interval is None else f" (95 % interval over samples {interval[0]:.3f} to {interval[1]:.3f})")
        )
    if kinds:
        console.print(tabulate_kinds(kinds))
    unknown = {identity for identity, kind in zip(ids, table["kind"].to_pylist(), strict=True) if kind is None}
    if lost := sum(str(entry["id"]) in unknown for entry in data.entries if entry.get(CORRELATED) is not None):
        console.print(f"kinds.json is without {lost} samples whose marked words the chat template renders differently")
    return Dump(pieces, delta)


def write_samples(
    folder: Path,
    title: str,
    pieces: dict[str, list[list[Piece]]],
    data: Conversations,
    noisy: dict[int, dict[str, Any]] | None,
    settings: TokenWeightDumpConfig,
) -> None:
    """Write the page of the first samples.

    `pieces` has the text of each sample under each checkpoint, by the checkpoint's name; words are ranked for a single
    one.
    """
    shown = []
    for index in range(min(settings.heatmap_samples, len(data))):
        images = [data.open_image(name) for name in get_image_names(data.entries[index])]
        is_noise = None if noisy is None else index in noisy
        texts = {name: of_samples[index] for name, of_samples in pieces.items()}
        shown.append(HeatmapSample(data.entries[index]["id"], images, texts, is_noise))
    words: list[list[RankedWord]] = [[], []]
    if len(pieces) == 1:
        (of_samples,) = pieces.values()
        words = rank_words([text for text, entry in zip(of_samples, data.entries, strict=True) if "image" in entry])
    write_whole(folder / "heatmap.html", render_heatmap(shown, title, words))


def tabulate_kinds(kinds: dict[str, Any]) -> Table:
    """Make a table of what is known of each kind of word, see `describe_kinds`."""
    table = make_table("kind of word", "tokens", "mean delta", "mean weight", "area under the ROC curve of delta")
    for kind, measured in kinds.items():
        auc = format_interval({"value": measured["auc"], "ci95": measured["ci95"]}) if "auc" in measured else ""
        table.add_row(kind, f"{measured['tokens']:,}", f"{measured['delta']:+.2f}", f"{measured['weight']:.2f}", auc)
    return table
