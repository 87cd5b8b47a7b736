"""Figure 6 of the paper: the words of image tokens; and whether words look at the objects that they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.data.collator import Collator
from cal_cli.data.sample import REGIONS, Conversations, get_image_names
from cal_cli.inspection.attention import compute_relevancy, find_image_grids, record_attention
from cal_cli.inspection.tokens import find_touched
from cal_cli.objective.head import find_decoder, find_head
from cal_cli.objective.passes import (
    find_image_columns,
    find_positions,
    run_below_head,
    select_model_inputs,
    unwrap_adapters,
)

NORMS = ("norm", "ln_f", "final_layernorm")  # what decoders of the library call their last norm
WORD_START = ("▁", "Ġ")  # how tokenizers write the space before a word: SentencePiece's, byte-level BPE's
PROJECTED = "projected"  # the name of the features before the first layer


@dataclass
class PatchWords:
    """The best words of each image token of a sample.

    Attributes:
        stages: `projected`, then names of layers.
        ids: int64 [stages, image tokens, words], the best first.
        values: float32 [stages, image tokens, words]: cosines for `projected`, probabilities for layers.
    """

    stages: list[str]
    ids: Tensor
    values: Tensor


@torch.no_grad()
def find_patch_words(model: PreTrainedModel, batch: Mapping[str, Any], words: int = 8, layers: int = 8) -> PatchWords:
    """Find the words of each image token of a batch with a single sample.

    The first stage compares the projected features with the input embeddings of all words by their cosine. The others
    apply the final norm and the head to the hidden states of a layer (the logit lens).

    Args:
        model: an image-text-to-text model.
        batch: of one sample.
        words: number of words of a token.
        layers: at most so many layers, evenly spaced, the last one among them.

    Raises ValueError if the model has no final norm to apply.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020, for the layers.
    """
    model = unwrap_adapters(model)
    decoder = find_decoder(model)
    norm = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise ValueError(f"{type(model).__name__}: no final norm was found in its decoder, which the logit lens needs")
    inputs = select_model_inputs(model, batch)
    outputs, given = run_below_head(model, inputs, output_hidden_states=True)
    columns = find_image_columns(model, batch["input_ids"])[0]
    features = given["inputs_embeds"][0, columns].float()
    embeddings: Any = model.get_input_embeddings().weight
    best = [(F.normalize(features, dim=-1) @ F.normalize(embeddings.float(), dim=-1).T).topk(words)]
    head = find_head(model, inputs, outputs)
    count = len(outputs.hidden_states) - 1
    chosen = sorted({round(count * (number + 1) / min(layers, count)) for number in range(min(layers, count))})
    for layer in chosen:
        hidden = outputs.hidden_states[layer][0, columns]
        hidden = hidden if layer == count else norm(hidden)  # the library's last state is after the norm
        best.append(head.finish(head.module(hidden).float()).softmax(dim=-1).topk(words))
    return PatchWords(
        stages=[PROJECTED, *(f"layer {layer}" for layer in chosen)],
        ids=torch.stack([stage.indices for stage in best]).cpu(),
        values=torch.stack([stage.values for stage in best]).cpu(),
    )


def spell_word(tokenizer: Any, number: int) -> tuple[str, bool]:
    """Return a token as text, and whether it is a word of letters by itself and not a piece of one.

    A token that is no text by itself, such as a part of a character, is written as the vocabulary writes it. A row of
    the embeddings that is no token, such as those that fill up Qwen's, is written as its number.
    """
    token = tokenizer.convert_ids_to_tokens(number)
    if token is None:
        return f"[{number}]", False
    text = tokenizer.convert_tokens_to_string([token]).strip()
    is_word = token.startswith(WORD_START) and len(text) > 1 and text.isalpha()
    return repr(token) if not text or "\ufffd" in text else text, is_word


BEST = 5  # words of an image token among which a region's word counts as said


def measure_regions(
    model: PreTrainedModel, processor: Any, data: Conversations, place: int, remove_sinks: bool
) -> list[dict[str, float]]:
    """Measure, for each region of a sample with one image, how much its words look into it.

    Returns for each region, means over the tokens of its words:

    - `attention`: the share inside the region of the attention to the image, summed over layers; with
      `remove_sinks` without that to sinks;
    - `relevancy`: the fraction of the relevancy of the image inside;
    - `on_picture`: the attention to the image, of all attention, mean over layers;
    - `area`: the fraction of the image tokens that are inside, which is that of attention spread evenly;
    - `projected`, `lens`: 1 if the first token of the words is among the `BEST` words of an image token inside, by its
      projected features or by the logit lens of any layer, else 0.

    Raises ValueError if the model is not supported, or its image processor changes the shape of the image.
    """
    entry, sample = data.entries[place], data[place]
    batch = Collator(processor, keep_text=True)([sample]).to(model.device)
    (grid,) = find_image_grids(model, batch)
    width, height = data.open_image(get_image_names(entry)[0]).size
    if width != height and grid.shape[0] == grid.shape[1]:
        raise ValueError("regions need square images with this model, whose processor pads or cuts others")
    positions = find_positions(model, batch)
    regions = find_region_tokens(batch, entry, (positions.columns + 1).tolist())
    attention = record_attention(model, batch)
    chosen = sorted({token for _, tokens in regions for token in tokens})
    relevancy = dict(zip(chosen, compute_relevancy(model, batch, chosen)[:, grid.columns], strict=True))
    seen = attention.select(grid.columns, remove_sinks)
    words = find_patch_words(model, batch, BEST)
    measured = []
    for (left, upper, right, lower), tokens in regions:
        inside = grid.find_inside((left / width, upper / height, right / width, lower / height))
        said = (words.ids[:, inside.cpu()] == positions.labels[tokens[0]].cpu()).flatten(1).any(dim=1)
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
    """Compute the mean over tokens of the fraction of numbers, float [tokens, image tokens], inside a region."""
    return float((values[:, inside].sum(dim=1) / values.sum(dim=1).clamp_min(1e-12)).mean())


def find_region_tokens(
    batch: Mapping[str, Any], entry: dict[str, Any], columns: Sequence[int]
) -> list[tuple[tuple[float, float, float, float], list[int]]]:
    """Find the box and the supervised tokens, by their numbers, of each region of a sample that has some.

    `batch` has the sample alone, and `columns` are those of its supervised tokens.
    """
    numbers = {column: number for number, column in enumerate(columns)}
    places = [place for place, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    regions = []
    for turn, begin, end, *box in entry[REGIONS]:
        value = entry["conversations"][turn]["value"]
        touched = find_touched(batch, 0, places.index(turn), value, [[begin, end]]) or {}
        tokens = [numbers[column] for column, inside in touched.items() if inside and column in numbers]
        if tokens:
            regions.append((tuple(box), tokens))
    return regions
