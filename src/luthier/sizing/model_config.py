"""The shape of a model from its ``config.json``, and what its saved weights hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.errors import FileProblem, RecipeError, Unsupported, did_you_mean
from luthier.schema.model import Architecture, Experts, LayerKind, LinearMixer
from luthier.sizing.parameters import count_parameters
from luthier.sizing.vision import tower_of

_KINDS: dict[str, LayerKind] = {
    "full_attention": "full",
    "attention": "full",
    "global": "full",
    "sliding_attention": "sliding",
    "chunked_attention": "sliding",
    "linear_attention": "linear",
}

_SLIDING: tuple[LayerKind, ...] = ("sliding",)


@dataclass(frozen=True, slots=True)
class _Family:
    """What a model type is where its config does not say (transformers' configuration classes)."""

    tied: bool = False
    qkv_bias: bool = False
    """Fixed biases; ``attention_bias`` in the config turns them on besides."""
    output_bias: bool | None = None
    """None: as ``attention_bias`` says."""
    qk_norm: Literal["no", "head", "row"] = "no"
    """Norms over each head, or over the whole query and key row."""
    norms: int = 2
    layer_norm: bool = False
    gated: bool = True
    bias_key: str = "attention_bias"
    sliding: Literal["no", "all", "alternate", "sixth", "fourth"] = "no"
    """Which layers slide where neither layer types nor a pattern are written down."""
    gated_attention: bool = False
    bert: bool = False
    """Encoder with learned positions and biases everywhere."""


FAMILIES: dict[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(output_bias=False, sliding="all"),
    "ministral": _Family(output_bias=False, sliding="all"),
    "ministral3": _Family(output_bias=False, sliding="all"),
    "mixtral": _Family(output_bias=False, sliding="all"),
    "qwen2": _Family(qkv_bias=True, output_bias=False),
    "qwen2_moe": _Family(qkv_bias=True, output_bias=False),
    "qwen3": _Family(qk_norm="head"),
    "qwen3_moe": _Family(qk_norm="head"),
    "qwen3_5_text": _Family(qk_norm="head", gated_attention=True),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms=4, sliding="alternate"),
    "gemma3_text": _Family(tied=True, norms=4, qk_norm="head", sliding="sixth"),
    "phi3": _Family(output_bias=False, sliding="all"),
    "olmo2": _Family(qk_norm="row"),
    "olmo3": _Family(qk_norm="row", sliding="fourth"),
    "smollm3": _Family(tied=True),
    "granite": _Family(),
    "seed_oss": _Family(qkv_bias=True, output_bias=False),
    "starcoder2": _Family(tied=True, layer_norm=True, gated=False, bias_key="use_bias", sliding="all"),
    "nemotron": _Family(layer_norm=True, gated=False),
    "arcee": _Family(gated=False),
    "helium": _Family(output_bias=False),
    "hunyuan_v1_dense": _Family(qk_norm="head"),
    "gpt_oss": _Family(sliding="alternate"),
    "bert": _Family(tied=True, layer_norm=True, gated=False, bert=True),
    "roberta": _Family(tied=True, layer_norm=True, gated=False, bert=True),
    "xlm-roberta": _Family(tied=True, layer_norm=True, gated=False, bert=True),
    "camembert": _Family(tied=True, layer_norm=True, gated=False, bert=True),
    "modernbert": _Family(tied=True),
}
"""Model types whose layout is known, each checked against transformers' own class in the tests."""

_SEEING: dict[str, _Family] = {
    "qwen2_vl_text": _Family(qkv_bias=True, output_bias=False),
    "qwen2_5_vl_text": _Family(qkv_bias=True, output_bias=False),
    "qwen3_vl_text": _Family(qk_norm="head"),
}
"""Language parts that stand in models that see alone."""

_NESTED = {
    "gemma3": "gemma3_text",
    "mistral3": "ministral3",
    "qwen3_5": "qwen3_5_text",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "idefics3": "llama",
    "smolvlm": "llama",
}


def architecture_from_config(
    config: Mapping[str, Any], *, total_parameters: int | None = None, where: str | Path | None = None
) -> Architecture:
    """Read the shape of a text backbone from a Hugging Face ``config.json``.

    total_parameters: how many the saved weights hold, where that is known; what the shape does not
    give goes into ``other_parameters`` (``extra_parameters`` for a vision model), and a model type
    that is not known is then taken for an ordinary decoder. where: the file, for messages.
    Errors: RecipeError for missing or odd fields, Unsupported for what cannot be counted.
    """
    reader = _Reader(config, where)
    outer = reader.text("model_type")
    if config.get("is_encoder_decoder") is True:
        raise Unsupported(
            f"{outer} is an encoder-decoder, which writes text from text by two stacks: none is tuned here",
            hint="choose a decoder or an encoder: `luthier models`",
            file=where,
        )
    vision = "vision_config" in config or "audio_config" in config
    text = config.get("text_config")
    if isinstance(text, Mapping):
        inner = str(text.get("model_type") or _NESTED.get(outer, outer))
        tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        config = {**text, "model_type": inner}
        if tied is not None:
            config["tie_word_embeddings"] = tied
        reader = _Reader(config, where)
    name = reader.text("model_type")
    family = FAMILIES.get(name) or _SEEING.get(name)
    if vision and total_parameters is None:
        raise Unsupported(
            f"{outer} has vision or audio towers, whose size its config.json does not give",
            hint="point at a directory with the saved weights, or use a model of the catalogue",
            file=where,
        )
    if family is None and total_parameters is None:
        near = did_you_mean(name, FAMILIES)
        raise Unsupported(
            f"model type {name} is not one whose parameters are counted from a config",
            hint=" ".join(filter(None, [near, "with its saved weights beside the config it is taken for an "
                                        "ordinary decoder and checked against their size"])),
            file=where,
        )  # fmt: skip
    arch = (
        _bert(reader) if family is not None and family.bert else _decoder(reader, family or _Family(), name)
    )
    if total_parameters is None:
        return arch
    missing = total_parameters - count_parameters(arch).total
    if missing < 0 and not _writes(config):  # an embedder or a classifier, saved without what it does not use
        arch = arch.model_copy(update={"head": False})
        missing = total_parameters - count_parameters(arch).total
    if missing < 0:
        raise Unsupported(
            f"the saved weights hold {total_parameters:,} parameters, fewer than the shape of a "
            f"{name} gives ({total_parameters - missing:,})",
            hint="is the config.json that of these weights? Quantised or sharded weights cannot be counted",
            file=where,
        )
    if vision:
        return arch.model_copy(update={"extra_parameters": missing})
    return arch.model_copy(update={"other_parameters": arch.other_parameters + missing})


def _writes(config: Mapping[str, Any]) -> bool:
    """Whether the class that was saved has an output matrix over its vocabulary, as the config says."""
    named = config.get("architectures") or ()
    return not named or any("LM" in name or "ConditionalGeneration" in name for name in named)


def taken_for_ordinary(arch: Architecture) -> str | None:
    """In words that a saved model's layers are not known here, so that an ordinary decoder's are counted."""
    if arch.model_type in FAMILIES or arch.model_type in _SEEING:
        return None
    own = f", {arch.other_parameters:,} parameters beside those" if arch.other_parameters else ""
    return (
        f"{arch.model_type} is not a family whose layers are known here: counted as an ordinary decoder's"
        f"{own}; --exact follows its own code on a GPU"
    )


def architecture_of(directory: Path) -> Architecture:
    """Shape of a saved model: its config.json, checked against its safetensors headers where there are any.

    Errors: FileProblem when there is no readable config.json, and those of architecture_from_config.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileProblem(
            "no config.json",
            file=directory,
            hint="a saved model is a folder with config.json and *.safetensors",
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileProblem(f"not valid JSON: {error}", file=path) from None
    if not isinstance(config, dict):
        raise FileProblem("not a JSON object", file=path)
    total = parameters_on_disk(directory)
    found = architecture_from_config(config, total_parameters=total, where=path)
    if "vision_config" not in config:
        return found
    return found.model_copy(update={"tower": tower_of(config, tensors_on_disk(directory))})


def parameters_on_disk(directory: Path) -> int | None:
    """Parameters in the ``*.safetensors`` of a folder by their headers; None where there are none."""
    shapes = tensors_on_disk(directory)
    if not shapes:
        return None
    total = 0
    for shape, _ in shapes.values():
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def tensors_on_disk(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, stored type) of every tensor in a folder's ``*.safetensors``, weights not read.

    Errors: FileProblem for a torn file.
    """
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        if path.name.startswith("adapter_"):
            continue
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(length))
        except (struct.error, json.JSONDecodeError, UnicodeDecodeError, MemoryError, OverflowError):
            raise FileProblem(
                "not a complete safetensors file", file=path, hint="download or copy it again"
            ) from None
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = (tuple(entry["shape"]), str(entry["dtype"]))
    return found


class _Reader:
    """Reads fields of a config with words for each fault."""

    def __init__(self, config: Mapping[str, Any], where: str | Path | None) -> None:
        self.config = config
        self.where = where

    def fail(self, message: str, hint: str | None = None) -> RecipeError:
        return RecipeError(
            message,
            file=self.where,
            hint=hint or "correct config.json, or fetch it again from the model's source",
        )

    def text(self, key: str) -> str:
        value = self.config.get(key)
        if not isinstance(value, str) or not value:
            raise self.fail(f"config.json has no {key}")
        return value

    def whole(self, *keys: str, least: int = 1) -> int:
        """A number under the first of several names. Errors: RecipeError when absent, odd or too small."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise self.fail(f"config.json: {key} is {value!r}, not a whole number of at least {least}")
            return value
        raise self.fail(f"config.json has no {keys[0]}")

    def optional(self, *keys: str, least: int = 1) -> int | None:
        if all(self.config.get(key) is None for key in keys):
            return None
        return self.whole(*keys, least=least)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(f"config.json: {key} is {value!r}, neither true nor false")
        return value


def _decoder(reader: _Reader, family: _Family, name: str) -> Architecture:
    hidden = reader.whole("hidden_size", "n_embd", "d_model")
    heads = reader.whole("num_attention_heads", "n_head")
    layers = reader.whole("num_hidden_layers", "n_layer")
    kv_heads = reader.optional("num_key_value_heads") or heads
    if heads % kv_heads:
        raise reader.fail(
            f"config.json: {heads} attention heads do not divide into {kv_heads} key/value heads"
        )
    width = reader.optional("head_dim")
    if width is None:
        if hidden % heads:
            raise reader.fail(
                f"config.json: hidden_size {hidden} does not divide into {heads} attention heads, "
                "and no head_dim is given"
            )
        width = hidden // heads
    bias = reader.flag(family.bias_key, default=family.qkv_bias or name == "gpt_oss")
    qkv_bias = family.qkv_bias or bias
    output_bias = bias if family.output_bias is None else family.output_bias
    experts = _experts(reader, name)
    kinds, window = _layer_kinds(reader, family, layers)
    # A norm over the whole row has heads x width entries where the shape counts one head's width.
    row_norms = layers * (heads + kv_heads - 2) * width if family.qk_norm == "row" else 0
    if name == "modernbert":
        return _modernbert(reader, kinds, window)
    return Architecture(
        model_type=name,
        layers=layers,
        hidden_size=hidden,
        intermediate_size=reader.whole("intermediate_size")
        if experts is None
        else reader.optional("intermediate_size") or 0,
        attention_heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        vocab_size=reader.whole("vocab_size"),
        tied_embeddings=reader.flag("tie_word_embeddings", default=family.tied),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        mlp_bias=reader.flag("use_bias" if family.bias_key == "use_bias" else "mlp_bias", default=False),
        qk_norm=family.qk_norm != "no",
        gated_attention=family.gated_attention,
        gated_mlp=family.gated,
        layer_norm=family.layer_norm,
        norms_per_layer=family.norms,
        layer_kinds=kinds,
        sliding_window=window,
        linear_mixer=_mixer(reader, kinds),
        experts=experts,
        max_positions=reader.optional("max_position_embeddings"),
        other_parameters=row_norms + _extras(name, layers, heads, hidden),
    )


def _extras(name: str, layers: int, heads: int, hidden: int) -> int:
    """Small tensors of particular families."""
    if name == "gpt_oss":
        return layers * heads  # attention sinks
    if name == "qwen2_moe":
        return layers * hidden  # gate of the shared expert
    return 0


def _experts(reader: _Reader, name: str) -> Experts | None:
    total = reader.optional("num_experts", "num_local_experts", "n_routed_experts")
    if total is None or total == 1:
        return None
    active = reader.whole("num_experts_per_tok", "experts_per_token")
    if active > total:
        raise reader.fail(f"config.json: {active} active experts of {total}")
    if "n_routed_experts" in reader.config:
        raise Unsupported(
            f"{name}: latent attention with routed experts is read from the catalogue only", file=reader.where
        )
    wide = reader.whole("moe_intermediate_size", "intermediate_size")
    shared = reader.optional("shared_expert_intermediate_size", least=0) or 0
    if shared % wide:
        raise reader.fail(f"config.json: shared expert of width {shared} beside experts of width {wide}")
    only = reader.config.get("mlp_only_layers") or []
    if only or (reader.optional("decoder_sparse_step") or 1) != 1:
        raise Unsupported(f"{name}: experts in some layers only are not counted", file=reader.where)
    return Experts(
        total=total,
        active=active,
        shared=shared // wide,
        intermediate_size=wide,
        bias=name == "gpt_oss",
    )


def _mixer(reader: _Reader, kinds: tuple[LayerKind, ...]) -> LinearMixer | None:
    if "linear" not in kinds:
        return None
    return LinearMixer(
        kind="gated-deltanet",
        key_heads=reader.whole("linear_num_key_heads"),
        value_heads=reader.whole("linear_num_value_heads"),
        key_dim=reader.whole("linear_key_head_dim"),
        value_dim=reader.whole("linear_value_head_dim"),
        convolution=reader.whole("linear_conv_kernel_dim"),
    )


def _layer_kinds(reader: _Reader, family: _Family, layers: int) -> tuple[tuple[LayerKind, ...], int | None]:
    """Kind of each layer (empty: full everywhere) and the window."""
    config = reader.config
    window = reader.optional("sliding_window", "local_attention", least=0) or None
    if config.get("use_sliding_window") is False:
        window = None
    types = config.get("layer_types")
    if types is not None:
        unknown = sorted({str(t) for t in types} - set(_KINDS))
        if unknown:
            raise Unsupported(f"layers of type {', '.join(unknown)} are not known", file=reader.where)
        if len(types) != layers:
            raise reader.fail(f"config.json: {len(types)} layer_types for {layers} layers")
        kinds: tuple[LayerKind, ...] = tuple([_KINDS[t] for t in types])
        if "sliding" in kinds and window is None:
            raise reader.fail("config.json: sliding layers without a sliding_window")
        return (() if set(kinds) == {"full"} else kinds), (window if "sliding" in kinds else None)
    if "linear_num_key_heads" in config:
        every = reader.optional("full_attention_interval") or 4
        mixed: list[LayerKind] = ["linear" if (i + 1) % every else "full" for i in range(layers)]
        return tuple(mixed), None
    if window is None:
        return (), None
    step = reader.optional("sliding_window_pattern", "global_attn_every_n_layers")
    period = {"no": None, "all": 0, "alternate": 2, "sixth": 6, "fourth": 4}[family.sliding]
    if "global_attn_every_n_layers" in config:
        encoder: list[LayerKind] = ["sliding" if i % (step or 3) else "full" for i in range(layers)]
        return tuple(encoder), window
    if step is not None:
        period = step
    if period is None:
        return (), None
    if period == 0:
        return (_SLIDING * layers), window
    placed: list[LayerKind] = ["sliding" if (i + 1) % period else "full" for i in range(layers)]
    return tuple(placed), window


def _encoder(reader: _Reader) -> dict[str, Any]:
    """What every encoder's config says in the same words."""
    hidden, heads = reader.whole("hidden_size"), reader.whole("num_attention_heads")
    if hidden % heads:
        raise reader.fail(f"config.json: hidden_size {hidden} does not divide into {heads} attention heads")
    return {
        "layers": reader.whole("num_hidden_layers"),
        "hidden_size": hidden,
        "intermediate_size": reader.whole("intermediate_size"),
        "attention_heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "vocab_size": reader.whole("vocab_size"),
        "tied_embeddings": True,
        "head": False,
        "causal": False,
    }


def _modernbert(reader: _Reader, kinds: tuple[LayerKind, ...], window: int | None) -> Architecture:
    return Architecture(
        **_encoder(reader),
        model_type="modernbert",
        layer_kinds=kinds,
        sliding_window=window,
        max_positions=reader.optional("max_position_embeddings"),
    )


def _bert(reader: _Reader) -> Architecture:
    positions = reader.whole("max_position_embeddings")
    name = reader.text("model_type")
    return Architecture(
        **_encoder(reader),
        model_type=name,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        gated_mlp=False,
        layer_norm=True,
        # RoBERTa's table starts after the padding index, so that two rows hold no position.
        max_positions=positions if name == "bert" else positions - 2,
        position_embeddings=positions,
        token_types=reader.whole("type_vocab_size"),
        pooler=True,
    )
