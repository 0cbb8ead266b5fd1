"""Tiny random models of the families that Luthier tunes."""

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 6}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {
            "head_dim": 8,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 7.0,
        },
    ),
}


def build(family: str):
    torch.manual_seed(5)
    kind, config, extra = FAMILIES[family]
    model = kind(config(**SHAPE, **extra))
    with torch.no_grad():
        for _name, weight in model.named_parameters():
            # Larger than a fresh start, so that answers vary and biases and norms count.
            weight.add_(torch.randn_like(weight) * (0.3 if weight.ndim == 2 else 0.1))
    return model.eval()


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return request.param


@pytest.fixture
def tiny():
    """family name -> a fresh tiny model with the same weights each time."""
    return build


@pytest.fixture
def write_tiny_gguf():
    """Writes a one-layer llama with a byte-level tokenizer that joins 1 and 0 where it may."""

    def write(path):
        import gguf
        import numpy as np
        from tokenizers.pre_tokenizers import ByteLevel

        words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "10"]
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("Tiny")
        for add, value in (
            (writer.add_context_length, 64),
            (writer.add_embedding_length, 32),
            (writer.add_block_count, 1),
            (writer.add_feed_forward_length, 48),
            (writer.add_head_count, 2),
            (writer.add_head_count_kv, 1),
            (writer.add_layer_norm_rms_eps, 1e-5),
            (writer.add_rope_freq_base, 10000.0),
            (writer.add_rope_dimension_count, 16),
            (writer.add_vocab_size, len(words)),
            (writer.add_tokenizer_model, "gpt2"),
            (writer.add_tokenizer_pre, "smollm"),
            (writer.add_token_list, words),
            (writer.add_token_types, [3, 3, 3] + [1] * (len(words) - 3)),
            (writer.add_token_merges, ["1 0"]),
            (writer.add_bos_token_id, 1),
            (writer.add_eos_token_id, 2),
            (writer.add_unk_token_id, 0),
            (writer.add_pad_token_id, 2),
        ):
            add(value)
        rng = np.random.default_rng(0)
        shapes = {
            "token_embd": (len(words), 32),
            "output_norm": (32,),
            "blk.0.attn_norm": (32,),
            "blk.0.ffn_norm": (32,),
            "blk.0.attn_q": (32, 32),
            "blk.0.attn_k": (16, 32),
            "blk.0.attn_v": (16, 32),
            "blk.0.attn_output": (32, 32),
            "blk.0.ffn_gate": (48, 32),
            "blk.0.ffn_up": (48, 32),
            "blk.0.ffn_down": (32, 48),
        }
        for name, shape in shapes.items():
            writer.add_tensor(f"{name}.weight", rng.normal(size=shape).astype(np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
