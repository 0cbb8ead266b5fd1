"""The shape of a model as its GGUF header states it, for the memory model."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import Unsupported
from luthier.llamacpp.gguf_file import Header, read_header
from luthier.schema.model import Architecture, LayerKind

SLIDING_EVERY = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "olmo2": 4, "gpt-oss": 2}
"""Architectures whose header names a window but no pattern -> every n-th layer attends to everything.
Source: llama.cpp, src/models and ``set_swa_pattern`` in src/llama-model.cpp."""


def shape_of_gguf(path: Path) -> Architecture:
    """Build the shape from a file's metadata.

    Errors: FileProblem for a file that is no GGUF, Unsupported where the header lacks what is needed.
    """
    header = read_header(path)

    def number(key: str) -> int | None:
        found = header.of_architecture(key)
        if isinstance(found, list):  # some families store one value for each layer
            found = max(found)
        return None if found is None else int(found)

    layers, width, heads = (
        number("block_count"),
        number("embedding_length"),
        number("attention.head_count"),
    )
    if not layers or not width or not heads:
        raise Unsupported(
            f"the header of {path.name} does not state the model's shape",
            file=path,
            hint="name the context yourself (--context)",
        )
    tensors = {tensor.name: tensor for tensor in header.tensors}
    window = number("attention.sliding_window")
    embedding = tensors.get("token_embd.weight")
    return Architecture(
        model_type=header.architecture,
        layers=layers,
        hidden_size=width,
        intermediate_size=number("feed_forward_length") or 4 * width,
        attention_heads=heads,
        kv_heads=number("attention.head_count_kv") or heads,
        head_dim=number("attention.key_length") or width // heads,
        vocab_size=embedding.shape[1] if embedding is not None else number("vocab_size") or 0,
        tied_embeddings="output.weight" not in tensors,
        layer_kinds=_kinds(header, layers, window),
        sliding_window=window,
        max_positions=number("context_length"),
        causal=bool(header.of_architecture("attention.causal", True)),
    )


def _kinds(header: Header, layers: int, window: int | None) -> tuple[LayerKind, ...]:
    if not window:
        return ()
    stated = header.of_architecture("attention.sliding_window_pattern")
    if isinstance(stated, list):
        return tuple("sliding" if sliding else "full" for sliding in stated)
    every = int(stated) if stated else SLIDING_EVERY.get(header.architecture)
    if every is None:  # counted as if nothing slid: the cache is never larger than that
        return ()
    return tuple("full" if (index + 1) % every == 0 else "sliding" for index in range(layers))
