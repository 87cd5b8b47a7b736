"""What an objective reads besides the model in training: a frozen reference model, and scores computed beforehand."""

import copy
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cal_cli.data.collator import Collator, collate_good
from cal_cli.data.sample import LOSS_WEIGHTS, Conversations, load_samples
from cal_cli.models.hub import load_model
from cal_cli.models.load import get_device
from cal_cli.objective import RuleLoss
from cal_cli.objective.loss import score_before_training
from cal_cli.objective.rules import TokenScores, WeightRule
from cal_cli.runtime.console import track_items
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_parquet
from cal_cli.runtime.runs import get_versions

CACHE = Path("runs/scores_without_image")
SCORES = pa.list_(pa.float32())


def load_objective_reference(objective: RuleLoss, model: Any, processor: Any) -> RuleLoss:
    """Load the frozen model that an objective's `reference` names, if it needs one.

    A folder is loaded as a language model, or as a vision-language model that is given no image; None means a copy of
    the model before training, which reads the text alone.

    Raises InputError if there is no model, or one with another tokenizer.
    """
    contrast = objective.reference_contrast
    if contrast is not None:
        frozen = copy.deepcopy(model) if contrast.model is None else load_reference(contrast.model, processor)
        contrast.model = frozen.to(get_device()).requires_grad_(False).eval()
    return objective


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
    return load_model(loader, path, "objective.reference", torch.float32)


def prepare_scores(
    objective: RuleLoss, model: Any, collate: Collator, data: Conversations, batch_size: int, console: Console
) -> Conversations:
    """Return the samples with the numbers of each token that an objective reads from its data.

    These are scores that are computed once before training (`contrast="cached"`), weights that a rule computes once
    from all of them, or the data's own `loss_weights`. The scores are kept in `runs/scores_without_image`, under a name
    derived from what they depend on: weights, samples and score. The runs of a sweep that differ in seed or learning
    rate share them. `objective` has its `reference` loaded, and `model` is the model before training.

    Raises InputError if the objective reads `loss_weights` and no sample has any.
    """
    reads_weights = "given" in objective.rule.reads
    if reads_weights != any(entry.get(LOSS_WEIGHTS) is not None for entry in data.entries):
        if reads_weights:
            raise InputError(
                "the objective reads loss_weights, and no sample has any: add them to the data, for each answer a "
                "number or a list with one for each token, or give another objective"
            )
        console.print("the data have loss_weights, which this objective does not read: objective=column does")
    if reads_weights:
        return data.replace(weighted=True)
    if objective.before_training is None:
        return data
    path = CACHE / f"{_compute_fingerprint(objective, model, collate, data)}.parquet"
    if path.is_file():
        console.print(f"scores before training: read from {path}")
    else:
        console.print(f"scores before training: computing {len(data)} samples once, to {path}")
        training, _ = model.training, model.to(get_device()).eval()
        whole = partial(collate_good, replace(collate, keep_ids=True))
        loader = load_samples(data, range(len(data)), batch_size, 0, whole)
        columns: dict[str, list[list[float]]] = {
            name: [[] for _ in range(len(data))] for name in ("with_image", "without_image")
        }
        for batch in track_items(loader, "scores before training", console):
            if batch is not None:
                places = batch.pop("place")
                batch.pop("bad", None)
                contrast = score_before_training(objective, model, batch.to(model.device))
                for name, rows in columns.items():
                    scores = zip(contrast.sample_index.tolist(), getattr(contrast, name).tolist(), strict=True)
                    for row, score in scores:
                        rows[places[row]].append(score)
        model.train(training)
        write_parquet(path, pa.table({name: pa.array(rows, SCORES) for name, rows in columns.items()}))
    table = pq.read_table(path)
    if objective.rule.once:
        return data.replace(weights=weigh_once(objective.rule, table, ["image" in entry for entry in data.entries]))
    return data.replace(scores=table["without_image"].to_pylist())


def weigh_once(rule: WeightRule, table: pa.Table, has_image: list[bool]) -> list[list[float]]:
    """Apply a rule to all samples together: the weights of each sample's tokens; 1 for samples without an image.

    `table` has the lists `with_image` and `without_image` of each sample.
    """
    lengths = torch.from_numpy(pc.list_value_length(table["with_image"]).to_numpy().astype(np.int64))
    samples = torch.arange(len(lengths)).repeat_interleave(lengths)
    with_image, without_image = (
        torch.from_numpy(table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy())
        for name in ("with_image", "without_image")
    )
    shown = torch.tensor(has_image)[samples]
    weights = torch.ones(len(samples))
    weights[shown] = rule(TokenScores(with_image, without_image, samples)[shown])
    return [row.tolist() for row in weights.split(lengths.tolist())]


def _compute_fingerprint(objective: RuleLoss, model: Any, collate: Collator, data: Conversations) -> str:
    """Compute the first 16 hexadecimal digits of a hash of everything that the scores depend on."""
    digest = hashlib.sha256()
    for source in (model, objective.reference):
        for name, tensor in source.state_dict().items() if source is not None else ():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    assert objective.before_training is not None
    settings = [
        objective.before_training.name,
        objective.score,
        getattr(objective.before_training, "sigma", None),
        collate.max_length,
        collate.processor.chat_template,
    ]
    for part in (settings, get_versions(), data.fingerprint_images(), *data.entries):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:16]
