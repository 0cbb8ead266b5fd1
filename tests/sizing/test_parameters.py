"""Parameter counts against published totals and against transformers' own classes."""

from __future__ import annotations

import json

import pytest

from luthier.errors import RecipeError, Unsupported
from luthier.schema.model import Architecture, Experts
from luthier.sizing.model_config import architecture_from_config, architecture_of
from luthier.sizing.parameters import count_parameters, lora_parameters

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_published_totals() -> None:
    """Totals that the makers' safetensors hold."""
    assert count_parameters(architecture_from_config(LLAMA_8B)).total == 8_030_261_248
    smol = LLAMA_8B | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
    arch = architecture_from_config(smol)
    assert count_parameters(arch).total == 134_515_008
    assert lora_parameters(arch, 16) == 4_884_480


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
}
EXTRA: dict[str, dict[str, object]] = {
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 64,
    },
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"head_dim": 32},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 16},
    "gemma3_text": {"head_dim": 32, "sliding_window": 16},
    "mistral": {"head_dim": 32},
    "ministral": {"head_dim": 32},
    "ministral3": {"head_dim": 32},
    "phi3": {"pad_token_id": 0},
    "seed_oss": {"head_dim": 32},
    "nemotron": {"head_dim": 16},
    "arcee": {"head_dim": 16},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "qwen3_5_text": {
        "head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_conv_kernel_dim": 4,
    },
    "modernbert": {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
    "smollm3": {"pad_token_id": 0},
    "bert": {"type_vocab_size": 2},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
}  # fmt: skip


def _families() -> list[str]:
    from luthier.sizing.model_config import FAMILIES

    return sorted(FAMILIES)


@pytest.mark.parametrize("name", _families())
@pytest.mark.filterwarnings("ignore")
def test_every_known_family_counts_as_transformers_builds_it(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM

    config = CONFIG_MAPPING[name](**(SMALL | EXTRA.get(name, {})))
    saved = json.loads(json.dumps(config.to_diff_dict(), default=str)) | {"model_type": name}
    saved = (SMALL | EXTRA.get(name, {})) | saved
    arch = architecture_from_config(saved)
    make = AutoModelForCausalLM if arch.head else AutoModel
    with torch.device("meta"):
        model = make.from_config(config)
    assert count_parameters(arch).total == sum(p.numel() for p in model.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["llama", "qwen3_5_text", "gemma3_text", "qwen2"])
def test_linear_weights_are_those_of_the_linear_modules(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = SMALL | EXTRA.get(name, {})
    config = CONFIG_MAPPING[name](**settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [
        m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not n.endswith("lm_head")
    ]
    arch = architecture_from_config(settings | {"model_type": name})
    assert count_parameters(arch).linear == sum(m.weight.numel() for m in linear)
    assert lora_parameters(arch, 8) == sum(8 * (m.in_features + m.out_features) for m in linear)


def test_active_parameters_of_experts() -> None:
    arch = Architecture(
        model_type="qwen3_moe",
        layers=48,
        hidden_size=2048,
        intermediate_size=6144,
        attention_heads=32,
        kv_heads=4,
        head_dim=128,
        vocab_size=151936,
        tied_embeddings=False,
        qk_norm=True,
        experts=Experts(total=128, active=8, intermediate_size=768),
    )
    count = count_parameters(arch)
    # Published as 30.5B total, 3.3B active.
    assert count.total == 30_532_122_624
    assert round(count.active / 1e9, 1) == 3.4  # with input embeddings
    assert count.total - count.active == 48 * 120 * 3 * 2048 * 768


def test_odd_configs_are_named() -> None:
    with pytest.raises(RecipeError, match="32 attention heads do not divide into 5"):
        architecture_from_config(LLAMA_8B | {"num_key_value_heads": 5})
    with pytest.raises(RecipeError, match="hidden_size 4097 does not divide"):
        architecture_from_config(LLAMA_8B | {"hidden_size": 4097})
    with pytest.raises(RecipeError, match="no num_hidden_layers"):
        architecture_from_config({k: v for k, v in LLAMA_8B.items() if k != "num_hidden_layers"})
    with pytest.raises(RecipeError, match="vocab_size is '128k'"):
        architecture_from_config(LLAMA_8B | {"vocab_size": "128k"})
    with pytest.raises(RecipeError, match="layers is 0"):
        architecture_from_config(LLAMA_8B | {"num_hidden_layers": 0})
    with pytest.raises(Unsupported, match="model type lama is not one") as caught:
        architecture_from_config(LLAMA_8B | {"model_type": "lama"})
    assert "did you mean llama" in str(caught.value.hint)
    with pytest.raises(Unsupported, match="vision or audio towers"):
        architecture_from_config({"model_type": "gemma3", "vision_config": {}, "text_config": {}})
    with pytest.raises(RecipeError, match="no linear layer named q_porj") as wrong:
        lora_parameters(architecture_from_config(LLAMA_8B), 8, ("q_porj",))
    assert "q_proj" in str(wrong.value.hint)


def test_an_encoder_decoder_is_named_as_one() -> None:
    """T5 names its heads otherwise, and a field that it has not would be no help to anybody."""
    config = {"model_type": "t5", "is_encoder_decoder": True, "d_model": 32, "num_heads": 4}
    with pytest.raises(Unsupported, match="encoder-decoder"):
        architecture_from_config(config, total_parameters=1000)


def test_unknown_type_is_checked_against_its_weights() -> None:
    arch = architecture_from_config(LLAMA_8B | {"model_type": "novel"}, total_parameters=8_030_261_248 + 77)
    assert arch.other_parameters == 77
    assert count_parameters(arch).total == 8_030_261_248 + 77
    with pytest.raises(Unsupported, match="fewer than the shape"):
        architecture_from_config(LLAMA_8B, total_parameters=8_030_261_247)


def test_a_decoder_saved_without_its_head_is_counted_without(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

    config = LlamaConfig(
        vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3, tie_word_embeddings=False,
    )  # fmt: skip
    for made in (LlamaModel(config), LlamaForSequenceClassification(config)):
        made.save_pretrained(tmp_path / type(made).__name__)
        found = architecture_of(tmp_path / type(made).__name__)
        assert not found.head
        assert found.other_parameters == (96 if hasattr(made, "score") else 0)
        assert count_parameters(found).total == sum(weight.numel() for weight in made.parameters())
    LlamaForCausalLM(config).save_pretrained(tmp_path / "writes")
    assert architecture_of(tmp_path / "writes").head
    torn = tmp_path / "LlamaModel" / "config.json"
    words = json.loads(torn.read_text())
    torn.write_text(json.dumps({**words, "architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(Unsupported, match="fewer than the shape"):
        architecture_of(torn.parent)


def test_saved_folder_is_read_by_its_headers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    np = pytest.importorskip("numpy")
    save = pytest.importorskip("safetensors.numpy").save_file
    config = SMALL | {"model_type": "llama", "tie_word_embeddings": True}
    total = count_parameters(architecture_from_config(config)).total
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(
        {"model.weight": np.zeros((total - 3,), dtype=np.float16), "b": np.zeros(5)},
        tmp_path / "model.safetensors",
    )
    assert architecture_of(tmp_path).other_parameters == 2
