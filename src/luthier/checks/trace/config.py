"""A Hugging Face configuration from a shape, for models whose own config.json is not at hand."""

from __future__ import annotations

from typing import Any

from luthier.errors import Unsupported
from luthier.schema.model import Architecture
from luthier.sizing.model_config import architecture_from_config

_KINDS = {"full": "full_attention", "sliding": "sliding_attention", "linear": "linear_attention"}


def config_of(arch: Architecture) -> dict[str, Any]:
    """The config.json of a text backbone of that shape.

    Errors: Unsupported where reading it back does not give the shape, so that a trace would follow
    another model.
    """
    config: dict[str, Any] = {
        "model_type": arch.model_type,
        "num_hidden_layers": arch.layers,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.intermediate_size,
        "num_attention_heads": arch.attention_heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "vocab_size": arch.vocab_size,
        "tie_word_embeddings": arch.tied_embeddings,
        # The vocabulary's last ids may lie beyond a small model's; none of them is used by a trace.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    }
    if arch.max_positions is not None:
        config["max_position_embeddings"] = arch.max_positions
    if arch.layer_kinds and arch.sliding_window is not None:
        config["sliding_window"] = arch.sliding_window
        if set(arch.layer_kinds) != {"sliding"}:
            config["layer_types"] = [_KINDS.get(kind, kind) for kind in arch.layer_kinds]
    elif arch.model_type not in ("gemma2", "gemma3_text"):
        config["sliding_window"] = None
    if arch.position_embeddings:
        config |= {"max_position_embeddings": arch.position_embeddings, "type_vocab_size": arch.token_types}
    biases = {"attention_bias": arch.output_bias, "mlp_bias": arch.mlp_bias}
    config |= {key: value for key, value in biases.items() if value}
    back = architecture_from_config(config)
    if back != arch:
        raise Unsupported(
            f"the exact trace of {arch.model_type} needs the model's own config.json",
            hint="fetch the model (`luthier get`) and name its folder; the formula stands without it",
        )
    return config
