"""Models of real shapes with random weights, made where they are wanted, and counts for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen2Config

SHAPES: dict[str, Any] = {
    "llama-3.1-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, tie_word_embeddings=False,
    ),
    "llama-3.1-70b": LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, tie_word_embeddings=False,
    ),
    "qwen2.5-0.5b": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    ),
    "qwen2.5-3b": Qwen2Config(
        hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, vocab_size=151936, max_position_embeddings=32768, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, tie_word_embeddings=False,
    ),
    "tiny-mixture": MixtralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=512, max_position_embeddings=2048, num_local_experts=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
    ),
}  # fmt: skip


def build(name: str, *, dtype: torch.dtype, device: str, packed: str | None = None) -> Any:
    """The model with random weights. packed: nf4 or float8, each layer packed as soon as it is made."""
    from luthier.models.packed import pack_linears

    config = SHAPES[name]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator(device=device).manual_seed(0)
    model.tie_weights()
    layers = list(model.model.layers)
    for part in [*layers, model]:
        _fill(part, dtype, device, generator)
        if packed and part is not model:
            pack_linears(part, packed)  # type: ignore[arg-type]
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.config.use_cache = False
    return model.requires_grad_(False)


def _fill(module: nn.Module, dtype: torch.dtype, device: str, generator: torch.Generator) -> None:
    """Weights that are still on no device: norms are one, biases zero, all else normal with 0.02."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if not weight.is_meta:
                continue
            made = torch.empty(weight.shape, dtype=dtype, device=device)
            if weight.ndim == 1:
                made.fill_(0.0 if name == "bias" else 1.0)
            else:
                made.normal_(0, 0.02, generator=generator)
            setattr(part, name, nn.Parameter(made))


def flops(name: str, lengths: list[int], method: str, rank: int = 16) -> float:
    """Operations that one step over documents of these lengths asks for, recomputation not counted.

    Full: 6 a weight and token; adapters: 4 a frozen and 6 a trained one; the embedding is looked up. Causal
    attention: 2 L^2 heads x head_dim forward, three times that in all. A mixture counts with one expert.
    """
    config = SHAPES[name]
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    width = hidden // config.num_attention_heads
    kv = config.num_key_value_heads * width
    sizes = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    sizes += [(hidden, inner), (hidden, inner), (inner, hidden)]
    products = layers * sum(a * b for a, b in sizes) + hidden * config.vocab_size
    adapters = layers * sum(rank * (a + b) for a, b in sizes)
    tokens = sum(lengths)
    attention = 3 * layers * sum(2 * length * length for length in lengths) * hidden
    if method == "full":
        return 6.0 * products * tokens + attention
    return 4.0 * products * tokens + 6.0 * adapters * tokens + attention
