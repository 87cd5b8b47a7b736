"""`cal data-check`: read a data set once, as training will, name every bad sample and write the good ones."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from cal_cli.config import command_line, typed
from cal_cli.data.collator import IGNORED, Collator
from cal_cli.data.conversations import opened, renamed
from cal_cli.data.llava_json import (
    Source,
    inside,
    name_of,
    open_inside,
    problem_of,
    read_entries,
    sources_of,
    write_llava_json,
)
from cal_cli.data.tables import Rows, loaded
from cal_cli.errors import InputError
from cal_cli.files import versions, write_whole
from cal_cli.models.pretrained import processor_of

SHOWN = 20  # bad samples on the terminal and in report.md; bad_samples.jsonl has them all
QUANTILES = (0, 5, 50, 95, 99, 100)


@dataclass
class DataCheckConfig:
    """The types of `conf/data_check.yaml`; what each key means stands there."""

    model: Any
    data: Any
    max_length: int | None
    max_pixels: int
    workers: int | None


@dataclass(frozen=True)
class Checked:
    """What one entry turned out to be."""

    problem: str | None
    tokens: int = 0  # in the model's input, the image's among them
    supervised: int = 0
    kind: str = "text"  # text | image


class EntryChecks(Dataset):
    """Each entry as training will read it: its form, its image from the first byte to the last, its tokens.

    Args:
        entries: as the file has them.
        open_image: from the name of an image and the most pixels that it may have to the picture.
        collate: makes tokens of them.
        max_pixels: of an image.
    """

    def __init__(
        self,
        entries: Sequence[Any],
        open_image: Callable[[str, int], Image.Image],
        collate: Collator,
        max_pixels: int,
    ) -> None:
        self.entries, self.open_image, self.collate, self.max_pixels = entries, open_image, collate, max_pixels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Checked:
        entry = self.entries[index]
        problem = problem_of(entry)
        if problem:
            return Checked(problem)
        kind = "image" if "image" in entry else "text"
        try:
            image = opened(entry, self.open_image, self.max_pixels)
            batch = self.collate([{"id": entry["id"], "image": image, "conversations": entry["conversations"]}])
        except InputError as error:
            return Checked(str(error))
        labels = batch["labels"][0, 1:]
        return Checked(None, batch["input_ids"].shape[1], int((labels != IGNORED).sum()), kind)


def data_check(config: DictConfig) -> None:
    """Write `report.md`, `report.json`, `bad_samples.jsonl`, `tokens.parquet` and what is good into Hydra's folder.

    What is good is `clean.json`, the good entries with their images named by whole paths (`clean_<number>.json` for
    each of several sources), or for `data=table` `rows.json`, the numbers of the good rows.

    Raises:
        InputError: a wrong value, or a file that cannot be read at all.
    """
    settings = typed(config, DataCheckConfig)
    if settings.max_pixels < 1 or (settings.workers is not None and settings.workers < 0):
        raise InputError(
            f"max_pixels={settings.max_pixels}, workers={settings.workers}: must be at least 1, and at least 0"
        )
    console = Console(soft_wrap=True, highlight=False)
    sources = sources_of_config(config)
    collate = Collator(processor_of(config.model), settings.max_length)
    workers = (os.cpu_count() or 1) if settings.workers is None else settings.workers
    folder = Path(HydraConfig.get().runtime.output_dir)
    bad: list[dict[str, Any]] = []
    good: list[Checked] = []
    read, written = 0, []
    for number, (key, source) in enumerate(sources.items()):
        entries = source if isinstance(source, Rows) else read_entries(source, key)
        opener = source.open_image if isinstance(source, Rows) else partial(open_inside, source.folder)
        checks = DataLoader(
            EntryChecks(entries, opener, collate, settings.max_pixels),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        steps = track(checks, source.path, len(entries), console=console, disable=not console.is_terminal)
        clean: list[Any] = []
        for index, (entry, checked) in enumerate(zip(entries, steps, strict=True)):
            if checked.problem:
                bad.append({"source": source.path, "index": index, "id": name_of(entry), "problem": checked.problem})
                continue
            good.append(checked)
            clean.append(
                index if isinstance(source, Rows) else renamed(entry, partial(inside, source.folder.resolve()))
            )
        read += len(entries)
        if clean and isinstance(source, Rows):
            written.append(folder / "rows.json")
            write_whole(written[-1], json.dumps(clean) + "\n")
        elif clean:
            written.append(folder / ("clean.json" if len(sources) == 1 else f"clean_{number}.json"))
            write_llava_json(clean, written[-1])
    write_whole(folder / "bad_samples.jsonl", "".join(json.dumps(one) + "\n" for one in bad))
    report = {
        "command": command_line("data-check"),
        "data": OmegaConf.to_container(config.data),
        "max_length": settings.max_length,
        "samples": read,
        "good": len(good),
        "bad": len(bad),
        "with_image": sum(one.kind == "image" for one in good),
        "problems": dict(Counter(kind_of(one["problem"]) for one in bad).most_common()),
        "tokens": quantiles([one.tokens for one in good]),
        "supervised_tokens": quantiles([one.supervised for one in good]),
        "versions": versions(),
    }
    table = pa.Table.from_pylist([{k: v for k, v in asdict(one).items() if k != "problem"} for one in good])
    pq.write_table(table, folder / "tokens.parquet")
    write_whole(folder / "report.json", json.dumps(report, indent=2) + "\n")
    write_whole(folder / "report.md", markdown(report, bad))
    tell(console, report, bad, folder, written)


def sources_of_config(config: DictConfig) -> dict[str, Source | Rows]:
    """What a `data` node names, by the key that names each in error messages.

    Raises:
        InputError: the node names no file, or a table that cannot be read.
    """
    node: Any = OmegaConf.to_container(config.data)
    if node["_target_"].endswith("tables.table"):
        source = loaded(node["path"], node["name"], node["split"])
        return {"data.path": Rows(source, node["path"], node["image_folder"])}
    if "sources" in node:
        return {**sources_of(node["sources"])}
    if "path" not in node:
        raise InputError("data: names no file to check; give data=llava_json data.path=..., or another with files")
    return {"data.path": Source(node["path"], node.get("image_folder"))}


def kind_of(problem: str) -> str:
    """A problem without what is particular to its sample, to count alike ones together."""
    for mark, kind in (
        ("cannot be read as an image", "image cannot be read"),
        ("pixels, more than", "image too large"),
        ("is not in", "image missing"),
        ("leaves the folder", "image outside its folder"),
        ("not valid JSON", "broken JSON"),
        ("no supervised token", "no supervised token"),
        ("cut within its image", "cut within its image"),
        ("turns must go", "turns out of order"),
        ("stands in its turns", "<image> and images do not match"),
        ("human turn only", "<image> in an answer"),
    ):
        if mark in problem:
            return kind
    return "malformed entry"


def quantiles(values: list[int]) -> dict[str, float]:
    """Quantiles and mean of token counts; empty for none."""
    if not values:
        return {}
    found = np.percentile(values, QUANTILES)
    return {f"p{share}": float(value) for share, value in zip(QUANTILES, found, strict=True)} | {
        "mean": float(np.mean(values))
    }


def markdown(report: dict[str, Any], bad: list[dict[str, Any]]) -> str:
    """The report as a page."""
    lines = ["# Data check", "", f"`{report['command']}`", ""]
    lines += [f"{report['samples']} samples: {report['good']} good, {report['bad']} bad.", ""]
    lines += [f"{report['with_image']} of the good ones show an image.", ""]
    if report["tokens"]:
        heads = list(report["tokens"])
        lines += ["| tokens a sample | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for name in ("tokens", "supervised_tokens"):
            values = " | ".join(f"{report[name][head]:.0f}" for head in heads)
            lines.append(f"| {name.replace('_', ' ')} | {values} |")
        lines.append("")
    if bad:
        lines += ["| problem | samples |", "|---|---|"]
        lines += [f"| {kind} | {count} |" for kind, count in report["problems"].items()]
        lines += ["", "| sample | problem |", "|---|---|"]
        lines += [f"| {one['index']} ({one['id']}) | {one['problem'].replace('|', ' ')} |" for one in bad[:SHOWN]]
        lines += [f"\n`bad_samples.jsonl` names all {len(bad)}."] if len(bad) > SHOWN else []
    return "\n".join(lines) + "\n"


def tell(
    console: Console, report: dict[str, Any], bad: list[dict[str, Any]], folder: Path, written: list[Path]
) -> None:
    """What was found, in a few lines, and what to type next."""
    for one in bad[:SHOWN]:
        console.print(f"bad: {one['source']}[{one['index']}] ({one['id']}): {one['problem']}")
    if len(bad) > SHOWN:
        console.print(f"... and {len(bad) - SHOWN} more")
    console.print(f"{report['samples']} samples: {report['good']} good, {report['bad']} bad")
    if report["tokens"]:
        tokens, supervised = report["tokens"], report["supervised_tokens"]
        console.print(
            f"tokens a sample: median {tokens['p50']:.0f}, 99 % at most {tokens['p99']:.0f}, longest "
            f"{tokens['p100']:.0f}; supervised: median {supervised['p50']:.0f}, least {supervised['p0']:.0f}"
        )
    console.print(f"{folder}: report.md, report.json, bad_samples.jsonl, tokens.parquet")
    if len(written) == 1 and written[0].name == "rows.json":
        console.print(f"train on the good ones: the same data with data.rows={written[0]}")
    elif len(written) == 1:
        console.print(f"train on the good ones: cal train data=llava_json data.path={written[0]} data.image_folder=/")
    elif written:
        console.print("the good ones: " + ", ".join(str(path) for path in written))
