"""What may detect a wrong text, and how well: the audit's own numbers, a dual encoder such as CLIP, and the data's."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from transformers import AutoModel

from cal_cli.data.noise import find_rows
from cal_cli.data.sample import Conversations, Entry, load_samples
from cal_cli.data.tables import read_column
from cal_cli.models.hub import load_model
from cal_cli.models.load import load_processor
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import encode_figure, write_parquet
from cal_cli.statistics.bootstrap import compute_auc, estimate_auc_interval

# each column of a number of samples, what it is called, and 1 if high numbers mark wrong texts, -1 if low ones do
DETECTORS = {
    "contradiction": ("contradiction", 1),
    "evidence": ("evidence against the image", -1),
    "loss": ("loss with the image", 1),
    "mean_delta": ("mean difference", -1),
    "clip": ("similarity of image and text", -1),
    "neighbours": ("other texts of similar images", 1),
    "score": ("score of the data", -1),
}
NEIGHBOURS = 10  # nearest images whose texts are compared


def list_detectors(samples: pd.DataFrame) -> dict[str, np.ndarray]:
    """List the numbers of samples that may detect a wrong text, by their column: float [samples], high for wrong.

    A sample without a number has the lowest one.
    """
    by_column = {}
    for column in DETECTORS:
        if column in samples:
            values = DETECTORS[column][1] * samples[column].to_numpy(np.float64)
            by_column[column] = np.where(np.isnan(values), np.nanmin(values, initial=0.0) - 1, values)
    return by_column


def rank_samples(samples: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return samples, the worst first, by a column of `DETECTORS`; ties are in the order of the data."""
    return samples.iloc[np.argsort(-list_detectors(samples)[by], kind="stable")]


def read_scores(data: Conversations, column: str) -> np.ndarray:
    """Read a column of numbers, such as a judge's ratings, float64 [samples of the data]; nan where there is none.

    Low numbers mark bad texts; with `-` before the name of the column, high ones do.

    Raises InputError if no sample has such a number, or one has something else.
    """
    name = column.removeprefix("-")
    rows = find_rows(data)
    if rows is not None and name in rows.source.column_names:
        values = read_column(rows.source, name).take(pa.array(rows.kept)).to_pylist()
    else:
        values = [entry.get(name) for entry in data.entries] if rows is None else [None] * len(data)
    wrong = next((value for value in values if value is not None and type(value) not in (int, float)), None)
    if wrong is not None or all(value is None for value in values):
        problem = "no sample has it" if wrong is None else f"holds {wrong!r:.80}, not a number"
        raise InputError(f"score_column={column}: {problem}: give a column of numbers, one for each sample")
    numbers = np.array(values, dtype=np.float64)
    return -numbers if column.startswith("-") else numbers


class Embedder:
    """Compares images with texts by a dual encoder of `transformers`, such as CLIP or SigLIP.

    Args:
        name: a hub id or a folder.
        device: of the model.
        batch_size, workers: as in `Auditor`.

    Raises InputError if it cannot be loaded, or is no dual encoder.
    """

    def __init__(self, name: str, device: torch.device, batch_size: int, workers: int) -> None:
        self.model: Any = load_model(AutoModel, name, "clip", torch.float32).to(device).eval()
        if not hasattr(self.model, "get_text_features"):
            raise InputError(f"clip={name}: a {type(self.model).__name__} compares no images with texts: give a CLIP")
        self.processor = load_processor(name, "clip")
        self.batch_size, self.workers = batch_size, workers

    @torch.no_grad()
    def write_part(self, data: Conversations, places: Sequence[int], path: Path) -> None:
        """Write a table with a row for each good sample: `index`, `clip`, and the embeddings `image` and `text`.

        `clip` is the cosine of both embeddings, which have length 1. Of several images it is the mean of theirs.
        """
        collate = partial(collate_pairs, self.processor)
        rows: list[tuple[int, float, np.ndarray, np.ndarray]] = []
        for kept, owner, images, texts in load_samples(data, places, self.batch_size, self.workers, collate):
            if not kept:
                continue
            seen = self._embed(self.model.get_image_features, images)
            owner = owner.to(seen.device)
            image = F.normalize(seen.new_zeros(len(kept), seen.shape[1]).index_add(0, owner, seen), dim=1)
            text = self._embed(self.model.get_text_features, texts)
            cosine = (image * text).sum(dim=1)
            rows += zip(kept, cosine.tolist(), image.half().cpu().numpy(), text.half().cpu().numpy(), strict=True)
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        vector = pa.list_(pa.float16())
        types = (pa.int64(), pa.float64(), vector, vector)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        write_parquet(path, pa.table(dict(zip(("index", "clip", "image", "text"), arrays, strict=True))))

    def _embed(self, encode: Any, inputs: Any) -> torch.Tensor:
        out = encode(**inputs.to(self.model.device))
        return F.normalize(getattr(out, "pooler_output", out).float(), dim=1)


def collate_pairs(processor: Any, samples: list[dict]) -> tuple[list[int], torch.Tensor, Any, Any]:
    """Return the places of good samples, of which of them each image is, and the inputs of images and of texts."""
    good = [sample for sample in samples if "bad" not in sample]
    images = [sample["image"] if isinstance(sample["image"], list) else [sample["image"]] for sample in good]
    owner = torch.tensor([number for number, several in enumerate(images) for _ in several])
    if not good:
        return [], owner, None, None
    pixels = processor.image_processor([image for several in images for image in several], return_tensors="pt")
    # padded to the whole length, with which SigLIP was trained
    length = min(processor.tokenizer.model_max_length, 512)
    texts = processor.tokenizer(
        [join_answers(sample) for sample in good],
        padding="max_length",
        truncation=True,
        max_length=length,
        return_tensors="pt",
    )
    texts.pop("token_type_ids", None)
    return [sample["place"] for sample in good], owner, pixels, texts


def join_answers(entry: Entry) -> str:
    """Return the answers of a sample as one text."""
    return " ".join(turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt")


def compare_neighbours(image: torch.Tensor, text: torch.Tensor, block: int = 1024) -> np.ndarray:
    """Compute how far each text is from the texts of the images nearest to its own, float64 [samples].

    It is 1 minus the mean cosine with the texts of the `NEIGHBOURS` nearest other images: LEMoN's term of the
    neighbours in the image space (Zhang et al., 2407.18941, section 3), each with the same weight.

    Args:
        image, text: embeddings of length 1, float [samples, width].
        block: samples that are compared with all others at a time.
    """
    far = []
    for start in range(0, len(image), block):
        cosine = image[start : start + block] @ image.T
        own = torch.arange(len(cosine))
        cosine[own, start + own] = -torch.inf
        nearest = cosine.topk(min(NEIGHBOURS, max(len(image) - 1, 1)), dim=1).indices
        far.append(1 - (text[nearest] * text[start : start + block, None]).sum(dim=2).mean(dim=1))
    return torch.cat(far).double().numpy() if far else np.zeros(0)


def add_similarity(samples: pd.DataFrame, parts: Sequence[pa.Table]) -> pd.DataFrame:
    """Return samples with the columns `clip` and `neighbours`, from the tables of `Embedder.write_part`."""
    table = pa.concat_tables(parts)
    image, text = (torch.from_numpy(np.stack(table[name].to_numpy())).float() for name in ("image", "text"))
    similarity = pd.DataFrame({"index": table["index"].to_numpy(), "clip": table["clip"].to_numpy()})
    return samples.merge(similarity.assign(neighbours=compare_neighbours(image, text)), how="left", on="index")


def trace_detector(evidence: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positive rate, recall and precision at each threshold from the highest, float64 [thresholds]."""
    order = np.argsort(-evidence, kind="stable")
    last = np.append(np.diff(evidence[order]) != 0, True)  # of equal values
    detected, true = np.arange(1, len(order) + 1)[last], positive[order].cumsum()[last]
    return (detected - true) / (~positive).sum(), true / positive.sum(), true / detected


def describe_detector(evidence: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Describe how well evidence detects positive samples: `auc`, its `ci95` over samples, and `average_precision`.

    The last is the precision at each threshold, weighted by the recall gained there.
    """
    interval = estimate_auc_interval(evidence, positive, np.arange(len(evidence)))
    _, recall, precision = trace_detector(evidence, positive)
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return {"auc": compute_auc(evidence, positive), "ci95": interval, "average_precision": average}


def draw_detectors(evidence: Mapping[str, np.ndarray], positive: np.ndarray) -> bytes:
    """Draw the ROC and precision-recall curves of several detectors as a PNG; see `compute_auc` for the arguments."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    roc, precision_recall = figure.subplots(1, 2)
    for name, values in evidence.items():
        false, recall, precision = trace_detector(values, positive)
        roc.plot([0, *false], [0, *recall], label=name)
        precision_recall.plot(recall, precision)
    roc.set(xlabel="false positive rate", ylabel="recall")
    precision_recall.set(xlabel="recall", ylabel="precision", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", ncols=len(evidence), fontsize=8)
    return encode_figure(figure)
