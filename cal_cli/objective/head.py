"""The language head, applied only to supervised positions, in chunks.

A sample of LLaVA-1.5 has 776 positions, of which some 120 are supervised, and the vocabulary has 32,000 words: the loss
of `transformers` holds a logit for each pair. Here the head is applied to supervised positions only, one chunk at a
time, and the raw logit of a label is a dot product with the label's row of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class UnknownHead(ValueError):
    """A model's logits are not those of a language head on its decoder's states, scaled and capped."""


LOGITS_HELD = {"cpu": 2**22, "cuda": 2**26}  # logits in memory at a time: 16 and 256 MiB of float32
Weigh = Callable[[slice, Tensor], Tensor]


@dataclass(frozen=True)
class LanguageHead:
    """The layer from hidden states to logits, and the scale and soft cap that the model applies afterwards.

    logits = softcap * tanh(scale * module(hidden) / softcap); without the soft cap, scale * module(hidden).
    """

    module: Any  # an nn.Linear, or its adapted or quantised form
    scale: float = 1.0  # Cohere multiplies its logits by a scale, Granite divides by one
    softcap: float | None = None  # Gemma 2 and 3n
    banned: Tensor | None = None  # int64 [tokens] that are never predicted, such as Chameleon's image tokens

    @property
    def is_linear(self) -> bool:
        """Whether the logits are a plain product with `module.weight`; false for LoRA and quantised heads."""
        return isinstance(self.module, nn.Linear) and self.module.weight.is_floating_point()

    def finish(self, logits: Tensor) -> Tensor:
        """Scale and cap float32 logits."""
        if self.scale != 1:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits if self.banned is None else logits.index_fill(-1, self.banned, -torch.inf)

    def compute_logit_gradients(self, logits: Tensor, log_sum: Tensor, labels: Tensor, coefficients: Tensor) -> Tensor:
        """Compute the gradient of the weighted cross-entropy by the bare logits, in place of `logits`.

        `log_sum` is the logarithm of the sum of their exponentials, float32 [positions, 1].
        """
        slope = coefficients[:, None] * self.scale
        if self.softcap is not None:
            slope = slope * (1 - (logits / self.softcap) ** 2).clamp_min(0)  # -inf for banned tokens
        gradients = logits.sub_(log_sum).exp_()  # in place: reusing memory is faster
        return gradients.scatter_add_(1, labels[:, None], torch.full_like(log_sum, -1.0)).mul_(slope)

    def label_logits(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Compute the raw logit of each label, float32 [positions], without gradient.

        The product is in float32: in bf16 the difference of two large logits would lose most of its digits.

        Args:
            hidden: [positions, hidden], the last hidden states.
            labels: int64 [positions].
        """

        def dot_product(plain_forward: Callable, hidden: Tensor, labels: Tensor) -> Tensor:
            logits = (hidden.float() * self.module.weight[labels].float()).sum(dim=-1)
            return logits if self.module.bias is None else logits + self.module.bias[labels].float()

        with torch.no_grad():
            if self.is_linear:
                logits = call_within(self.module, dot_product, hidden, labels)
                return replace(self, banned=None).finish(logits)
            return self._in_chunks(hidden, labels, lambda logits, label: logits.gather(1, label[:, None])[:, 0])

    def entropies(self, hidden: Tensor) -> Tensor:
        """Compute the entropy of each prediction in nats, float32 [positions], without gradient."""

        def read(logits: Tensor, unused: Tensor) -> Tensor:
            logprobs = logits.log_softmax(dim=1)
            return -(logprobs.exp() * logprobs).nan_to_num().sum(dim=1)  # nan: a word of probability 0

        with torch.no_grad():
            return self._in_chunks(hidden, torch.zeros(len(hidden), device=hidden.device), read)

    def divergences(self, hidden: Tensor, others: Tensor) -> Tensor:
        """Compute the Kullback-Leibler divergence of each prediction from another, in nats, without gradient.

        Args:
            hidden: [positions, hidden], the last hidden states of the predictions.
            others: [positions, hidden], those of the predictions that they are compared with.

        Returns float32 [positions].
        """

        def read(logits: Tensor, unused: Tensor) -> Tensor:  # [positions, 2, vocabulary]
            logprobs, other = logits.log_softmax(dim=-1).unbind(dim=1)
            return (logprobs.exp() * (logprobs - other)).nan_to_num().sum(dim=1)  # nan: a word of probability 0

        with torch.no_grad():
            return self._in_chunks(torch.stack([hidden, others], dim=1), torch.zeros_like(hidden[:, 0]), read)

    def label_logprobs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Compute the log-probability of each label, float32 [positions], without gradient; see `label_logits`."""
        with torch.no_grad():
            return self._in_chunks(hidden, labels, read_logprobs)

    def weighted_cross_entropy(
        self, hidden: Tensor, labels: Tensor, coefficients: Tensor | Weigh, groups: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Compute the sum over positions of coefficient x cross-entropy.

        The gradient of each chunk is computed in the forward pass, while its logits exist, so that logits are neither
        kept nor computed twice; a second derivative is not supported.

        Args:
            hidden: [positions, hidden], with gradient where enabled.
            labels: int64 [positions].
            coefficients: float32 [positions], constants; or a function that computes those of a slice of the positions
                from the slice and the log-probabilities of its labels, float32.
            groups: the lengths of the groups of positions, in their order, that such a function needs together. A
                group of more positions than logits are held for has its logits computed twice.

        Returns the sum, a float32 scalar with gradient, and each position's cross-entropy, float32 without gradient.
        """

        def linear(plain_forward: Callable, hidden: Tensor, labels: Tensor) -> Any:
            weight, bias = self.module.weight, self.module.bias
            if not torch.is_grad_enabled():  # autograd functions do not see this
                hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
            size = get_chunk_size(hidden, len(weight))
            weigh, parts = coefficients, pack_groups(groups, size)
            if isinstance(coefficients, Tensor):
                weigh, parts = lambda part, logprobs: coefficients[part], split_range(slice(0, len(labels)), size)
            return _WeightedCrossEntropy.apply(
                hidden, weight, bias, labels, weigh, list(parts), size, replace(self, module=None)
            )

        def any_head(plain_forward: Callable, hidden: Tensor, labels: Tensor) -> Any:
            given = coefficients
            if not isinstance(given, Tensor):
                with torch.no_grad():
                    logprobs = self._read_chunks(plain_forward, hidden, labels, read_logprobs)
                    given = given(slice(0, len(labels)), logprobs)

            def chunk(*tensors: Tensor) -> tuple[Tensor, Tensor]:
                hidden, labels, coefficients = tensors
                logits = self.finish(plain_forward(hidden).float())
                cross_entropy = F.cross_entropy(logits, labels, reduction="none")
                return (coefficients * cross_entropy).sum(), cross_entropy.detach()

            size = get_chunk_size(hidden, self.vocabulary)
            parts = zip(hidden.split(size), labels.split(size), given.split(size), strict=True)
            sums, cross_entropies = zip(*(checkpoint(chunk, *part, use_reentrant=False) for part in parts), strict=True)
            return torch.stack(sums).sum(), torch.cat(cross_entropies)

        # the coefficients are no argument of the module's call, in which FSDP may round tensors
        return call_within(self.module, linear if self.is_linear else any_head, hidden, labels)

    @property
    def vocabulary(self) -> int:
        """Number of logits of a position."""
        return int(self.module.out_features)  # type: ignore[arg-type]

    def _in_chunks(self, hidden: Tensor, labels: Tensor, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return call_within(self.module, partial(self._read_chunks, read=read), hidden, labels)

    def _read_chunks(self, plain_forward: Callable, hidden: Tensor, labels: Tensor, read: Callable) -> Tensor:
        size = get_chunk_size(hidden, self.vocabulary)
        parts = zip(hidden.split(size), labels.split(size), strict=True)
        return torch.cat([read(self.finish(plain_forward(part).float()), label) for part, label in parts])


def read_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the log-probabilities of labels, float32 [positions], from logits, float32 [positions, vocabulary]."""
    return -F.cross_entropy(logits, labels, reduction="none")


class _WeightedCrossEntropy(torch.autograd.Function):
    """sum(coefficients * cross_entropy(finish(hidden @ weight.T + bias), labels)) for a linear head, in chunks.

    The coefficients are those of `weigh`, see `LanguageHead.weighted_cross_entropy`; `groups` are slices of the
    positions, whose coefficients it computes together; `size` is the largest number of positions of a chunk.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        weigh: Weigh,
        groups: list[slice],
        size: int,
        head: LanguageHead,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        states, matrix = hidden.to(dtype), weight.to(dtype)
        offset = None if bias is None else bias.to(dtype)
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.empty_like(hidden) if for_hidden else None
        weight_grad, bias_grad = None, None  # in float32: sums over chunks would lose digits in bf16
        cross_entropy = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        coefficients = torch.empty_like(cross_entropy)

        def read(rows: slice) -> tuple[Tensor, Tensor]:
            logits = head.finish(F.linear(states[rows], matrix, offset).float())
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            cross_entropy[rows] = (log_sum - logits.gather(1, labels[rows, None]))[:, 0]
            return logits, log_sum

        for group in groups:
            chunks = list(split_range(group, size))
            for rows in chunks:
                logits, log_sum = read(rows)
            coefficients[group] = weigh(group, -cross_entropy[group])
            if not (for_hidden or for_weight or for_bias):
                continue
            for rows in chunks:
                if len(chunks) > 1:
                    logits, log_sum = read(rows)
                grad = head.compute_logit_gradients(logits, log_sum, labels[rows], coefficients[rows])
                if for_bias:
                    bias_grad = grad.sum(dim=0) if bias_grad is None else bias_grad.add_(grad.sum(dim=0))
                grad = grad.to(dtype)
                if hidden_grad is not None:
                    hidden_grad[rows] = (grad @ matrix).to(hidden.dtype)
                if for_weight and weight_grad is None:
                    weight_grad = (grad.T @ states[rows]).float()
                elif weight_grad is not None and dtype == torch.float32:
                    weight_grad.addmm_(grad.T, states[rows])
                elif weight_grad is not None:
                    weight_grad += grad.T @ states[rows]
        dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.gradients = [
            None if grad is None else grad.to(dtype)
            for grad, dtype in zip((hidden_grad, weight_grad, bias_grad), dtypes, strict=True)
        ]
        ctx.mark_non_differentiable(cross_entropy)
        return (coefficients * cross_entropy).sum(), cross_entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError(
                "backward was called twice on this loss, which computes its gradients once and releases them"
            )
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if grad is None else grad.mul_(upstream) for grad in gradients), *[None] * 5


def get_chunk_size(hidden: Tensor, vocabulary: int) -> int:
    """Return the number of positions whose logits are held at a time."""
    return max(LOGITS_HELD.get(hidden.device.type, LOGITS_HELD["cuda"]) // vocabulary, 1)


def split_range(whole: slice, size: int) -> Iterator[slice]:
    """Cut a slice into slices of at most `size`."""
    return (slice(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size))


def pack_groups(lengths: Sequence[int], size: int) -> Iterator[slice]:
    """Pack groups of consecutive positions into slices of at most `size`; a longer group has a slice of its own."""
    start = stop = 0
    for length in lengths:
        if stop > start and stop + length - start > size:
            yield slice(start, stop)
            start = stop
        stop += length
    if stop > start:
        yield slice(start, stop)


def call_within(module: nn.Module, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Call `function(plain_forward, *tensors)` as the module's forward.

    FSDP and ZeRO-3 gather sharded weights around a module's call. This way they are gathered once, however often
    `function` uses them.
    """
    plain_forward = module.forward
    own = module.__dict__.get("forward")
    module.forward = lambda *tensors: function(plain_forward, *tensors)  # type: ignore[method-assign]
    try:
        return module(*tensors)
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


PROBE = 40.0  # largest logit when a head is verified: far outside the linear range of a soft cap of 30

_FINISHES: WeakKeyDictionary[nn.Module, tuple[float, float | None, Tensor | None] | str] = WeakKeyDictionary()


def find_decoder(model: PreTrainedModel) -> Any:
    """Return the layers below a model's language head, without the head; None if there are none.

    Some models, such as Llama 4, hold a whole causal language model.
    """
    decoder = model.get_decoder()
    if decoder is None or decoder.get_output_embeddings() is None:
        return None if decoder is model else decoder
    stack = getattr(decoder, "model", None)
    return None if stack is None else stack.get_decoder()


def get_head_module(model: PreTrainedModel) -> Any:
    """Return the layer from a model's states to its logits; None if there is none."""
    module = model.get_output_embeddings()
    return module if module is not None or model.get_decoder() is None else model.get_decoder().get_output_embeddings()


def check_head(model: PreTrainedModel) -> None:
    """Raise UnknownHead if a model has no language head, or one that was found not to make its logits."""
    if get_head_module(model) is None:
        raise UnknownHead(f"{type(model).__name__} has no language head: give an image-text-to-text model with one")
    problem = _FINISHES.get(model)
    if isinstance(problem, str):
        raise UnknownHead(problem)


def find_head(model: PreTrainedModel, inputs: Mapping[str, Any], outputs: Any) -> LanguageHead:
    """Find a model's head with its scale and soft cap, and verify it once against the model's own logits.

    Raises UnknownHead if the model's logits are not those of its head, scaled and capped.
    """
    module = get_head_module(model)
    if model not in _FINISHES:
        with torch.no_grad():
            own, bare = _compute_logits(model, module, inputs, outputs)
        own = F.pad(own, (0, bare.shape[-1] - own.shape[-1]), value=-torch.inf)  # rows of the head that are cut off
        never = (own <= torch.finfo(own.dtype).min / 2).all(dim=0) & torch.isfinite(bare).all(dim=0)
        banned = never.nonzero()[:, 0] if never.any() else None
        finite = torch.isfinite(own) & torch.isfinite(bare) & ~never
        for scale, softcap in _read_scales(model.config.get_text_config()):
            expected = LanguageHead(module, scale, softcap).finish(bare)
            if not finite.any():  # broken weights or pixels: the loss will report it
                return LanguageHead(module, scale, softcap)
            if torch.allclose(own[finite], expected[finite], atol=2e-2 * PROBE * min(scale, 1.0), rtol=1e-4):
                _FINISHES[model] = scale, softcap, banned
                break
        else:
            _FINISHES[model] = (
                f"{type(model).__name__} changes its logits after the language head in a way that is not supported"
            )
            check_head(model)
    return LanguageHead(module, *_FINISHES[model])


def make_logits_head(logits: Tensor) -> LanguageHead:
    """Make the head of a model whose logits take the place of its states."""
    module: Any = nn.Identity()
    module.out_features = logits.shape[-1]
    return LanguageHead(module)


def _read_scales(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yield what a config says about the logits, then no change: some families ignore their text config."""
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling", "output_multiplier"):
        if value := getattr(config, name, None):
            scales = [value, 1 / value, *scales]
    softcap = getattr(config, "final_logit_softcapping", None)
    for scale in scales:
        yield from ((scale, softcap), (scale, None)) if softcap else ((scale, None),)


def _compute_logits(model: Any, module: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> tuple[Tensor, Tensor]:
    """Return the model's logits and its head's, float32 [batch, vocabulary], for an enlarged last hidden state."""
    hidden = outputs.last_hidden_state
    bare = module(hidden[:, -1:])
    factor = PROBE / bare.abs().nan_to_num().max().clamp_min(1e-6)
    enlarged = type(outputs)(**{**outputs, "last_hidden_state": hidden * factor})
    base: Any = model.base_model if model.base_model is not model else find_decoder(model)
    own = base.__dict__.get("forward")
    base.forward = lambda *args, **kwargs: enlarged
    try:
        logits = type(model).forward(model, **inputs, logits_to_keep=1, use_cache=False).logits
    finally:
        if own is None:
            del base.forward
        else:
            base.forward = own
    return logits[:, -1].float(), module(enlarged.last_hidden_state[:, -1:])[:, -1].float()
