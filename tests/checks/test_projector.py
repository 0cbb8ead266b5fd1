"""A model that sees leaves with its vision projector, where llama.cpp's converter makes one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from luthier.errors import Unsupported
from luthier.exporting.gguf import export_projector
from luthier.llamacpp.gguf_file import read_header
from seeing import save_seeing_model


@pytest.fixture
def seeing(saved, tmp_path):
    """A tiny Gemma 3 with a vision tower, its tensors named as on the Hub."""
    torch.manual_seed(1)
    folder = tmp_path / "run" / "merged"
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Gemma3Config(
        text_config={**tiny, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 512},
        vision_config={**tiny, "num_attention_heads": 2, "image_size": 56, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=1,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in weights.items()
    }
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    for item in saved("gemma3").glob("*token*"):
        (folder / item.name).symlink_to(item)
    return folder


def test_a_vision_tower_leaves_as_a_projector(seeing, converter):
    run = seeing.parent
    made = export_projector(seeing, run, name="tiny", relative_to=run)
    assert (made.kind, made.path) == ("mmproj", "tiny-mmproj-F16.gguf")
    header = read_header(run / made.path)
    assert header.architecture == "clip"
    assert header.get("clip.has_vision_encoder") is True
    assert {"v.blk.1.ln2.weight", "mm.input_projection.weight"} <= {one.name for one in header.tensors}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm"])
def test_families_that_are_tuned_on_images_have_projectors(tmp_path, converter, family):
    folder = save_seeing_model(tmp_path / "merged", family, depth=4)
    made = export_projector(folder, tmp_path, name="tiny", relative_to=tmp_path)
    header = read_header(tmp_path / made.path)
    assert header.get("clip.has_vision_encoder") is True
    assert {one.name for one in header.tensors} >= {"v.blk.3.ln2.weight", "v.blk.0.ln1.weight"}


def test_a_model_that_reads_text_has_none(saved, tmp_path, converter):
    assert export_projector(saved("llama"), tmp_path, name="tiny", relative_to=tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_a_tower_that_the_converter_does_not_know_is_refused(saved, tmp_path, converter):
    folder = tmp_path / "model"
    folder.mkdir()
    for item in saved("llama").iterdir():
        (folder / item.name).symlink_to(item)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "vision_config": {}}))
    with pytest.raises(Unsupported, match="no vision projector of LlamaForCausalLM"):
        export_projector(folder, tmp_path, name="tiny", relative_to=tmp_path)
    assert not list(tmp_path.glob("*.gguf"))
