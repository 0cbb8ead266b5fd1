"""A tiny model and pairs of answers that follow from formulas, the same wherever they are made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

BETA = 0.3
# Prompt, chosen answer, rejected answer: token ids.
PAIRS: tuple[tuple[list[int], list[int], list[int]], ...] = (
    ([5, 9, 13], [17, 21, 25, 2], [18, 22, 2]),
    ([6, 10], [14, 19, 2], [30, 31, 32, 33, 34, 2]),
    ([7, 11, 15, 19, 23, 27], [35, 2], [36, 37, 2]),
)


def model_of(number: int) -> Any:
    """A Llama of two layers whose weights are sines; each number gives others."""
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for place, (name, weight) in enumerate(sorted(model.named_parameters())):
            if "norm" in name:
                weight.fill_(1.0)
                continue
            steps = torch.arange(weight.numel(), dtype=torch.float64).view(weight.shape)
            values = torch.sin(steps * (0.37 + 0.011 * place) + place + 0.8 * number)
            weight.copy_(0.35 * values)
    return model


def padded(pairs: Any) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Both sides as (ids, mask of tokens, mask of the answer), padded to one length."""
    width = max(len(prompt) + max(len(better), len(worse)) for prompt, better, worse in pairs)
    found = {}
    for side, name in ((1, "chosen"), (2, "rejected")):
        shape = (len(pairs), width)
        ids, mask, answer = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
        for row, pair in enumerate(pairs):
            whole = [*pair[0], *pair[side]]
            ids[row, : len(whole)] = torch.tensor(whole)
            mask[row, : len(whole)] = 1
            answer[row, len(pair[0]) : len(whole)] = 1
        found[name] = (ids, mask, answer)
    return found
