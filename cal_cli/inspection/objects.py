"""Do words look at the things that they name? Attention, relevancy and patch words inside the regions of a sample."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import REGIONS, Conversations, get_image_names
from cal_cli.inspection.attention import compute_relevancy, record_attention
from cal_cli.inspection.image_grid import find_image_grids
from cal_cli.inspection.patch_words import find_patch_words
from cal_cli.inspection.tokens import decode_token
from cal_cli.inspection.word_kinds import find_touched
from cal_cli.objective.forward import find_positions

BEST = 5  # words of an image token among which a region's word counts as said


def measure_regions(
    model: PreTrainedModel, processor: Any, data: Conversations, place: int, remove_sinks: bool
) -> list[dict[str, float]]:
    """Measure, for each region of a sample with one picture, how much its words look into it.

    Returns for each region, means over the tokens of its words:

    - `attention`: the share inside the region of the attention to the picture, summed over layers; with
      `remove_sinks` without that to sinks;
    - `relevancy`: the share of the relevancy of the picture inside;
    - `on_picture`: the attention to the picture, of all attention, mean over layers;
    - `area`: the share of the image tokens that are inside, which is that of attention spread evenly;
    - `projected`, `lens`: 1 if the first token of the words is among the `BEST` words of an image token inside, by its
      projected features or by the logit lens of any layer, else 0.

    Raises ValueError if the model is not supported, or its image processor changes the shape of the picture.
    """
    entry, sample = data.entries[place], data[place]
    batch = Collator(processor)([sample]).to(model.device)
    (grid,) = find_image_grids(model, batch)
    width, height = data.open_image(get_image_names(entry)[0]).size
    if width != height and grid.shape[0] == grid.shape[1]:
        raise ValueError("regions need square pictures with this model, whose processor pads or cuts others")
    found = find_region_tokens(model, processor.tokenizer, batch, entry)
    attention = record_attention(model, batch)
    chosen = sorted({token for _, tokens in found for token in tokens})
    relevancy = dict(zip(chosen, compute_relevancy(model, batch, chosen)[:, grid.columns], strict=True))
    seen = attention.select(grid.columns, remove_sinks)
    words = find_patch_words(model, batch, BEST)
    labels = find_positions(model, batch).labels
    measured = []
    for (left, upper, right, lower), tokens in found:
        inside = grid.find_inside((left / width, upper / height, right / width, lower / height))
        said = (words.ids[:, inside.cpu()] == labels[tokens[0]].cpu()).flatten(1).any(dim=1)
        measured.append(
            {
                "attention": compute_share(seen[:, tokens].sum(dim=0), inside),
                "relevancy": compute_share(torch.stack([relevancy[token] for token in tokens]), inside),
                "on_picture": float(seen[:, tokens].sum(dim=-1).mean()),
                "area": float(inside.float().mean()),
                "projected": float(said[0]),
                "lens": float(said[1:].any()),
            }
        )
    return measured


def compute_share(values: Tensor, inside: Tensor) -> float:
    """Compute the mean over tokens of the share of numbers, float [tokens, image tokens], inside a region."""
    return float((values[:, inside].sum(dim=1) / values.sum(dim=1).clamp_min(1e-12)).mean())


def find_region_tokens(
    model: PreTrainedModel, tokenizer: Any, batch: Mapping[str, Any], entry: dict[str, Any]
) -> list[tuple[tuple[float, float, float, float], list[int]]]:
    """Find the box and the supervised tokens, by their numbers, of each region of a sample that has some.

    `batch` has the sample alone.
    """
    positions, ids = find_positions(model, batch), batch["input_ids"][0].tolist()
    places = [number for number, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    answers: list[list[int]] = [[] for _ in places]
    for token, turn in enumerate((positions.turns - positions.turns[0]).tolist()):
        answers[turn].append(token)
    columns = (positions.columns + 1).tolist()
    found = []
    for turn, begin, end, *box in entry[REGIONS]:
        answer = answers[places.index(turn)]
        pieces = [decode_token(tokenizer, ids, columns[token]) for token in answer]
        touched = find_touched(pieces, entry["conversations"][turn]["value"], [[begin, end]])
        tokens = [token for token, inside in zip(answer, touched or [], strict=False) if inside]
        if tokens:
            found.append((tuple(box), tokens))
    return found
