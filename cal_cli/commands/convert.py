"""`cal convert`: a published MGM checkpoint as a model of this package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cal_cli.models.mgm.source import MGMSource, convert_published
from cal_cli.runtime.config import build, check_types
from cal_cli.runtime.console import make_console
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import replace_folder


@dataclass
class ConvertConfig:
    """The types of `conf/convert.yaml`, which documents each key."""

    model: Any
    data: Any
    checkpoint: str
    output: str


def convert(config: DictConfig) -> None:
    """Write the model and its processor into the folder `output`."""
    config.data = None  # what the model trains on is not needed, and need not be there
    settings = check_types(config, ConvertConfig)
    checkpoint, output = Path(settings.checkpoint), Path(settings.output)
    if not checkpoint.is_dir():
        raise InputError(
            f"checkpoint={checkpoint}: there is no such folder; download the published checkpoint into one"
        )
    if output.exists():
        raise InputError(f"output={output}: exists already; give another folder")
    source = build(config, "model")
    if not isinstance(source, MGMSource) or source.path is not None:
        raise InputError("cal convert reads published MGM checkpoints: give model=mgm2b, mgm7b, mgm7b_hd, ...")
    model, processor = convert_published(checkpoint, source), source.load_processor()
    output.parent.mkdir(parents=True, exist_ok=True)
    replace_folder(output, model.save_pretrained, processor.save_pretrained)
    count = sum(parameter.numel() for parameter in model.parameters())
    make_console().print(f"{output}: {count:,} parameters; use it as model.path={output} or checkpoint={output}")
