"""`inputs.json`: what a run depends on besides its config. A run continues only if nothing of it has changed."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cal_cli.data.sample import Conversations
from cal_cli.runtime.files import read_json, write_whole
from cal_cli.runtime.identity import fingerprint


def identify_inputs(config: DictConfig, data: Conversations) -> dict[str, str]:
    """Return a fingerprint of each file or folder that the config names, by its key, and one of the images."""
    node: Any = OmegaConf.to_container(config)
    named = {f"model.{key}": value for key, value in node["model"].items() if key != "_target_"}
    named["objective.reference"] = node["objective"].get("reference")
    return identify_files(named) | identify_data(node["data"], data)


def identify_data(node: dict[str, Any], data: Conversations) -> dict[str, str]:
    """Return a fingerprint of each file or folder that a config's `data` names, by its key, and one of the images."""
    named = {f"data.{key}": value for key, value in node.items() if key in ("path", "rows")}
    named |= {f"data.sources[{i}].path": source["path"] for i, source in enumerate(node.get("sources", []))}
    return identify_files(named) | {"images": data.fingerprint_images()}


def identify_files(named: dict[str, Any]) -> dict[str, str]:
    """Return a fingerprint of each value that is the path of a file or folder, by its key."""
    found = {key: value for key, value in named.items() if isinstance(value, str) and Path(value).exists()}
    return {key: fingerprint(value) for key, value in found.items()}


def write_inputs(folder: Path, inputs: dict[str, str], step_samples: int) -> None:
    """Write `inputs.json` of a run: its fingerprints, and the number of samples of an optimizer step."""
    content = {"fingerprints": inputs, "step_samples": step_samples}
    write_whole(folder / "inputs.json", json.dumps(content, indent=2) + "\n")


def find_changed_inputs(folder: Path, inputs: dict[str, str]) -> list[str]:
    """Return the inputs that differ from those of the run in the folder; empty if it holds none."""
    before = _read(folder).get("fingerprints", inputs)
    return sorted(key for key in before.keys() | inputs.keys() if before.get(key) != inputs.get(key))


def read_step_samples(folder: Path) -> int | None:
    """Return the number of samples of an optimizer step of the run in the folder; None if it holds none.

    The number of processes, and with it that of samples, may be another when a run is continued.
    """
    return _read(folder).get("step_samples")


def _read(folder: Path) -> dict[str, Any]:
    return read_json(folder / "inputs.json", {})
