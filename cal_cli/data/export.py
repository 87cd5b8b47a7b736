"""Write samples, with or without weights, in the formats of other trainers, with their images as files."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cal_cli.data.images import decode_inline
from cal_cli.data.sample import LOSS_WEIGHTS, Conversations, Entry, get_image_names, rename_images
from cal_cli.runtime.files import replace_folder, write_json, write_whole

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
AT_ONCE = 1000  # rows that are written together


def make_trl_schema() -> pa.Schema:
    """Make the schema of `make_trl`: `datasets` reads its images as images."""
    from datasets import Features, Image, Sequence, Value  # takes seconds, so only where it is needed

    part = {"type": Value("string"), "text": Value("string")}
    message = {"role": Value("string"), "content": [part]}
    columns = {"id": Value("string"), "messages": [message], "images": Sequence(Image())}
    return Features(columns | {"weights": Sequence(Value("float32"))}).arrow_schema


def split_text(text: str, images: Iterator[str], text_key: str, image_part: Callable[[str], dict]) -> list[dict]:
    """Split a text at its `<image>` marks into parts of text and of images, which take the next of `images`."""
    parts: list[dict] = []
    for number, piece in enumerate(text.split("<image>")):
        parts += [image_part(next(images))] if number else []
        parts += [{"type": "text", text_key: piece.strip("\n")}] if piece.strip() else []
    return parts


def average_weights(weights: Iterable[float | list[float]]) -> list[float]:
    """Return the weight of each answer, the mean over its tokens if there is one for each."""
    return [round(sum(answer) / len(answer), 4) if isinstance(answer, list) else answer for answer in weights]


def weigh_turns(entry: Entry) -> Iterator[tuple[dict, float | None]]:
    """Yield each turn with the weight of its answer, by default 1; None for turns of others than `gpt`."""
    weights = iter(average_weights(entry.get(LOSS_WEIGHTS) or ()))
    for turn in entry["conversations"]:
        yield turn, next(weights, 1.0) if turn["from"] == "gpt" else None


def make_swift(entry: Entry) -> dict[str, Any]:
    """Make a sample of ms-swift: `messages`, of which those of the assistant have a `loss_scale`, and `images`."""
    messages = [
        {"role": ROLES[turn["from"]], "content": turn["value"]} | ({} if weight is None else {"loss_scale": weight})
        for turn, weight in weigh_turns(entry)
    ]
    return {"id": entry["id"], "messages": messages, "images": get_image_names(entry)}


def make_llama_factory(entry: Entry) -> dict[str, Any]:
    """Make a sample of LLaMA-Factory's ShareGPT format, which has no weights."""
    return {"id": entry["id"], "conversations": entry["conversations"], "images": get_image_names(entry)}


def make_llama_factory_v1(entry: Entry) -> dict[str, Any]:
    """Make a sample of LLaMA-Factory's v1 format, `SFTSample`: each message has a `loss_weight`."""
    images = iter(get_image_names(entry))
    messages = [
        {
            "role": ROLES[turn["from"]],
            "content": split_text(turn["value"], images, "value", lambda name: {"type": "image_url", "value": name}),
            "loss_weight": weight or 0.0,
        }
        for turn, weight in weigh_turns(entry)
    ]
    return {"messages": messages, "extra_info": json.dumps({"id": entry["id"]})}


def make_trl(entry: Entry) -> dict[str, Any]:
    """Make a row for TRL: messages of parts, the `images` that these have places for, and a weight of each answer."""
    images = iter(get_image_names(entry))
    messages = [
        {
            "role": ROLES[turn["from"]],
            "content": split_text(turn["value"], images, "text", lambda _: {"type": "image", "text": None}),
        }
        for turn, _ in weigh_turns(entry)
    ]
    return {
        "id": entry["id"],
        "messages": messages,
        "images": [{"bytes": None, "path": name} for name in get_image_names(entry)],
        "weights": [weight for _, weight in weigh_turns(entry) if weight is not None],
    }


@dataclass(frozen=True)
class Format:
    """A format of another trainer.

    Attributes:
        peer: the trainer and the version whose documentation and code were read.
        suffix: of its file: `.json` (a list), `.jsonl` or `.parquet`.
        make: makes what is written from an entry whose images are named by their full paths.
        weighs: whether it has a place for weights.
        note: what to know to train with it.
    """

    peer: str
    suffix: str
    make: Callable[[Entry], dict[str, Any]]
    weighs: bool
    note: str


FORMATS = {
    "llava": Format("LLaVA 1.5", ".json", dict, True, "the weights are read by cal train objective=column"),
    "swift": Format(
        "ms-swift 4.6.0",
        ".jsonl",
        make_swift,
        True,
        "swift sft --dataset {file}; weights need --is_binary_loss_scale false, or they count as 0 or 1",
    ),
    "llama_factory": Format(
        "LLaMA-Factory 0.9.5", ".jsonl", make_llama_factory, False, "dataset: audited, dataset_dir: {folder}"
    ),
    "llama_factory_v1": Format(
        "LLaMA-Factory 0.9.5, v1",
        ".jsonl",
        make_llama_factory_v1,
        True,
        "train_dataset: {file}; version 0.9.5 of v1 reads the images of no model yet",
    ),
    "trl": Format("TRL 1.16.0", ".parquet", make_trl, True, "docs/audit.md has a trainer that applies the weights"),
}
DATASET_INFO = {
    "audited": {
        "file_name": "data.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "images": "images"},
    }
}


def save_image(data: Conversations, name: str, folder: Path) -> Path:
    """Write an image of an entry as PNG to a folder; one that is within the data gets a name of its contents."""
    inline = decode_inline(name) is not None
    path = folder / (hashlib.sha256(name.encode()).hexdigest()[:16] + ".png" if inline else name)
    buffer = BytesIO()
    data.open_image(name).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
    return path


def write_samples(path: Path, form: Format, entries: Iterable[Entry]) -> str:
    """Write entries, whose images are named by their full paths, in a format; return the SHA-256 of the file."""
    made = (form.make(entry) for entry in entries)
    if form.suffix == ".parquet":
        schema = make_trl_schema()
        with pq.ParquetWriter(path, schema) as writer:
            while rows := list(islice(made, AT_ONCE)):
                writer.write_table(pa.Table.from_pylist(rows, schema))
    else:
        begin, between, end = ("[\n", ",\n", "\n]\n") if form.suffix == ".json" else ("", "", "")
        with path.open("w", encoding="utf-8") as file:
            file.write(begin)
            for number, row in enumerate(made):
                file.write((between if number else "") + json.dumps(row, ensure_ascii=False) + ("" if end else "\n"))
            file.write(end)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def export_samples(
    folder: Path,
    name: str,
    data: Conversations,
    reasons: Mapping[int, str],
    unusable: Collection[int],
    weights: Mapping[int, list],
    about: dict[str, Any],
) -> str:
    """Write `data` and `left_out` in a format, with `manifest.json` and `changes.jsonl`; return what to know of it.

    Both files together, in the order of the numbers in `changes.jsonl`, are the data again: nothing is lost.

    Args:
        folder: for all files.
        name: of the format, a key of `FORMATS`.
        data: the samples.
        reasons: why a sample is left out, by its place.
        unusable: places of samples that cannot be read, in neither file.
        weights: `loss_weights` of samples, by their place.
        about: more for the manifest.
    """
    form = FORMATS[name]
    path = folder / f"data{form.suffix}"

    def place(images: Path, image: str) -> str:
        if data.image_folder is not None and decode_inline(image) is None:
            return os.path.join(data.image_folder.resolve(), image)
        return str(folder.resolve() / "images" / save_image(data, image, images).relative_to(images))

    def read(left_out: bool, images: Path) -> Iterator[Entry]:
        for number, entry in enumerate(data.entries):
            if number not in unusable and (number in reasons) is left_out:
                weighed = {LOSS_WEIGHTS: weights[number]} if number in weights else {}
                yield rename_images({**entry, **weighed}, partial(place, images), inline=True)

    def describe() -> Iterator[dict]:
        for number, entry in enumerate(data.entries):
            change = {"index": number, "id": entry["id"]}
            if number in unusable or number in reasons:
                yield change | {"left_out": reasons.get(number, "cannot be used: cal data-check says why")}
            elif number in weights:
                yield change | {"weights": average_weights(weights[number])}

    def write(temporary: Path) -> None:
        digest = write_samples(temporary / path.name, form, read(False, temporary / "images"))
        write_samples(temporary / f"left_out{form.suffix}", form, read(True, temporary / "images"))
        if name == "llama_factory":
            write_json(temporary / "dataset_info.json", DATASET_INFO)
        with (temporary / "changes.jsonl").open("w") as file:
            file.writelines(json.dumps(change) + "\n" for change in describe())
        counts = {"samples": len(data), "left_out": len(reasons), "unusable": len(unusable), "weighted": len(weights)}
        manifest = {"format": name, "written_for": form.peer, **counts, "sha256": digest, **about}
        write_json(temporary / "manifest.json", manifest)

    replace_folder(folder, write)
    return f"{path}: for {form.peer}: {form.note.format(file=path, folder=folder)}"
