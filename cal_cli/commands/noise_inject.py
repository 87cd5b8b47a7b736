"""`cal noise-inject`: write a data set in which some captions are wrong, and a manifest of the changes."""

import json
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cal_cli.commands.hydra_app import get_job
from cal_cli.data.export import save_image
from cal_cli.data.llava_json import write_llava_json
from cal_cli.data.noise import NoiseConfig, describe_changes, inject_noise, load_data, make_manifest
from cal_cli.data.noise_kinds import SIMILAR, SWAP
from cal_cli.data.sample import get_image_names, rename_images
from cal_cli.runtime.config import check_types
from cal_cli.runtime.console import make_console
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json


@dataclass
class NoiseInjectConfig:
    """The types of `conf/noise_inject.yaml`, which documents each key."""

    data: Any
    kind: str
    ratio: float
    seed: int
    words: str | None
    families: list[str] | None
    output: str | None


def noise_inject(config: DictConfig) -> None:
    """Write `data.json` and `noise_manifest.json`, and `images/` if the images are not files in a folder yet."""
    settings = check_types(config, NoiseInjectConfig)
    output = Path(settings.output) if settings.output is not None else get_job().folder
    source = config.data.get("path")
    if source is not None and (output / "data.json").resolve() == Path(source).resolve():
        raise InputError(f"output={output}: its data.json is the source itself; give another folder")
    console = make_console()
    clean = load_data(config, console)
    noise = NoiseConfig(settings.ratio, settings.seed, settings.kind, settings.words, settings.families)
    data, changed = inject_noise(clean, noise)
    entries = list(data.entries)
    if clean.image_folder is None:
        folder = output / "images"
        for entry in entries:
            for name in get_image_names(entry):
                save_image(data, name, folder)
    elif "sources" in config.data:  # images in several folders
        entries, folder = [rename_images(entry, os.path.abspath) for entry in entries], Path("/")
    else:
        folder = clean.image_folder
    sha256 = write_llava_json(entries, output / "data.json")
    origin = source or json.dumps(OmegaConf.to_container(config.data))
    manifest = make_manifest(noise, entries, changed, origin, sha256)
    write_json(output / "noise_manifest.json", manifest, indent=1)
    if shortfall := describe_changes(entries, noise, changed):
        console.print(shortfall)
    console.print(
        f"{output / 'data.json'}: {len(entries)} samples, {manifest['n']} with an image"
        f"{' of these families' if settings.families else ''}, "
        f"{len(changed)} conversations {'swapped' if settings.kind in (SWAP, SIMILAR) else 'changed'}"
    )
    words = ["cal", "train", "data=llava_json", f"data.path={output / 'data.json'}", f"data.image_folder={folder}"]
    console.print(f"train on it: {shlex.join(words)}", markup=False)
