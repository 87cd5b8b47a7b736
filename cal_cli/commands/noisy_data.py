"""Load data of which it is known, or not, which conversations do not describe their picture."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from cal_cli.data.noise import NoiseConfig, describe_changes, inject_noise
from cal_cli.data.sample import Conversations
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError


def load_noisy_data(
    config: DictConfig, noise: NoiseConfig, manifest: str | None, console: Console, samples: int | None = None
) -> tuple[Conversations, dict[int, dict[str, Any]] | None]:
    """Load the data of a config, with noise if some is asked for.

    Args:
        config: with the node `data`.
        noise: what to change in the samples; a ratio of 0 changes nothing.
        manifest: a `noise_manifest.json` of data that are changed already; None if there is none.
        console: for a message if fewer conversations than asked for could be changed.
        samples: number of samples, from the first; None means all.

    Returns:
        The data, and what was changed, by the index of the sample; None if that is unknown.

    Raises InputError if the manifest does not fit the data, or both a manifest and noise are given.
    """
    data: Conversations = build(config, "data")
    if manifest is not None and noise.ratio:
        raise InputError("manifest and noise.ratio exclude each other: give one of them")
    noisy = None if manifest is None else read_changes(Path(manifest), data)
    if samples is not None:
        data = data.replace(entries=data.entries[:samples])
    if noise.ratio:
        data, changed = inject_noise(data, noise)
        noisy = {change["index"]: change for change in changed}
        if shortfall := describe_changes(data.entries, noise, changed):
            console.print(shortfall)
    return data, noisy


def read_changes(path: Path, data: Conversations) -> dict[int, dict[str, Any]]:
    """Read the changes that a manifest lists, by the index of their sample.

    Raises InputError if there is no such manifest, or it is of other data.
    """
    if not path.is_file():
        raise InputError(f"manifest={path}: there is no such file; cal noise-inject writes one next to its data.json")
    try:
        changed = json.loads(path.read_text())["changed"]
        places = {change["index"]: change["id"] for change in changed}
        found = {change["index"]: change for change in changed}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"manifest={path}: not a manifest of cal noise-inject ({error!r})") from error
    for index, identity in places.items():
        if index >= len(data) or data.entries[index]["id"] != identity:
            raise InputError(f"manifest={path}: its sample {identity!r} is not sample {index} of the data")
    return found
