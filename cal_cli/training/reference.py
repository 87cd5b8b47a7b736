"""What an objective reads besides the model in training: a frozen reference model, and scores computed beforehand."""

import copy
import dataclasses
import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BatchFeature,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cal_cli.data.collator import Collator, UnusableSamples
from cal_cli.data.sample import Conversations
from cal_cli.models.load import get_device
from cal_cli.objective import PriorLoss, WeightedLoss, scores_without_image
from cal_cli.runtime.console import track_items
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole
from cal_cli.runtime.provenance import get_versions

CACHE = Path("runs/scores_without_image")


def load_objective_reference(objective: WeightedLoss, model: Any, processor: Any) -> WeightedLoss:
    """Load the frozen model that an objective's `reference` names, if it needs one.

    A folder is loaded as a language model, or as a vision-language model that is given no image; None means a copy of
    the model before training, which reads the text alone.

    Raises InputError if there is no model, or one with another tokenizer.
    """
    options: Any = objective
    contrast, reference = getattr(options, "contrast", None), getattr(options, "reference", None)
    if not isinstance(objective, PriorLoss) and contrast != "reference" and reference is None:
        return objective
    frozen = copy.deepcopy(model) if reference is None else load_reference(reference, processor)
    return dataclasses.replace(options, reference=frozen.to(get_device()).requires_grad_(False).eval())


def load_reference(path: str, processor: Any) -> Any:
    """Load a frozen model from a folder, in float32.

    Raises InputError if there is none, or one with another tokenizer.
    """
    if not (Path(path) / "config.json").is_file():
        raise InputError(f"objective.reference={path}: no config.json there; give a folder written by save_pretrained")
    has_vision = type(AutoConfig.from_pretrained(path)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    words = processor.tokenizer.get_vocab()
    other = AutoTokenizer.from_pretrained(path).get_vocab()
    if any(words.get(word, index) != index for word, index in other.items()) or not other:
        raise InputError(f"objective.reference={path}: its tokenizer differs from the model's; they must share one")
    loader = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    return loader.from_pretrained(path, dtype=torch.float32)


def cache_scores(
    objective: WeightedLoss, model: Any, collate: Collator, data: Conversations, batch_size: int, console: Console
) -> Conversations:
    """Return the samples with their scores without the image, computed once or read back, if the objective is cached.

    The scores are kept in `runs/scores_without_image`, under a name derived from what they depend on: weights, samples
    and score. The runs of a sweep that differ in seed or learning rate share them. `objective` has its `reference`
    loaded, and `model` is the model before training.
    """
    options: Any = objective
    if getattr(options, "contrast", None) != "cached":
        return data
    path = CACHE / f"{_compute_fingerprint(options, model, collate, data)}.parquet"
    if path.is_file():
        console.print(f"scores without images: read from {path}")
    else:
        console.print(f"scores without images: computing {len(data)} samples once, to {path}")
        training, _ = model.training, model.to(get_device()).eval()
        loader = DataLoader(PlacedSamples(data), batch_size, collate_fn=partial(collate_good, collate))
        rows: list[list[float]] = [[] for _ in range(len(data))]
        for places, batch in track_items(loader, "scores without images", console):
            scores = scores_without_image(objective, model, batch.to(model.device)) if places else ()
            for place, row in zip(places, scores, strict=True):
                rows[place] = row[~row.isnan()].tolist()
        model.train(training)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"scores": pa.array(rows, pa.list_(pa.float32()))}), buffer)
        write_whole(path, buffer.getvalue())
    return data.replace(scores=pq.read_table(path)["scores"].to_pylist())


class PlacedSamples(Dataset):
    """The samples of a dataset with their places; None for a bad one, which the dataset would replace by another."""

    def __init__(self, data: Conversations) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[int, dict | None]:
        sample = self.data[place]
        return place, None if sample.get("bad") else sample


def collate_good(collate: Collator, placed: list[tuple[int, dict | None]]) -> tuple[list[int], BatchFeature]:
    """Collate the good ones of some samples, and return their places with them.

    Raises UnusableSamples if a sample is bad and `collate` does not leave such samples out.
    """
    good = [(place, sample) for place, sample in placed if sample is not None]
    while good:
        try:
            batch = dataclasses.replace(collate, keep_ids=False, leave_out=False)([sample for _, sample in good])
            return [place for place, _ in good], batch
        except UnusableSamples as error:
            if not collate.leave_out:
                raise
            good = [one for one, wrong in zip(good, error.wrong, strict=True) if not wrong]
    return [], BatchFeature()


def _compute_fingerprint(options: Any, model: Any, collate: Collator, data: Conversations) -> str:
    """Compute the first 16 hexadecimal digits of a hash of everything that the scores depend on."""
    digest = hashlib.sha256()
    for source in (model, options.reference):
        for name, tensor in source.state_dict().items() if source is not None else ():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    settings = [type(options).__name__, options.score, collate.max_length, collate.processor.chat_template]
    for part in (settings, get_versions(), data.fingerprint_images(), *data.entries):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:16]
