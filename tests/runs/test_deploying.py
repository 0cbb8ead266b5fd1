"""A run's model made ready for each runtime: whole, sized, replaced and taken back."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from llamacpp.conftest import CHATML, speaking
from luthier.errors import DoesNotFit, FileProblem, Unsupported, UsageError
from luthier.exporting.files import artifact_of
from luthier.runs.deploying import (
    Wish,
    deploy,
    deployments_root,
    find_deployment,
    list_deployments,
    remove_deployment,
)
from luthier.runs.directory import RunDirectory
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe

pytest.importorskip("xllamacpp", reason="pip install 'luthier[export]'")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run with one GGUF and the tokenizer of its base."""
    monkeypatch.setenv("LUTHIER_DEPLOYMENTS", str(tmp_path / "deployments"))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return finished(tmp_path)


def finished(folder: Path, template: str = CHATML) -> RunDirectory:
    from tokenizers import Tokenizer, models

    base = folder / "base"
    base.mkdir(parents=True)
    words = {chr(n): n for n in range(256)} | {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258}
    Tokenizer(models.WordLevel(words, unk_token="a")).save(str(base / "tokenizer.json"))
    (base / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "chat_template": template})
    )
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.3, "eos_token_id": 258}))
    recipe = Recipe(name="demo", model=ModelChoice(id="/m"), data=DataChoice(train=("/a.jsonl",)))
    run = RunDirectory.create(recipe, root=folder / "runs")
    out = run.path / "artifacts"
    out.mkdir()
    file = speaking(out / "demo-F16.gguf")
    (out / "LICENSE").write_text("terms")
    made = artifact_of(file, "gguf:F16", relative_to=run.path)
    run.save_stage("artifacts", "", [made.model_dump(mode="json")])
    run.save_stage("model", "", {"path": str(base), "id": "/m", "system": "Be brief."})
    return run


def quiet(words):
    pass


def test_a_folder_has_all_that_three_runtimes_need_and_answers(run):
    made = deploy(run, Wish("folder", slots=2), say=quiet)
    folder = deployments_root() / "demo"
    assert {p.name for p in folder.iterdir()} == {
        "demo-F16.gguf", "Modelfile", "lmstudio.json", "llama-server.sh", "LICENSE", "SHA256SUMS",
        "deployment.json",
    }  # fmt: skip
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    text = (folder / "Modelfile").read_text()
    assert "<|im_start|>user\n{{ .Content }}<|im_end|>" in text
    assert f"PARAMETER num_ctx {made.plan.context}\n" in text
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER temperature 0.3\n' in text
    assert 'SYSTEM """Be brief."""' in text
    assert '"""terms"""' in text
    fields = json.loads((folder / "lmstudio.json").read_text())["load"]["fields"]
    assert {f["key"]: f["value"] for f in fields}["llm.load.contextLength"] == 2 * made.plan.context
    words = (folder / "llama-server.sh").read_text()
    assert f"--ctx-size {2 * made.plan.context}" in words
    assert os.access(folder / "llama-server.sh", os.X_OK)
    assert made.smoke is not None
    assert made.smoke.memory
    assert find_deployment("demo") == made


def test_one_of_the_same_name_is_replaced_and_removing_leaves_the_run(run):
    deploy(run, Wish("llama.cpp", context=256), say=quiet)
    deploy(run, Wish("llama.cpp", context=300), say=quiet)
    assert [one.plan.context for one in list_deployments()] == [300]
    remove_deployment("demo")
    assert list_deployments() == []
    assert (run.path / "artifacts" / "demo-F16.gguf").is_file()
    assert list(deployments_root().iterdir()) == []
    with pytest.raises(UsageError, match="no deployment 'demo'"):
        find_deployment("demo")


def test_one_for_another_target_leaves_the_first_where_it_is(run):
    first = deploy(run, Wish("ollama"), say=quiet)
    bundle = deploy(run, Wish("bundle"), say=quiet)
    assert (first.name, bundle.name) == ("demo", "demo-bundle")
    assert find_deployment("demo") == first
    assert "NAME='demo'" in (deployments_root() / "demo-bundle" / "install.sh").read_text()
    assert deploy(run, Wish("bundle"), say=quiet).name == "demo-bundle"
    with pytest.raises(UsageError, match="demo is a deployment for ollama") as refused:
        deploy(run, Wish("bundle", "demo"), say=quiet)
    assert "luthier deployments rm demo" in (refused.value.hint or "")
    assert {one.name for one in list_deployments()} == {"demo", "demo-bundle"}


def test_without_ollama_the_step_is_said(run):
    made = deploy(run, Wish("ollama"), say=quiet)
    assert "ollama create demo -f Modelfile" in made.steps[0]
    assert "nothing was imported" in made.notes[0]


def test_a_template_that_ollama_cannot_hold(run, tmp_path):
    other = finished(
        tmp_path / "other", "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(Unsupported, match="text around turns"):
        deploy(other, Wish("ollama"), say=quiet)
    made = deploy(other, Wish("folder"), say=quiet, dry_run=True)
    assert "no Modelfile" in made.notes[0]


def test_what_cannot_be_is_refused_before_anything_is_written(run):
    with pytest.raises(DoesNotFit):
        deploy(run, Wish("folder", hardware="cpu:0.0001GB"), say=quiet)
    with pytest.raises(UsageError, match="no merged weights"):
        deploy(run, Wish("vllm"), say=quiet)
    with pytest.raises(UsageError, match="q9_0"):
        deploy(run, Wish("folder", cache_type="q9_0"), say=quiet)
    with pytest.raises(UsageError, match="name of a folder"):
        deploy(run, Wish("folder", name="../x"), say=quiet)
    file = run.path / "artifacts" / "demo-F16.gguf"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(FileProblem, match="has changed"):
        deploy(run, Wish("folder"), say=quiet)
    assert list_deployments() == []
    assert not deployments_root().exists() or list(deployments_root().iterdir()) == []


def installed(folder, home, *words, answer=""):
    return subprocess.run(
        ["sh", "install.sh", *words],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        input=answer,
        capture_output=True,
        text=True,
    )


def test_a_bundle_asks_checks_installs_and_goes_again(run, tmp_path):
    deploy(run, Wish("bundle"), say=quiet)
    folder, home = deployments_root() / "demo", tmp_path / "somebody"
    home.mkdir()
    assert installed(folder, home, answer="n\n").returncode == 1
    assert list(home.rglob("*.gguf")) == []
    assert installed(folder, home, "lmstudio", "--yes").returncode == 0
    place = home / ".lmstudio/models/luthier/demo/demo-F16.gguf"
    assert place.read_bytes() == (folder / "demo-F16.gguf").read_bytes()
    config = home / ".lmstudio/.internal/user-concrete-model-default-config/luthier/demo/demo-F16.gguf.json"
    assert config.read_bytes() == (folder / "lmstudio.json").read_bytes()
    assert installed(folder, home, "--uninstall", "--yes").returncode == 0
    assert list(home.rglob("demo*.*")) == []
    assert installed(folder, home, "--nonsense").returncode == 2
    file = folder / "demo-F16.gguf"
    raw = file.read_bytes()
    file.unlink()
    file.write_bytes(raw[:-1] + b"x")
    broken = installed(folder, home, "llama.cpp", "--yes")
    assert broken.returncode == 1
    assert "damaged" in broken.stderr
    powershell = (folder / "install.ps1").read_bytes()
    assert b"\r\n" in powershell
    assert b"$Sha256 = '" in powershell
