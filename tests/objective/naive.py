"""The paper's method written out: two full-length passes, the second with the image masked out of attention, logits
over the whole vocabulary at every position."""

import torch
import torch.nn.functional as F


def naive_logits(model, batch):
    """Logits [batch, length, vocabulary] with the image, and with its columns masked out of attention."""
    merged = []
    language_model = model.model.language_model
    hook = language_model.register_forward_pre_hook(
        lambda _, __, kw: merged.append(kw["inputs_embeds"]), with_kwargs=True
    )
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with_image = model(**inputs).logits
    hook.remove()
    mask = batch["attention_mask"] * (batch["input_ids"] != model.config.image_token_id)
    positions = torch.arange(mask.shape[1])[None].expand(mask.shape)
    with torch.no_grad():
        hidden = language_model(inputs_embeds=merged[0], attention_mask=mask, position_ids=positions).last_hidden_state
        without_image = model.lm_head(hidden)
    return with_image.float(), without_image.float()


def naive_delta(with_image, without_image, labels, score):
    """Delta [batch, length - 1] of each next token; label 0 where unsupervised."""
    if score == "logprob":
        with_image, without_image = with_image.log_softmax(-1), without_image.log_softmax(-1)
    target = labels[:, 1:].clamp_min(0)[..., None]
    return (with_image[:, :-1].gather(2, target) - without_image[:, :-1].gather(2, target))[..., 0].detach()


def naive_loss(model, batch, score, alpha, beta, window, normalization, pooling):
    """The loss, written with Python loops over samples and tokens."""
    with_image, without_image = naive_logits(model, batch)
    labels = batch["labels"]
    supervised = labels[:, 1:] != -100
    delta = naive_delta(with_image, without_image, labels, score)
    has_image = (batch["input_ids"] == model.config.image_token_id).any(1)
    delta[~has_image] = 0
    weights = delta.clamp(alpha, beta)
    weights[~has_image] = 1
    reach = window // 2
    pooled = torch.zeros_like(weights)
    flat = weights.flatten().tolist()
    for row in range(len(labels)):
        columns = supervised[row].nonzero()[:, 0].tolist()
        answer = weights[row, columns].tolist()
        for number, column in enumerate(columns):
            values, place = (answer, number) if pooling == "answer" else (flat, row * weights.shape[1] + column)
            near = values[max(place - reach, 0) : place + reach + 1]
            pooled[row, column] = sum(near) / len(near)
    cross_entropy = F.cross_entropy(
        with_image[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    ).view(supervised.shape)
    if normalization == "batch":
        return (cross_entropy * pooled)[supervised].sum() / (pooled[supervised].sum() + 1e-6), delta, pooled
    per_sample = [
        (cross_entropy[row] * pooled[row])[supervised[row]].sum() / (pooled[row][supervised[row]].sum() + 1e-6)
        for row in range(len(labels))
    ]
    return torch.stack(per_sample).mean(), delta, pooled
