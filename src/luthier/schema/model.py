"""What is known of a base model. ``None`` means unknown, and is shown as unknown."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record

LayerKind = Literal["full", "sliding", "linear"]


class Experts(Record):
    """Mixture-of-experts layout of the layers that have one."""

    total: int
    active: int
    """Experts that each token goes through."""
    shared: int = 0
    """Experts that every token goes through besides."""
    intermediate_size: int
    """Width of one expert."""
    dense_layers: int = 0
    """Leading layers with an ordinary MLP."""


class Architecture(Record):
    """The shape of a text backbone: all that the memory model needs."""

    model_type: str
    """transformers' ``model_type``."""
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    gated_mlp: bool = True
    """Three matrices an MLP (gate, up, down) rather than two."""
    layer_kinds: tuple[LayerKind, ...] = ()
    """Kind of attention by layer; empty means full everywhere."""
    sliding_window: int | None = None
    experts: Experts | None = None
    max_positions: int | None = None
    extra_parameters: int = 0
    """Parameters outside the text backbone: vision and audio towers, projectors."""
