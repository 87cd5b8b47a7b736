"""CAL as the paper's released code computes it: the slow reference for `cal bench` and the tests.

Written anew after github.com/foundation-multimodal-models/CAL. Both passes run over every position, those of the image
included; both project every position onto the whole vocabulary, in float32; the second masks the image in attention.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective import IGNORED


def compute_released_loss(model: Any, batch: Mapping[str, Any], alpha: float = 1.0, beta: float = 5.0) -> Tensor:
    """Compute the loss of a model like LLaVA (image features among the text's embeddings), a differentiable scalar.

    Raises ValueError if the model passes its decoder more than embeddings, mask and positions.
    """
    given: dict[str, Any] = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with_image = model(**inputs, use_cache=False).logits.float()
    hook.remove()
    known = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position"}
    beside = sorted(name for name in given.keys() - known if given[name] is not None)
    positions = given.get("position_ids")
    own_positions = positions is not None and positions.dim() != 2
    if beside or own_positions or not torch.is_tensor(given["attention_mask"]) or given["attention_mask"].dim() != 2:
        raise ValueError(
            f"{type(model).__name__} is not like LLaVA, for which the released code was written: leave cal_released "
            "out of the ways"
        )
    with torch.no_grad():
        text = batch["attention_mask"] * (batch["input_ids"] != model.config.image_token_id)
        hidden = decoder(
            inputs_embeds=given["inputs_embeds"],
            attention_mask=text,
            position_ids=torch.arange(text.shape[1], device=text.device)[None],
            use_cache=False,
        ).last_hidden_state
        without_image = model.lm_head(hidden).float()

    labels = batch["labels"][:, 1:].flatten()
    supervised = labels != IGNORED
    logits, others = (part[:, :-1].flatten(0, 1) for part in (with_image, without_image))
    with torch.no_grad():
        target = labels.clamp_min(0)[:, None]
        delta = (logits.gather(1, target) - others.gather(1, target))[:, 0]
        # over the whole flattened batch, supervised or not
        weights = F.avg_pool1d(delta.clamp(alpha, beta)[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        weights = weights * supervised
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return (cross_entropy * weights).sum() / (weights.sum() + 1e-6)
