"""Floating-point operations of training and generation. A multiplication with its addition counts two."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Method
from luthier.sizing.layers import heads_of, layer_kinds
from luthier.sizing.parameters import count_parameters, expert_parameters, lora_parameters


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations for one token on average, by where they go."""

    linear: float
    """Linear layers and adapters."""
    attention: float
    """Scores and weighted values."""
    head: float
    """Output matrix and its gradient, at trained places."""

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.head


def attention_forward(arch: Architecture, length: float, *, causal: bool | None = None) -> float:
    """Forward operations of attention for one token of a document of that length, over all layers.

    A causal kernel computes half of the scores; a sliding layer those inside its window.
    """
    causal = arch.causal if causal is None else causal
    total = 0.0
    for kind in layer_kinds(arch):
        if kind not in ("full", "sliding"):
            continue
        heads, _, width = heads_of(arch, kind)
        seen = length / 2 if causal else length
        if kind == "sliding" and arch.sliding_window is not None:
            seen = min(seen, arch.sliding_window)
        value = arch.latent_attention.value_dim if arch.latent_attention is not None else width
        total += 2 * heads * (width + value) * seen
    return total


def training_flops(
    arch: Architecture,
    method: Method,
    *,
    length: float,
    trained_share: float = 1.0,
    checkpointing: bool = False,
    head_everywhere: bool = False,
    extra_forwards: float = 0.0,
    log_probs: bool = False,
) -> StepFlops:
    """Operations of forward and backward pass for one token of a document of that length.

    Frozen weights need no gradient of their own: 4 operations a weight and token instead of 6.
    Checkpointing runs each layer's forward pass twice, and extra_forwards (a reference model's, say) once
    more each. Attention's backward pass computes the scores again: two and a half times its forward pass.
    log_probs: whether the backward pass makes the logits again.
    """
    count = count_parameters(arch)
    weights = count.active_linear
    again = (1 if checkpointing else 0) + extra_forwards
    attention = attention_forward(arch, length) * (3.5 + again)
    share = 1.0 if head_everywhere else trained_share
    head = arch.vocab_size * arch.hidden_size * share if arch.head else 0.0
    remade = 2 * extra_forwards + (2 if log_probs else 0)
    if isinstance(method, Full):
        return StepFlops(weights * (6.0 + 2 * again), attention, head * (6.0 + remade))
    adapters: float = lora_parameters(arch, method.rank, method.targets)
    if arch.experts is not None:
        adapters += expert_parameters(arch, method) * arch.experts.active / arch.experts.total
    return StepFlops(
        weights * (4.0 + 2 * again) + adapters * (6.0 + 2 * again), attention, head * (4.0 + remade)
    )


def generation_flops(arch: Architecture, *, prompt_tokens: float, new_tokens: float) -> float:
    """Operations of one answer: the prompt once, then one token at a time with a cache."""
    count = count_parameters(arch)
    head = arch.vocab_size * arch.hidden_size if arch.head else 0
    tokens = prompt_tokens + new_tokens
    linear = 2.0 * count.active_linear * tokens
    prompt = attention_forward(arch, prompt_tokens) * prompt_tokens
    grown = attention_forward(arch, prompt_tokens + new_tokens / 2, causal=False) * new_tokens
    return linear + 2.0 * head * (new_tokens + 1) + prompt + grown
