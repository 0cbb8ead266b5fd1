"""A merge from file to file is the merge in memory, whatever was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file

from luthier.models.load import load_causal
from luthier.models.lora import adapted, add_lora
from luthier.models.merge_files import files_merge, outputs_from_files, stored_tensors, without_weights
from luthier.models.merging import merge_and_compare, probe, write_and_compare
from luthier.models.packed import pack_base, packing_of
from luthier.schema.recipe import Lora, QLora

METHODS = [Lora(rank=4), Lora(rank=4, rslora=True), Lora(rank=4, dora=True), QLora(rank=4)]


def trained(folder, method, dtype="bfloat16"):
    model = load_causal(folder, dtype=dtype)
    pack_base(model, method)
    add_lora(model, method, seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, layer in adapted(model):
        layer.lora_B.data.normal_(0, 0.1, generator=generator)
        if layer.magnitude is not None:
            layer.magnitude.data *= 1.25
    return model


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("method", METHODS, ids=["lora", "rslora", "dora", "qlora"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_files_hold_what_a_merge_in_memory_saves(tiny, tmp_path, family, method):
    base, streamed, plain = tmp_path / "base", tmp_path / "streamed", tmp_path / "plain"
    tiny(family).save_pretrained(base, max_shard_size="40KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    model = trained(base, method)
    found = files_merge(model, base)
    streamed.mkdir()
    files = found.write(streamed, shard_bytes=30_000)
    index = json.loads((streamed / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert len(files) > 1
    assert all(file.stat().st_size < 60_000 for file in files)
    merge_and_compare(model)
    model.save_pretrained(plain)
    ours, theirs = tensors(streamed), tensors(plain)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert ours[name].dtype == weight.dtype
        assert torch.equal(ours[name], weight), name
    again = {name: stored.read() for name, stored in stored_tensors(streamed).items()}
    assert all(torch.equal(again[name], weight) for name, weight in theirs.items())


def test_a_packed_base_tells_how_far_its_merge_is_without_the_model(tiny, tmp_path):
    tiny("qwen3").save_pretrained(tmp_path / "base")
    model = trained(tmp_path / "base", QLora(rank=4))
    found, before, empty = files_merge(model, tmp_path / "base"), probe(model), without_weights(model)
    assert all(weight.is_meta for weight in empty.parameters())
    out = tmp_path / "merged"
    out.mkdir()
    told = write_and_compare(found, out, packing_of(model), (before, empty), torch.device("cpu"))
    assert told == merge_and_compare(model)
    assert told["largest_difference"] > 0
    assert all(weight.is_meta for weight in empty.parameters())
    spoilt = tensors(out)
    model.config.save_pretrained(out)
    assert torch.equal(outputs_from_files(empty, out, lambda m: probe(m, device="cpu")), probe(model))
    assert spoilt.keys() == tensors(tmp_path / "base").keys()


def test_what_files_cannot_hold_is_merged_in_memory(tiny, tmp_path):
    model = tiny("llama")
    model.save_pretrained(tmp_path)
    add_lora(model, Lora(rank=4))
    assert files_merge(model, tmp_path) is not None
    model.model.embed_tokens.weight.requires_grad_(True)
    assert files_merge(model, tmp_path) is None, "more than adapters was trained"
    model.model.embed_tokens.weight.requires_grad_(False)
    model.model.norm.double()
    assert files_merge(model, tmp_path) is None, "parts in another type"
    model.model.norm.float()
    assert files_merge(model.model, tmp_path) is None, "other names"
    assert files_merge(model, tmp_path / "none") is None
