"""Tiny random models of every family that is tuned, and a batch of packed rows for them."""

from types import SimpleNamespace

import torch
import transformers

SHAPE = {
    "vocab_size": 90, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 12},
    "Mistral": {"sliding_window": 5},
    "Gemma2": {
        "head_dim": 8, "sliding_window": 5, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0,
    },
    "Gemma3": {"head_dim": 8, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "Phi3": {},
    "Olmo2": {},
    "SmolLM3": {},
    "Granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5},
    "Cohere": {"logit_scale": 0.25},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen3Moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
        "head_dim": 8,
    },
}  # fmt: skip


def build(family, **changes):
    torch.manual_seed(2)
    kind = getattr(transformers, f"{family}TextConfig" if family == "Gemma3" else f"{family}Config")
    config = kind(**{**SHAPE, **FAMILIES[family], **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model


# Each row: lengths of the documents in it.
LAYOUT = [(9, 6), (13,), (1, 3, 8)]


def batch():
    """Three packed rows; about a third of the tokens, and always the first, ask for no loss or do."""
    generator = torch.Generator().manual_seed(4)
    width = max(sum(row) for row in LAYOUT) + 2
    ids = torch.randint(3, 90, (3, width), generator=generator)
    labels = torch.where(torch.rand(3, width, generator=generator) < 0.35, -100, ids)
    positions, documents = torch.zeros_like(ids), torch.zeros_like(ids)
    for index, row in enumerate(LAYOUT):
        start = 0
        for number, length in enumerate(row, 1):
            positions[index, start : start + length] = torch.arange(length)
            documents[index, start : start + length] = number
            # A label on a first token: there is nothing to predict it from.
            labels[index, start] = ids[index, start]
            start += length
        labels[index, start:] = -100
    return SimpleNamespace(input_ids=ids, labels=labels, position_ids=positions, document_ids=documents)


def one_by_one(model, packed):
    """Sum of transformers' losses over each document alone, and the number of trained tokens."""
    total, count = 0, 0
    for index, row in enumerate(LAYOUT):
        start = 0
        for length in row:
            ids = packed.input_ids[index : index + 1, start : start + length]
            labels = packed.labels[index : index + 1, start : start + length]
            start += length
            trained = int((labels[:, 1:] != -100).sum())
            if trained:
                total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * trained
                count += trained
    return total, count


def gradients(model):
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad(set_to_none=True)
    return found
