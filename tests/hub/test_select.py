"""One set of weights and what belongs to it, from the file lists that repositories have."""

from __future__ import annotations

import pytest

from luthier.hub.select import needed_files

TEXT = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "README.md",
    "LICENSE",
]


@pytest.mark.parametrize(
    ("weights", "others"),
    [
        (
            ["model.safetensors"],
            ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx"],
        ),
        (
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ],
            [
                "original/consolidated.00.pth",
                "original/params.json",
                "consolidated.safetensors",
                "params.json",
            ],
        ),
        (["pytorch_model.bin"], ["rust_model.ot", "trainer_state.json"]),
        (
            ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"],
            ["training_args.bin", "events.out.tfevents.1"],
        ),
        (["consolidated.safetensors"], ["x.gguf"]),
        (["tiny.safetensors"], ["consolidated.safetensors", "tiny.fp16.safetensors"]),
        (["model.safetensors"], ["model.fp16.safetensors", "modeling_own.py"]),
        (
            ["model.safetensors", "1_Pooling/config.json", "2_Dense/model.safetensors"],
            ["2_Dense/pytorch_model.bin"],
        ),
    ],
)
def test_one_complete_set(weights: list[str], others: list[str]) -> None:
    names = sorted([*TEXT, *weights, *others])
    assert needed_files(names) == tuple(sorted([*TEXT, *weights]))


def test_code_comes_only_when_asked_for() -> None:
    names = ["config.json", "model.safetensors", "modeling_own.py"]
    assert needed_files(names, code=True) == tuple(names)


def test_nothing_without_weights() -> None:
    assert needed_files(["config.json", "model.gguf", "original/consolidated.00.pth"]) == ()
