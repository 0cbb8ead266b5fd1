"""Folders that are models, and all that are not."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import FileProblem, ModelNotFound, Unsupported
from luthier.models.adapter_files import save_adapter
from luthier.models.embedded import CONTEXT, DONE, NAME, convert
from luthier.models.load import load_causal, weights_digest
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora


@pytest.fixture
def saved(tiny, tmp_path):
    directory = tmp_path / "model"
    tiny("qwen3").save_pretrained(directory)
    return directory


def test_loads_in_the_type_asked_for(tiny, saved, capfd):
    for dtype, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_causal(saved, dtype=dtype)
        assert {weight.dtype for weight in model.parameters()} == {expected}
        assert not model.training
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_causal(saved, dtype="float32")(ids).logits, tiny("qwen3")(ids).logits)
    assert capfd.readouterr() == ("", ""), "loading is quiet"


def test_what_is_no_model_is_said(tiny, saved, tmp_path):
    with pytest.raises(ModelNotFound, match="no such folder"):
        load_causal(tmp_path / "nowhere", dtype="float32")
    with pytest.raises(FileProblem, match=r"config.json is missing"):
        load_causal(tmp_path, dtype="float32")
    adapter = tiny("llama")
    add_lora(adapter, Lora(rank=2), seed=0)
    save_adapter(adapter, tmp_path / "adapter", base_id="x", lora=Lora(rank=2))
    with pytest.raises(FileProblem) as error:
        load_causal(tmp_path / "adapter", dtype="float32")
    assert "base model" in (error.value.hint or "")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileProblem, match="weights are missing"):
        load_causal(saved, dtype="float32")
    (saved / "config.json").write_text("{")
    with pytest.raises(FileProblem, match="JSON"):
        load_causal(saved, dtype="float32")


def test_weights_are_never_made_up(saved):
    file = saved / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(FileProblem, match=r"1 weights .*model.layers.1.mlp.up_proj.weight"):
        load_causal(saved, dtype="float32")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FileProblem, match="cannot be loaded"):
        load_causal(saved, dtype="float32")


def change(directory, **values):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **values}))


def test_unknown_and_unsuited_architectures(saved):
    change(saved, model_type="no-such-thing")
    with pytest.raises(Unsupported, match="does not know the architecture 'no-such-thing'"):
        load_causal(saved, dtype="float32")
    change(saved, model_type="vit")
    with pytest.raises(Unsupported, match="vit is not a causal language model"):
        load_causal(saved, dtype="float32")


def test_code_in_the_folder_does_not_run(saved):
    change(
        saved, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}
    )
    (saved / "own.py").write_text("raise SystemExit('ran')")
    with pytest.raises(Unsupported, match="needs Python code") as error:
        load_causal(saved, dtype="float32")
    assert "trust_remote_code: true" in (error.value.hint or "")


def test_digest_names_the_weights(saved, tmp_path):
    cache = tmp_path / "cache" / "digests.json"
    first = weights_digest(saved, cache=cache)
    assert weights_digest(saved) == first
    assert first in cache.read_text()
    # From the cache: the file's content is not looked at while size and time are the same.
    file = saved / "model.safetensors"
    known = json.loads(cache.read_text())
    cache.write_text(json.dumps(dict.fromkeys(known, "remembered")))
    assert weights_digest(saved, cache=cache) == "remembered"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert weights_digest(saved, cache=cache) not in ("remembered", first)
    shutil.copy(file, saved / "model-2.safetensors")
    assert len(weights_digest(saved)) == 64
    with pytest.raises(FileProblem):
        weights_digest(tmp_path)


def test_two_runs_remember_a_digest_at_once(saved, tmp_path, monkeypatch):
    """Both start on one model: the other one's cache is written just before this one's takes its place."""
    cache, replace = tmp_path / "digests.json", Path.replace

    def late(self, target):
        monkeypatch.setattr(Path, "replace", replace)
        assert weights_digest(saved, cache=cache)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    assert weights_digest(saved, cache=cache) in cache.read_text()
    assert [path.name for path in tmp_path.glob("*digests*")] == ["digests.json"]


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs gguf")
def test_a_gguf_becomes_a_folder_once(tmp_path, monkeypatch, write_tiny_gguf):
    source = write_tiny_gguf(tmp_path / "Tiny.F16.gguf")
    out = convert(source, tmp_path / "out", name=NAME)
    model = load_causal(out, dtype="float32")
    assert model.config.num_hidden_layers == 1
    config = (out / "config.json").read_text()
    assert json.loads(config)["_model_name_or_path"] == NAME
    assert json.loads((out / "tokenizer_config.json").read_text())["model_max_length"] == CONTEXT
    for file in out.glob("*.json"):
        assert str(tmp_path) not in file.read_text()
    from luthier.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(out)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("10")] == ["1", "0"], (
        "digits are split one by one"
    )
    stamp = (out / "config.json").stat().st_mtime_ns
    assert convert(source, out) == out
    assert (out / "config.json").stat().st_mtime_ns == stamp
    (out / DONE).unlink()
    convert(source, out)
    assert (out / DONE).is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out")) == ["out"]
    with pytest.raises(FileProblem):
        convert(Path("nothing.gguf"), tmp_path / "other")
    assert not (tmp_path / "other.part").exists()
