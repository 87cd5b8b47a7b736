"""`cal token-weight-dump`: a table of tokens, a page to look at, a histogram."""

import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from cal_cli.config import build, typed
from cal_cli.data.conversations import Conversations
from cal_cli.data.noise import NoiseConfig, swap_conversations
from cal_cli.errors import InputError
from cal_cli.files import write_whole
from cal_cli.inspection.detection import noise_auc, noise_auc_interval
from cal_cli.inspection.heatmap import HeatmapSample, heatmap_html
from cal_cli.inspection.histogram import delta_histogram
from cal_cli.inspection.tokens import token_table
from cal_cli.models.load import load_model, place
from cal_cli.objective import ContrastiveAlignmentLoss
from cal_cli.runs import find_checkpoints, result_folder


@dataclass
class TokenWeightDumpConfig:
    """The types of `conf/token_weight_dump.yaml`; what each key means stands there."""

    seed: int
    checkpoint: str | None
    data: Any
    samples: int | None
    objective: Any
    noise: NoiseConfig
    manifest: str | None
    batch_size: int
    heatmap_samples: int
    output: str | None


def token_weight_dump(config: DictConfig) -> None:
    """Write `tokens.parquet`, `heatmap.html` and `delta_histogram.png`; print what noise looks like if it is known.

    Raises:
        InputError: a wrong value, malformed data, or a manifest of other data.
    """
    settings = typed(config, TokenWeightDumpConfig)
    for key in ("batch_size", "samples"):
        if (value := getattr(settings, key)) is not None and value < 1:
            raise InputError(f"{key}={value}: must be at least 1")
    checkpoints = find_checkpoints(settings.checkpoint)
    if len(checkpoints) > 1:
        names = ", ".join(str(checkpoint.parent) for checkpoint in checkpoints)
        raise InputError(f"checkpoint={settings.checkpoint} holds several runs: give one of {names}")
    objective = build(config, "objective")
    if not isinstance(objective, ContrastiveAlignmentLoss) or objective.contrast != "no_image":
        raise InputError("cal token-weight-dump shows contrasts with no image: give objective=cal or pmi, as they are")
    data: Conversations = build(config, "data")
    noisy = None
    if settings.manifest is not None:
        if settings.noise.ratio:
            raise InputError("manifest and noise.ratio exclude each other: give one of them")
        noisy = noisy_samples(Path(settings.manifest), data)
    data.entries = data.entries[: settings.samples]
    if settings.noise.ratio:
        data.entries, changed = swap_conversations(data.entries, settings.noise.ratio, settings.noise.seed)
        noisy = {exchange.index for exchange in changed}
    model, processor = load_model(str(checkpoints[0]))
    model = place(model).eval()
    table, pieces = token_table(model, processor, data, objective, noisy, settings.batch_size)

    folder = result_folder(checkpoints[0], "tokens", HydraConfig.get().runtime.choices["data"])
    folder = Path(settings.output) if settings.output else folder
    buffer = BytesIO()
    pq.write_table(table, buffer)
    write_whole(folder / "tokens.parquet", buffer.getvalue())
    shown = [
        HeatmapSample(sample["id"], sample["image"], pieces[index], None if noisy is None else index in noisy)
        for index in range(min(settings.heatmap_samples, len(data)))
        for sample in [data[index]]
    ]
    name = checkpoints[0].parent.name if checkpoints[0].name == "checkpoint" else checkpoints[0].name
    title = f"Which tokens look at the image? {name}"
    write_whole(folder / "heatmap.html", heatmap_html(shown, title, objective.score))

    with_image = {entry["id"] for entry in data.entries if "image" in entry}
    ids = table["sample_id"].to_pylist()
    seen = np.array([identity in with_image for identity in ids])
    delta = table["delta"].to_numpy()[seen]
    is_noise = None if noisy is None else np.array(table["is_noise"].to_pylist())[seen]
    write_whole(folder / "delta_histogram.png", delta_histogram(delta, is_noise, f"{len(delta):,} tokens"))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{folder}: {len(ids):,} tokens of {len(data)} samples; mean delta {delta.mean():.2f} with an image")
    if is_noise is not None and is_noise.any() and not is_noise.all():
        _, sample = np.unique(np.array(ids)[seen], return_inverse=True)
        low, high = noise_auc_interval(delta, is_noise, sample)
        console.print(
            f"a low delta tells the tokens of exchanged captions with an area under the ROC curve of "
            f"{noise_auc(delta, is_noise):.3f} (95 % interval over samples {low:.3f} to {high:.3f})"
        )


def noisy_samples(path: Path, data: Conversations) -> set[int]:
    """The places in the data of the samples that a manifest says were changed.

    Raises:
        InputError: there is no such manifest, or it belongs to other data.
    """
    if not path.is_file():
        raise InputError(f"manifest={path}: there is no such file; cal noise-inject writes one beside its data.json")
    try:
        changed = json.loads(path.read_text())["changed"]
        places = {change["index"]: change["id"] for change in changed}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"manifest={path}: not a manifest as cal noise-inject writes it ({error!r})") from error
    for index, identity in places.items():
        if index >= len(data) or data.entries[index]["id"] != identity:
            raise InputError(f"manifest={path}: its sample {identity!r} does not stand at place {index} of the data")
    return set(places)
