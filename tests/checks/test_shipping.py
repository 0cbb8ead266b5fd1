"""Merged weights and adapters become GGUF files that are whole, sized as said, and not made twice."""

import json
import os
from types import SimpleNamespace

import pytest
import torch

from luthier.checks.parity import check_parity, expect
from luthier.checks.parity_prompts import PromptCase
from luthier.errors import DoesNotFit, FileProblem, ToolchainError, Unsupported
from luthier.exporting import gguf as export_module
from luthier.exporting.gguf import export_gguf
from luthier.exporting.space import largest_gguf_size
from luthier.llamacpp.convert import convert, convert_adapter
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings
from luthier.serving.chat import ChatSession

CHAT = [{"role": "user", "content": "How much is the old boat?"}]


@pytest.fixture
def merged(saved, tmp_path):
    """A folder of its own with a saved tiny model."""
    folder = tmp_path / "run" / "artifacts" / "merged"
    folder.mkdir(parents=True)
    for item in saved("llama").iterdir():
        (folder / item.name).symlink_to(item)
    return folder


def export(merged, types, said=None):
    run = merged.parents[1]
    say = (lambda words: None) if said is None else said.append
    return export_gguf(merged, run / "artifacts", types, name="tiny", relative_to=run, say=say)


def test_export_writes_each_type_once(merged, converter):
    out, said = merged.parent, []
    q8, q4 = export(merged, ["Q8_0", "Q4_K_M"], said)
    assert [artifact.kind for artifact in (q8, q4)] == ["gguf:Q8_0", "gguf:Q4_K_M"]
    assert q4.path == "artifacts/tiny-Q4_K_M.gguf"
    for artifact in (q8, q4):
        size = (merged.parents[1] / artifact.path).stat().st_size
        assert size == artifact.bytes == artifact.predicted_bytes
        assert size <= largest_gguf_size(merged, artifact.kind.split(":")[1])
    names = {"tiny-Q8_0.gguf", "tiny-Q4_K_M.gguf", "gguf.json", "gguf.log", "merged"}
    assert {path.name for path in out.iterdir()} == names

    before = {path: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    (merged / "README.md").write_text("a card changes nothing about the weights")
    (out / ".intermediate-tiny-F16.gguf").write_text("left by a kill")
    said.clear()
    again = export(merged, ["Q8_0", "Q4_K_M"], said)
    assert again == [q8, q4]
    assert said == ["Q8_0: kept from before", "Q4_K_M: kept from before"]
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.gguf")} == before
    assert not (out / ".intermediate-tiny-F16.gguf").exists()

    damaged = out / "tiny-Q8_0.gguf"
    with damaged.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"rot")
    said.clear()
    _, f16 = export(merged, ["Q8_0", "F16"], said)
    assert [words.partition(":")[0] for words in said] == ["F16", "Q8_0"]
    assert f16.bytes <= largest_gguf_size(merged, "F16")
    assert json.loads((out / "gguf.json").read_text())["Q8_0"]["sha256"] == q8.sha256


class StartedError(Exception):
    """A conversion was begun."""


def no_conversion(*arguments, **settings):
    raise StartedError


def test_other_weights_make_other_files(merged, converter, monkeypatch):
    export(merged, ["Q8_0"])
    monkeypatch.setattr(export_module, "convert", no_conversion)
    export(merged, ["Q8_0"])
    config = merged / "generation_config.json"
    words = config.read_text()
    config.unlink()
    config.write_text(words.replace("{", '{"temperature": 0.5, "do_sample": true, ', 1))
    with pytest.raises(StartedError):
        export(merged, ["Q8_0"])


def test_refusals_come_before_any_work(merged, converter, monkeypatch):
    with pytest.raises(Unsupported, match="no GGUF type Q9"):
        export(merged, ["Q9"])
    monkeypatch.setattr(export_module, "convert", no_conversion)
    monkeypatch.setattr("luthier.exporting.space.shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DoesNotFit, match="GB are free"):
        export(merged, ["Q8_0"])


def test_chat_keeps_its_history(converted):
    with ChatSession(
        converted("llama"), system="Be brief.", settings=ServerSettings(context=512, threads=1)
    ) as session:
        first = "".join(session.answer("Hello", max_new_tokens=6))
        assert [turn["role"] for turn in session.history] == ["system", "user", "assistant"]
        assert session.history[-1]["content"] == first
        answer = session.answer("More", max_new_tokens=50)
        next(answer)
        answer.close()
        assert len(session.history) == 5
        session.reset()
        assert session.history == [{"role": "system", "content": "Be brief."}]
        assert "".join(session.answer("Hello", max_new_tokens=6)) == first


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_on_its_base_answers_like_the_merged_model(rslora, saved, converted, reference, tmp_path):
    peft = pytest.importorskip("peft")
    trained = reference("llama")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=rslora)
    model = peft.get_peft_model(trained.model, config)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(tmp_path / "adapter")
    plain = expect(trained, [PromptCase("a", CHAT)], max_new_tokens=12)
    trained.model = model.merge_and_unload()
    expected = expect(trained, [PromptCase("a", CHAT)], max_new_tokens=12)
    out = tmp_path / "adapter.gguf"
    convert_adapter(tmp_path / "adapter", saved("llama"), out, outtype="f32")
    assert read_header(out).get("general.type") == "adapter"
    settings = ServerSettings(context=512, threads=1, adapters=((str(out), 1.0),))
    with LlamaServer(converted("llama"), settings) as server:
        found = check_parity(expected, GgufGenerator(server, "gguf:F16", "-"))
    assert found.passed, found.problems
    assert found.mean_kl < 1e-4
    assert plain[0].top_log_probs[0].tolist() != expected[0].top_log_probs[0].tolist()


def test_what_a_gguf_adapter_cannot_hold_is_refused(tmp_path, converter):
    for key, value in (("use_dora", True), ("alpha_pattern", {"q_proj": 3})):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, key: value}))
        with pytest.raises(Unsupported) as caught:
            convert_adapter(tmp_path, tmp_path, tmp_path / "o.gguf", using=converter)
        assert "merged" in caught.value.hint


def test_cross_encoders_are_refused_with_the_reason(tmp_path, converter):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClassification"]}')
    with pytest.raises(Unsupported, match="drops BERT's pooler") as caught:
        convert(tmp_path, tmp_path / "o.gguf", using=converter)
    assert "ONNX" in caught.value.hint


def test_unknown_architectures_and_empty_folders_are_named(saved, tmp_path, converter):
    with pytest.raises(FileProblem, match="no such file"):
        convert(tmp_path, tmp_path / "o.gguf", using=converter)
    folder = tmp_path / "strange"
    folder.mkdir()
    for item in saved("llama").iterdir():
        (folder / item.name).symlink_to(item)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["StrangeForCausalLM"]}))
    with pytest.raises(ToolchainError) as caught:
        convert(folder, tmp_path / "o.gguf", using=converter)
    assert "no converter for this architecture" in caught.value.hint
    assert not list(tmp_path.glob("*.gguf*"))


def test_code_that_comes_with_a_model_does_not_run(saved, tmp_path, converter):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for item in saved("llama").iterdir():
        (folder / item.name).symlink_to(item)
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Tok: pass\n")
    for name, entry in (("tokenizer_config.json", ["evil.Tok", None]), ("config.json", "evil.Tok")):
        values = json.loads((folder / name).read_text())
        (folder / name).unlink()
        key = "AutoTokenizer" if isinstance(entry, list) else "AutoConfig"
        (folder / name).write_text(json.dumps({**values, "auto_map": {key: entry}}))
    convert(folder, tmp_path / "o.gguf", using=converter)
    assert not ran.exists()
