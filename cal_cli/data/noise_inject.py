"""`cal noise-inject`: write a data set, some of its captions exchanged, and a manifest of what was changed."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cal_cli.config import build, typed
from cal_cli.data.conversations import Conversations, image_names
from cal_cli.data.llava_json import write_llava_json
from cal_cli.data.noise import manifest, swap_conversations
from cal_cli.data.tables import Rows
from cal_cli.errors import InputError
from cal_cli.files import write_whole


@dataclass
class NoiseInjectConfig:
    """The types of `conf/noise_inject.yaml`; what each key means stands there."""

    data: Any
    ratio: float
    seed: int
    output: str


def noise_inject(config: DictConfig) -> None:
    """Write `data.json` and `noise_manifest.json`, and `images/` where the pictures lie in no folder yet.

    Raises:
        InputError: a wrong value, malformed data, or an output that would overwrite its own source.
    """
    settings = typed(config, NoiseInjectConfig)
    output = Path(settings.output)
    source = config.data.get("path")
    if source is not None and (output / "data.json").resolve() == Path(source).resolve():
        raise InputError(f"output={output}: its data.json is the source itself; give another folder")
    data: Conversations = build(config, "data")
    exchanged, changed = swap_conversations(data.entries, settings.ratio, settings.seed)
    entries = list(exchanged)
    if source is None or (isinstance(data.entries, Rows) and not data.entries.by_name):
        for entry in entries:
            for name in image_names(entry):
                picture = output / "images" / name
                picture.parent.mkdir(parents=True, exist_ok=True)
                data.open_image(name).save(picture)
    sha256 = write_llava_json(entries, output / "data.json")
    origin = source or json.dumps(OmegaConf.to_container(config.data))
    record = manifest(settings.ratio, settings.seed, entries, changed, origin, sha256)
    write_whole(output / "noise_manifest.json", json.dumps(record, indent=1) + "\n")
    Console(soft_wrap=True, highlight=False).print(
        f"{output / 'data.json'}: {len(entries)} samples, {record['n']} with an image, "
        f"{len(changed)} conversations exchanged"
    )
