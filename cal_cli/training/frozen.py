"""What an objective reads besides the model in training: a frozen reference model, and scores computed beforehand."""

import copy
import dataclasses
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from cal_cli.data.collator import Collator
from cal_cli.data.conversations import Conversations
from cal_cli.errors import InputError
from cal_cli.files import write_whole
from cal_cli.models.load import place
from cal_cli.objective import PriorLoss, WeightedLoss, scores_without_image

CACHE = Path("runs/scores_without_image")


def with_reference(objective: WeightedLoss, model: Any, processor: Any) -> WeightedLoss:
    """Give an objective the frozen model that its `reference` names, where it needs one.

    A folder is loaded as a language model, or as a vision-language model that is shown no image; None means a copy
    of the model as it is before training, reading the text alone.

    Raises:
        InputError: no model there, or one of another tokenizer.
    """
    options: Any = objective
    from_text = isinstance(objective, PriorLoss) or options.contrast == "reference" or options.reference is not None
    if not from_text:
        return objective
    if options.contrast not in ("reference", "cached"):
        raise InputError(f"objective.reference needs objective.contrast=reference or cached, not {options.contrast}")
    reference = copy.deepcopy(model) if options.reference is None else load_reference(options.reference, processor)
    return dataclasses.replace(options, reference=place(reference).requires_grad_(False).eval())


def load_reference(path: str, processor: Any) -> Any:
    """A frozen model from a folder, in float32.

    Raises:
        InputError: no model there, or one of another tokenizer.
    """
    if not (Path(path) / "config.json").is_file():
        raise InputError(f"objective.reference={path}: no config.json there; give a folder written by save_pretrained")
    sees = type(AutoConfig.from_pretrained(path)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    words = processor.tokenizer.get_vocab()
    other = AutoTokenizer.from_pretrained(path).get_vocab()
    if any(words.get(word, index) != index for word, index in other.items()) or not other:
        raise InputError(f"objective.reference={path}: its tokenizer differs from the model's; they must share one")
    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return loader.from_pretrained(path, dtype=torch.float32)


class WithScores(Dataset):
    """Samples with `scores_without_image`, a list with one number for each of their supervised tokens."""

    def __init__(self, data: Conversations, scores: list[list[float]]) -> None:
        self.data, self.scores = data, scores

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        return self.data[index] | {"scores_without_image": self.scores[index]}


def with_cached_scores(
    objective: WeightedLoss, model: Any, collate: Collator, data: Conversations, batch_size: int, console: Console
) -> Dataset:
    """Compute each sample's scores without its image once, or read them back, where the objective is cached.

    They lie in `runs/scores_without_image`, under a name made of what they depend on: the weights, the samples, the
    score. So the runs of a sweep that differ in seed or learning rate share them.

    Args:
        objective: the loss, its `reference` loaded.
        model: the model before training.
        collate: makes batches of samples.
        data: the samples.
        batch_size: samples a forward.
        console: told what is done.
    """
    options: Any = objective
    if options.contrast != "cached":
        return data
    path = CACHE / f"{_fingerprint(options, model, collate, data)}.parquet"
    if path.is_file():
        console.print(f"scores without images: read from {path}")
    else:
        console.print(f"scores without images: computing {len(data)} samples once, to {path}")
        training, _ = model.training, place(model).eval()
        loader = DataLoader(data, batch_size, collate_fn=dataclasses.replace(collate, keep_ids=False, leave_out=False))
        rows = []
        for batch in track(loader, "scores without images", console=console, disable=not console.is_terminal):
            scores = scores_without_image(objective, model, batch.to(model.device))
            rows += [row[~row.isnan()].tolist() for row in scores]
        model.train(training)
        buffer = io.BytesIO()
        pq.write_table(pa.table({"scores": pa.array(rows, pa.list_(pa.float32()))}), buffer)
        write_whole(path, buffer.getvalue())
    return WithScores(data, pq.read_table(path)["scores"].to_pylist())


def _fingerprint(options: Any, model: Any, collate: Collator, data: Conversations) -> str:
    """The first 16 hexadecimal digits of a checksum over all that the scores depend on."""
    digest = hashlib.sha256()
    for source in (model, options.reference):
        for name, tensor in source.state_dict().items() if source is not None else ():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    told = [type(options).__name__, options.score, collate.max_length, collate.processor.chat_template]
    for part in (told, *data.entries):
        digest.update(json.dumps(part).encode())
    return digest.hexdigest()[:16]
