"""The shape of a model that begins from scratch: from a size in parameters to a configuration."""

from __future__ import annotations

from typing import Any

from luthier.errors import RecipeError
from luthier.schema.recipe import FromScratch
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.parameters import count_parameters

HEAD = 64
"""Width of an attention head."""
ASPECT = 64
"""Width for each layer, about what models of 100M to 1B have (GPT-2: 64, Llama 3.2 1B: 128)."""
TIED_BELOW = 1_000_000_000
"""Smaller models share their embedding with the head: it would be a large part of them."""
NEAR = 0.5
"""How far a size may be from the one asked for, as a share, before that is an error."""


def scratch_config(
    choice: FromScratch, *, vocabulary: int, bos: int | None, eos: int | None, pad: int
) -> dict[str, Any]:
    """A Hugging Face configuration of about the size asked for: the nearest of all widths and depths.

    vocabulary: tokens of the tokenizer. Errors: RecipeError where settings contradict each other or the
    size cannot be come near to.
    """
    if choice.hidden_size is not None and choice.heads is not None and choice.hidden_size % choice.heads:
        raise RecipeError(
            f"model.from_scratch.hidden_size {choice.hidden_size} cannot be parted over {choice.heads} heads",
            hint="make it a multiple of the heads",
        )
    fixed = {"vocabulary": vocabulary, "bos": bos, "eos": eos, "pad": pad}
    best: tuple[float, dict[str, Any]] | None = None
    for width in [choice.hidden_size] if choice.hidden_size else _widths(choice):
        for layers in [choice.layers] if choice.layers else range(1, 129):
            config = _config(choice, width, layers, fixed)
            size = count_parameters(architecture_from_config(config)).total
            off = abs(size / choice.parameters - 1)
            # Of shapes of like size the one whose width and depth are in the usual proportion.
            shape = abs(width / (ASPECT * layers) - 1) if width > 4 * HEAD else abs(layers - 4) / 8
            score = off + 0.1 * shape
            if best is None or score < best[0]:
                best = score, config
            if size > 2 * choice.parameters:
                break
    assert best is not None
    size = count_parameters(architecture_from_config(best[1])).total
    if abs(size / choice.parameters - 1) > NEAR:
        raise RecipeError(
            f"model.from_scratch.parameters: the nearest shape has {size:,} parameters, not "
            f"{choice.parameters:,} (the vocabulary alone takes {vocabulary * best[1]['hidden_size']:,})",
            hint="ask for another size or a smaller model.from_scratch.vocabulary, or give hidden_size "
            "and layers",
        )
    return best[1]


def _widths(choice: FromScratch) -> range:
    if choice.heads is not None:
        return range(choice.heads * 8, 4097, choice.heads * 8)
    return range(32, 257, 32) if choice.parameters < 20_000_000 else range(128, 8193, HEAD)


def _config(choice: FromScratch, width: int, layers: int, fixed: dict[str, Any]) -> dict[str, Any]:
    heads = choice.heads or max(1, width // HEAD if width % HEAD == 0 else width // 32)
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[choice.family]
    # Two thirds of four times the width, for three matrices instead of two (Shazeer 2020, arXiv 2002.05202).
    inner = -(-8 * width // 3 // 32) * 32
    return {
        "architectures": [f"{name}ForCausalLM"],
        "model_type": choice.family,
        "vocab_size": fixed["vocabulary"],
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "max_position_embeddings": choice.context,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": choice.parameters < TIED_BELOW,
        "bos_token_id": fixed["bos"],
        "eos_token_id": fixed["eos"],
        "pad_token_id": fixed["pad"],
        "use_cache": True,
    }
