import torch

from luthier.models.importance import input_importance
from luthier.models.lora import add_lora
from luthier.models.packed import pack_base
from luthier.schema.recipe import Lora, QLora

ROWS = [[3, 4, 5, 6], [7, 8], [9, 10, 11]]


def test_importance_is_the_mean_square_of_what_reaches_a_layer(tiny):
    model = tiny("qwen2")
    found = input_importance(model, ROWS)
    assert "lm_head" not in found
    assert len(found) == 14  # seven layers in each of two blocks
    # what reaches q, k and v of the first block: its normed embeddings
    block = model.model.layers[0]
    with torch.no_grad():
        reached = torch.cat([block.input_layernorm(model.model.embed_tokens(torch.tensor(r))) for r in ROWS])
    expected = reached.square().mean(dim=0)
    for part in ("q", "k", "v"):
        torch.testing.assert_close(found[f"model.layers.0.self_attn.{part}_proj"], expected)
    assert found["model.layers.1.mlp.down_proj"].shape == (48,)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_adapted_and_packed_layers_are_seen_as_they_answer(tiny):
    model = tiny("llama")
    plain, told = input_importance(model, ROWS), []
    add_lora(model, Lora(rank=4))
    adapted = input_importance(model, ROWS, progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert adapted.keys() == plain.keys()
    for path, values in plain.items():
        torch.testing.assert_close(adapted[path], values)
    packed = tiny("llama")
    pack_base(packed, QLora())
    assert input_importance(packed, ROWS).keys() == plain.keys()
