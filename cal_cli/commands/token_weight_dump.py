"""`cal token-weight-dump`: which tokens look at the image, as a table, a page and a histogram."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.table import Table

from cal_cli.commands.hydra_app import get_job
from cal_cli.commands.noisy_data import load_noisy_data
from cal_cli.data.noise import NoiseConfig
from cal_cli.data.sample import get_image_names
from cal_cli.inspection.detection import compute_auc, describe_kinds, estimate_auc_interval
from cal_cli.inspection.heatmap import HeatmapSample, render_heatmap
from cal_cli.inspection.heatmap_figure import FORMATS, draw_heatmap
from cal_cli.inspection.histogram import draw_histogram
from cal_cli.inspection.tokens import make_token_table
from cal_cli.inspection.words import rank_words
from cal_cli.models.load import load_checkpoint
from cal_cli.objective import RuleLoss
from cal_cli.runtime.config import build, check_types
from cal_cli.runtime.console import make_console, make_table
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, write_whole
from cal_cli.runtime.runs import LEARNT, find_checkpoint, get_result_folder, get_run_name
from cal_cli.statistics.seeds import format_interval
from cal_cli.toy.model import BASE


@dataclass
class TokenWeightDumpConfig:
    """The types of `conf/token_weight_dump.yaml`, which documents each key."""

    seed: int
    checkpoint: str | None
    data: Any
    samples: int | None
    objective: Any
    noise: NoiseConfig
    manifest: str | None
    batch_size: int
    heatmap_samples: int
    format: str | None
    output: str | None


def token_weight_dump(config: DictConfig) -> None:
    """Write the table of tokens, the page, the histogram and `kinds.json`; print how well delta detects kinds."""
    settings = check_types(config, TokenWeightDumpConfig)
    for key in ("batch_size", "samples"):
        if (value := getattr(settings, key)) is not None and value < 1:
            raise InputError(f"{key}={value}: must be at least 1")
    checkpoint = find_checkpoint(settings.checkpoint, {"tiny": BASE})
    objective = build(config, "objective")
    if not isinstance(objective, RuleLoss) or objective.rule.once or objective.contrast in ("cached", "reference"):
        raise InputError(
            "cal token-weight-dump shows weights that a checkpoint alone gives: choose an objective with a weight rule "
            "that needs neither another model nor scores from before training, such as cal, posterior, ratio or gce"
        )
    if settings.format is not None and settings.format not in FORMATS:
        raise InputError(f"format={settings.format}: allowed are null, {', '.join(FORMATS)}")
    data, noisy = load_noisy_data(config, settings.noise, settings.manifest, make_console(), settings.samples)
    if not any("image" in entry for entry in data.entries):
        raise InputError(f"none of the first {len(data)} samples shows an image: delta needs one; give other data")
    learnt = read_json(checkpoint / LEARNT) or read_json(checkpoint.parent / LEARNT, {})
    if learnt.keys() == objective.state.keys():  # of a run with the same rule
        objective.restore(learnt)
    model, processor = load_checkpoint(str(checkpoint), "float32")
    table, pieces = make_token_table(model, processor, data, objective, noisy, settings.batch_size)

    folder = get_result_folder(checkpoint, "tokens", str(get_job().choices["data"]))
    folder = Path(settings.output) if settings.output else folder
    buffer = BytesIO()
    pq.write_table(table, buffer)
    write_whole(folder / "tokens.parquet", buffer.getvalue())
    shown = []
    for index in range(min(settings.heatmap_samples, len(data))):
        images = [data.open_image(name) for name in get_image_names(data.entries[index])]
        is_noise = None if noisy is None else index in noisy
        shown.append(HeatmapSample(data.entries[index]["id"], images, pieces[index], is_noise))
    title = f"Which tokens look at the image? {get_run_name(checkpoint)}"
    seen_pieces = [text for text, entry in zip(pieces, data.entries, strict=True) if "image" in entry]
    write_whole(folder / "heatmap.html", render_heatmap(shown, title, rank_words(seen_pieces)))
    if settings.format is not None:
        write_whole(folder / f"heatmap.{settings.format}", draw_heatmap(shown, settings.format))

    with_image = {entry["id"] for entry in data.entries if "image" in entry}
    ids = table["sample_id"].to_pylist()
    known = table["is_noise"].is_valid().to_numpy() | (noisy is None)
    seen = np.array([identity in with_image for identity in ids]) & known
    delta = table["delta"].to_numpy()[seen]
    noise = None if noisy is None else np.array(table["is_noise"].to_pylist())[seen]
    write_whole(folder / "delta_histogram.png", draw_histogram(delta, noise, f"{len(delta):,} tokens"))
    _, sample = np.unique(np.array(ids)[seen], return_inverse=True)
    kinds = describe_kinds(delta, table["weight"].to_numpy()[seen], np.array(table["kind"].to_pylist())[seen], sample)
    write_whole(folder / "kinds.json", json.dumps(kinds, indent=1) + "\n")
    console = make_console()
    console.print(f"{folder}: {len(ids):,} tokens of {len(data)} samples; mean delta {delta.mean():.2f} with an image")
    if noise is not None and noise.any() and not noise.all():
        interval = estimate_auc_interval(-delta, noise, sample)
        console.print(
            "a low delta detects the tokens that do not describe their picture with an area under the ROC curve of "
            f"{compute_auc(-delta, noise):.3f}"
            + ("" if interval is None else f" (95 % interval over samples {interval[0]:.3f} to {interval[1]:.3f})")
        )
    if kinds:
        console.print(tabulate_kinds(kinds))


def tabulate_kinds(kinds: dict[str, Any]) -> Table:
    """Make a table of what is known of each kind of word, see `describe_kinds`."""
    table = make_table("kind of word", "tokens", "mean delta", "mean weight", "area under the ROC curve of delta")
    for kind, found in kinds.items():
        auc = format_interval({"value": found["auc"], "ci95": found["ci95"]}) if "auc" in found else ""
        table.add_row(kind, f"{found['tokens']:,}", f"{found['delta']:+.2f}", f"{found['weight']:.2f}", auc)
    return table
