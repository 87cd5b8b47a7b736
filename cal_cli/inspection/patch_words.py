"""Figure 6 of the paper: which words image tokens are nearest to, and which the model would say at them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.objective.find_head import find_head
from cal_cli.objective.forward import find_image_columns, select_model_inputs, unwrap_adapters

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
    decoder, given = model.get_decoder(), {}
    norm = next((getattr(decoder, name) for name in NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise ValueError(f"{type(model).__name__}: no final norm was found in its decoder, which the logit lens needs")
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    inputs = select_model_inputs(batch)
    try:
        outputs = model.base_model(**inputs, output_hidden_states=True, use_cache=False)
    finally:
        hook.remove()
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
        ids=torch.stack([one.indices for one in best]).cpu(),
        values=torch.stack([one.values for one in best]).cpu(),
    )


def spell_word(tokenizer: Any, number: int) -> tuple[str, bool]:
    """Return a token as text, and whether it is a word of letters by itself and not a piece of one."""
    token = tokenizer.convert_ids_to_tokens(number)
    text = tokenizer.convert_tokens_to_string([token]).strip()
    return text or repr(token), token.startswith(WORD_START) and len(text) > 1 and text.isalpha()
