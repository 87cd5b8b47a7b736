"""`cal inspect`: where words look in the image, and which words image tokens are nearest to."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from rich.console import Console

from cal_cli.commands.hydra_app import get_job
from cal_cli.data.collator import Collator
from cal_cli.data.noise import load_data
from cal_cli.data.sample import REGIONS, Conversations, get_image_names
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import Question, RegionLooks
from cal_cli.evaluation.results import load_results, score_answers
from cal_cli.inspection import pages
from cal_cli.inspection.attention import compute_relevancy, find_image_grids, get_seen_images, record_attention
from cal_cli.inspection.pages import draw_attention
from cal_cli.inspection.patch_words import find_patch_words, measure_regions
from cal_cli.inspection.tokens import number_words, spell_tokens
from cal_cli.models.load import load_checkpoint
from cal_cli.objective.passes import find_image_columns
from cal_cli.runtime.config import check_types, limited, list_names
from cal_cli.runtime.console import make_console, make_table, show_progress
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import FORMATS, fingerprint, write_whole
from cal_cli.runtime.runs import find_checkpoint, find_checkpoints, get_device_name, get_result_folder, get_run_name
from cal_cli.statistics.seeds import format_interval


@dataclass(kw_only=True)
class InspectConfig:
    """The types and ranges of `conf/inspect.yaml`, which documents each key."""

    view: str
    seed: int
    checkpoint: Any
    data: Any
    samples: int | None = limited(1)
    sinks: str = limited(choices=("keep", "remove"))
    words: int = limited(1)
    layers: int = limited(1)
    format: str | None = limited(choices=(None, *FORMATS))
    show: list[str]
    dtype: str | None
    output: str | None
    force: bool


def inspect(config: DictConfig) -> None:
    """Look into checkpoints: write a page for one or two, or numbers for each of many."""
    settings = check_types(config, InspectConfig)
    if settings.view not in VIEWS:
        raise InputError(f"view={settings.view}: allowed are {', '.join(VIEWS)}")
    if settings.view != "attention" and (settings.format is not None or settings.show):
        raise InputError(f"view={settings.view}: format and show are those of view=attention")
    if settings.show and settings.format is None:
        raise InputError("show chooses the words of figures: give format=pdf, png or svg too")
    data = load_data(config, make_console())
    try:
        VIEWS[settings.view](settings, data, OmegaConf.to_container(config.data), make_console())
    except ValueError as error:  # a model that a view does not support
        raise InputError(str(error)) from error


def load_pair(settings: InspectConfig) -> list[tuple[str, Any, Any]]:
    """Load one or two checkpoints: the name, the model and the processor of each.

    Raises InputError for another number of them, or two with different tokenizers.
    """
    names = list_names(settings.checkpoint)
    if not 1 <= len(names) <= 2:
        raise InputError(f"checkpoint names {len(names)} checkpoints: a page shows one, or two as checkpoint=[a,b]")
    paths = [find_checkpoint(name) for name in names]
    pair = [(get_run_name(path), *load_checkpoint(str(path), settings.dtype)) for path in paths]
    words = [processor.tokenizer.get_vocab() for _, _, processor in pair]
    if words[0] != words[-1]:
        raise InputError(f"{paths[0]} and {paths[-1]} have different tokenizers, so their tokens cannot be compared")
    return pair


def choose_samples(data: Conversations, samples: int, key: str | None = None) -> list[int]:
    """Return the places of the first samples that show an image, and have the annotation `key`.

    Raises InputError if there is none.
    """
    shown = (
        place
        for place, entry in enumerate(data.entries)
        if "image" in entry and (key is None or (entry.get(key) and len(get_image_names(entry)) == 1))
    )
    first = list(islice(shown, samples))
    if not first:
        wanted = f"has one image and {key}" if key else "shows an image"
        raise InputError(f"none of the {len(data)} samples {wanted}: give other data")
    return first


def read_samples(data: Conversations, samples: int) -> Iterator[tuple[dict[str, Any], list[Image.Image]]]:
    """Yield the first samples that show an image, each with a list of its images."""
    for place in choose_samples(data, samples):
        sample = data[place]
        yield sample, sample["image"] if isinstance(sample["image"], list) else [sample["image"]]


def get_page(settings: InspectConfig, name: str) -> Path:
    """Return the file of a page."""
    return Path(settings.output or "runs/inspect") / f"{name}.html"


def show_attention(settings: InspectConfig, data: Conversations, node: Any, console: Console) -> None:
    """Write the page of attention and relevancy."""
    pair, remove = load_pair(settings), settings.sinks == "remove"
    samples, layers, sinks = [], 0, 0
    for sample, opened in read_samples(data, settings.samples or 4):
        checkpoints = []
        for name, model, processor in pair:
            batch = Collator(processor, keep_text=True)([sample]).to(model.device)
            attention, relevancy = record_attention(model, batch), compute_relevancy(model, batch)
            layers = max(layers, len(attention.weights))
            images = []
            for grid, image in zip(
                find_image_grids(model, batch), get_seen_images(model, processor, batch, opened), strict=True
            ):
                by_layer = attention.select(grid.columns, remove)
                sinks += int(attention.sinks[:, grid.columns].any(dim=0).sum())
                maps = torch.stack([by_layer.sum(dim=0), relevancy[:, grid.columns], *by_layer], dim=1)
                images.append(pages.ImageMaps(image, grid.draw(maps.cpu()).numpy().astype(np.float32)))
            checkpoints.append((name, images))
            numbers = {position: number for number, position in enumerate(attention.position.tolist())}
            ids, special = batch["input_ids"][0].tolist(), set(processor.tokenizer.all_special_ids)
            columns = (~find_image_columns(model, batch["input_ids"])[0]).nonzero()[:, 0].tolist()
            spelled = spell_tokens(batch["text"][0], batch["offsets"][0])
            texts = [spelled[column] for column in columns]
        pieces = [(text, numbers.get(column)) for text, column in zip(texts, columns, strict=True)]
        plain = [column in numbers and ids[column] not in special for column in columns]
        words = number_words([text if inside else None for text, inside in zip(texts, plain, strict=True)])
        samples.append(pages.AttentionSample(str(sample["id"]), pieces, words, checkpoints))
    note = f"{sinks} attention sinks were found among the image tokens" + (" and removed." if remove else ".")
    title = f"Where do words look? {' and '.join(name for name, _, _ in pair)}"
    page = get_page(settings, "attention")
    write_whole(page, pages.render_attention(samples, pages.list_kinds(layers), title, note if sinks else ""))
    console.print(f"{page}: {len(samples)} samples, {layers} layers; {note}")
    if settings.format is not None:
        shown = [word.lower() for word in settings.show]
        for kind in (pages.SUMMED, pages.RELEVANCY):
            path = page.with_name(f"{kind.partition(',')[0]}.{settings.format}")
            write_whole(path, draw_attention(samples, pages.list_kinds(layers).index(kind), settings.format, shown))
            console.print(str(path))


def show_patches(settings: InspectConfig, data: Conversations, node: Any, console: Console) -> None:
    """Write the page of the words of image tokens."""
    pair = load_pair(settings)
    samples = []
    for sample, opened in read_samples(data, settings.samples or 4):
        checkpoints = []
        for name, model, processor in pair:
            batch = Collator(processor)([sample]).to(model.device)
            words = find_patch_words(model, batch, settings.words, settings.layers)
            seen, begin, images = get_seen_images(model, processor, batch, opened), 0, []
            for grid, image in zip(find_image_grids(model, batch), seen, strict=True):
                images.append(pages.PatchImage(image, grid, words, slice(begin, begin + len(grid.columns))))
                begin += len(grid.columns)
            checkpoints.append((name, images))
        samples.append(pages.PatchSample(str(sample["id"]), checkpoints))
    title = f"What do image tokens say? {' and '.join(name for name, _, _ in pair)}"
    page = get_page(settings, "patches")
    write_whole(page, pages.render_patch_words(samples, pair[0][2].tokenizer, title))
    console.print(f"{page}: {len(samples)} samples")


def measure_objects(settings: InspectConfig, data: Conversations, node: Any, console: Console) -> None:
    """Write, as results of a benchmark, how much words look at the things that they name, for every checkpoint."""
    places = choose_samples(data, settings.samples or 200, REGIONS)
    table = make_table("checkpoint", "metric", "value", title="objects")
    table.columns[0].overflow = "fold"
    results: dict[str, Any] | None = None
    for checkpoint in (path for name in list_names(settings.checkpoint) for path in find_checkpoints(name)):
        folder = get_result_folder(checkpoint, "eval", "objects")
        identity = {
            "data": node,
            "samples": len(places),
            "sinks": settings.sinks,
            "weights": fingerprint(checkpoint),
            "dtype": settings.dtype,
        }
        results, differing = load_results(folder, identity)
        if not results or differing or settings.force:
            facts = {"checkpoint": str(checkpoint), "settings": identity, "device": get_device_name()}
            results = measure_checkpoint(checkpoint, data, places, settings, folder, facts, console)
        label = get_run_name(checkpoint)
        for metric, value in results["metrics"].items():
            table.add_row(label, metric.replace("_", " "), format_interval(value))
            label = ""
        table.add_section()
    table.caption = (
        f"{results['n'] if results else 0} words of {len(places)} images; cal report results=objects compares runs"
    )
    console.print(table)


def measure_checkpoint(
    checkpoint: Path,
    data: Conversations,
    places: Sequence[int],
    settings: InspectConfig,
    folder: Path,
    facts: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Measure the regions of some samples with a checkpoint, and return the contents of its `results.json`."""
    model, processor = load_checkpoint(str(checkpoint), settings.dtype)
    questions, texts = [], []
    with show_progress(get_run_name(checkpoint), len(places), console) as advance:
        for place in places:
            entry = data.entries[place]
            measured = measure_regions(model, processor, data, place, settings.sinks == "remove")
            for number, numbers in enumerate(measured):
                identity = str(entry["id"])
                questions.append(Question(f"{identity}-{number}", identity, f"region {number}", [identity], list))
                texts.append(json.dumps(numbers))
            advance(1)
    target = f"{RegionLooks.__module__}.{RegionLooks.__qualname__}"
    split = str(facts["settings"]["data"].get("split", "data"))
    benchmark = Benchmark(split, questions, RegionLooks(), {"_target_": target}, 0)
    return score_answers("objects", benchmark, texts, facts | {"command": get_job().command}, folder)


View = Callable[[InspectConfig, Conversations, Any, Console], None]
VIEWS: dict[str, View] = {"attention": show_attention, "patches": show_patches, "objects": measure_objects}
