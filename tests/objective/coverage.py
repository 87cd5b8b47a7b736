"""Hold every image-text-to-text type of `transformers` to a reference that knows nothing of this package.

`python -m tests.objective.coverage` measures all types and writes the table of docs/your_model.md.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as LIBRARY

from cal_cli.objective import contrast_logits
from cal_cli.objective.loss import RuleLoss
from cal_cli.objective.rules import EqualWeights
from tests.objective.families import END as END_TOKEN
from tests.objective.families import NOT_APPLICABLE, OVERRIDES, make
from tests.objective.reference import compute_hidden_logits, compute_text_logits

DOCUMENT = Path(__file__).parents[2] / "docs" / "your_model.md"
BEGIN, END = "<!-- begin: python -m tests.objective.coverage -->", "<!-- end -->"
TOLERANCE = 2e-5  # between logits of up to 10 in float32
VARIANTS = [("right", False), ("left", False), ("right", True)]  # padding, and whether a row has no image


@dataclass
class Coverage:
    """What was found for a type."""

    verdict: str  # supported, refused, does not apply, wrong or unknown
    detail: str  # the references that agree, or the reason
    difference: float | None = None  # the largest, between scores without the image, in all variants
    cross_entropy: float | None = None  # difference from the library's own loss


def pick_labels(logits: Tensor, batch: dict[str, Any]) -> Tensor:
    """The logit of each supervised token, [supervised]."""
    labels = batch["labels"][:, 1:]
    picked = logits[:, :-1].float().gather(2, labels.clamp_min(0)[..., None])[..., 0]
    return picked[labels != -100]


def compare(model: Any, batch: dict[str, Any]) -> dict[str, float]:
    """Differences of the scores with and without the image from those of the library, by reference."""
    contrast = contrast_logits(model, batch)
    shown = contrast.has_image
    assert (contrast.delta[shown].abs().max() > 0.01) and not contrast.delta[~shown].any()
    with_image, hidden = compute_hidden_logits(model, batch)
    found = {
        "with the image": (contrast.with_image - pick_labels(with_image, batch)).abs().max(),
        "hidden columns": (contrast.without_image - pick_labels(hidden, batch)).abs().max(),
    }
    if "blip" not in model.config.model_type:  # these cannot run without an image
        text = pick_labels(compute_text_logits(model, batch), batch)
        found["text alone"] = (contrast.without_image - text)[shown].abs().max()
    return {name: value.item() for name, value in found.items()}


def change_pixels(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch with other images."""
    return {key: value * -0.7 if "pixel_values" in key else value for key, value in batch.items()}


def compare_behind_image(model: Any, batch: dict[str, Any]) -> float | None:
    """The same for hidden columns if the token right behind an image is supervised too; None if that is refused."""
    labels = batch["labels"].clone()
    labels[batch["input_ids"] == END_TOKEN] = END_TOKEN
    batch = {**batch, "labels": labels}
    try:
        contrast = contrast_logits(model, batch)
    except ValueError as error:
        assert "directly follows its image" in str(error)
        return None
    hidden = compute_hidden_logits(model, batch)[1]
    return (contrast.without_image - pick_labels(hidden, batch)).abs().max().item()


def measure(name: str) -> Coverage:
    """Measure a type, in all variants."""
    if name in NOT_APPLICABLE:
        return Coverage("does not apply", NOT_APPLICABLE[name])
    try:
        model, batch = make(name)
    except Exception as error:  # a type that the library added
        return Coverage("unknown", f"no small model of it could be made: {type(error).__name__}")
    with torch.no_grad():
        own = model(**batch, use_cache=False).loss
        cross_entropy = (RuleLoss(EqualWeights())(model, batch).loss - own).abs().item()
    try:
        contrast_logits(model, batch)
    except ValueError as error:
        return Coverage("refused", str(error).split(": objectives that contrast")[0], None, cross_entropy)
    worst: dict[str, float] = {}
    for padding, text_row in VARIANTS:
        model, batch = make(name, padding=padding, text_row=text_row)
        for reference, value in compare(model, batch).items():
            worst[reference] = max(worst.get(reference, 0.0), value)
    before, after = contrast_logits(model, batch), contrast_logits(model, change_pixels(batch))
    moved = (after.without_image - before.without_image)[before.has_image].abs().max().item()
    assert (after.with_image - before.with_image).abs().max() > 1e-3
    agree = [reference for reference in ("hidden columns", "text alone") if worst.get(reference, 1.0) < TOLERANCE]
    # Mllama's image is in no column; where hidden columns are no reference, the image's column must be refused
    behind = None if name == "mllama" else compare_behind_image(model, batch)
    behind = 0.0 if behind is None else behind
    exact = max(worst["with the image"], moved, behind, cross_entropy) < TOLERANCE
    if name not in OVERRIDES and len(agree) == 0:
        return Coverage("unknown", "no reference agrees", min(worst.values()), cross_entropy)
    difference = max([worst["with the image"], moved, behind, *(worst[reference] for reference in agree)])
    return Coverage("supported" if agree and exact else "wrong", " and ".join(agree), difference, cross_entropy)


def write_table(found: dict[str, Coverage]) -> str:
    """The table of docs/your_model.md, in Markdown."""
    counts = {verdict: sum(one.verdict == verdict for one in found.values()) for verdict in ("supported", "refused")}
    apply = sum(one.verdict != "does not apply" for one in found.values())
    lines = [
        f"Measured with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]} on a CPU "
        f"in float32: {counts['supported']} of {apply} types are supported, {counts['refused']} are refused, and "
        f"{len(found) - apply} do not apply.",
        "",
        "| type | verdict | reference that agrees, or reason | largest difference | plain cross-entropy |",
        "|---|---|---|---|---|",
    ]
    for name, one in sorted(found.items()):
        numbers = ("" if value is None else f"{value:.0e}" for value in (one.difference, one.cross_entropy))
        lines.append(f"| {' | '.join((name, one.verdict, one.detail, *numbers))} |")
    return "\n".join(lines)


def read_table() -> dict[str, tuple[str, str]]:
    """The verdict and the detail of each type in docs/your_model.md."""
    return {cells[0]: (cells[1], cells[2]) for cells in _split_rows(DOCUMENT.read_text())}


def _split_rows(text: str) -> Iterator[list[str]]:
    table = text.split(BEGIN)[1].split(END)[0]
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in LIBRARY:
            yield cells


def main() -> None:
    warnings.filterwarnings("ignore")
    table = write_table({name: measure(name) for name in LIBRARY})
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    print(table)


if __name__ == "__main__":
    main()
