"""Layers that draft tokens ahead go into a GGUF file where they are in the folder, and only there."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from luthier.llamacpp.convert import _without_drafts

WEIGHTS = {"model.embed_tokens.weight": np.zeros((4, 2), np.float32)}


@pytest.mark.parametrize(
    ("kind", "more", "told"),
    [
        ("Qwen3_5ForConditionalGeneration", None, ["--no-mtp"]),
        ("Qwen3NextForCausalLM", "mtp.fc.weight", []),
        ("Qwen3_5ForCausalLM", "model.mtp.fc.weight", []),
        ("LlamaForCausalLM", None, []),
    ],
)
def test_what_is_not_saved_is_not_converted(tmp_path, kind, more, told):
    extra = {} if more is None else {more: np.zeros(2, np.float32)}
    save_file({**WEIGHTS, **extra}, tmp_path / "model.safetensors")
    assert _without_drafts(tmp_path, {"architectures": [kind]}) == told
