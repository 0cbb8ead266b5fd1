"""Download, resume, pin and find again, against a Hub on the loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import DoesNotFit, FileProblem, GatedModel, ModelNotFound, Unreachable, Unsupported
from luthier.hub.remote import look_up
from luthier.hub.snapshot import download, resolve_model
from luthier.hub.store import PART

ID = "acme/tiny"
WEIGHTS = bytes(range(256)) * 800
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n# Tiny\n",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"x" * 99,
    "original/consolidated.00.pth": b"x" * 99,
    "tokenizer.json": b"{}",
}


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny files meet huggingface_hub's block of 10 MB, below which it keeps nothing of a broken transfer."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


def test_only_needed_files_come_and_the_commit_is_pinned(hub: Any) -> None:
    commit = hub.add(ID, FILES, card={"license": "apache-2.0"})
    told: list[tuple[int, int]] = []
    model = look_up(ID)
    assert (model.revision, model.asked, model.licence) == (commit, "main", "apache-2.0")
    assert [f.path for f in model.files] == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert model.missing_bytes == model.bytes == sum(len(FILES[f.path]) for f in model.files)
    got = download(model, progress=lambda done, total: told.append((done, total)))
    assert (got.id, got.revision, got.licence) == (ID, commit, "apache-2.0")
    assert sorted(p.name for p in got.path.iterdir()) == sorted(f.path for f in model.files)
    assert (got.path / "model.safetensors").read_bytes() == WEIGHTS
    assert told[-1] == (model.bytes, model.bytes)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert model.missing_bytes == 0


def test_the_second_time_nothing_is_transferred(hub: Any) -> None:
    hub.add(ID, FILES)
    first = download(look_up(ID))
    hub.asked.clear()
    assert download(look_up(ID)) == first
    assert [(m, p) for m, p, _ in hub.asked] == [("GET", f"/api/models/{ID}")]


def test_a_dropped_connection_is_taken_up_within_the_call(hub: Any) -> None:
    hub.add(ID, FILES)
    hub.cut["model.safetensors"] = [50_000, 60_000]
    got = download(look_up(ID))
    assert (got.path / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.sent("model.safetensors") == [None, "bytes=50000-", "bytes=110000-"]


def test_a_transfer_that_broke_off_goes_on_in_the_next_call(hub: Any) -> None:
    hub.add(ID, FILES)
    hub.cut["model.safetensors"] = [70_000] + [0] * 6
    model = look_up(ID)
    with pytest.raises(Unreachable) as caught:
        download(model)
    assert "luthier get" in str(caught.value.hint) or "connection" in str(caught.value.hint)
    parts = list(Path(os.environ["HF_HUB_CACHE"]).rglob(f"*{PART}"))
    assert [p.stat().st_size for p in parts] == [70_000]
    with pytest.raises(ModelNotFound):
        resolve_model(ID)
    assert model.missing_bytes <= model.bytes - 70_000
    hub.asked.clear()
    hub.cut.clear()
    got = download(model)
    assert hub.sent("model.safetensors") == ["bytes=70000-"]
    assert (got.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not list(Path(os.environ["HF_HUB_CACHE"]).rglob(f"*{PART}"))


def test_changed_content_is_refused_and_thrown_away(hub: Any) -> None:
    hub.add(ID, FILES)
    hub.wrong["model.safetensors"] = b"y" * len(WEIGHTS)
    with pytest.raises(Unreachable, match="SHA-256"):
        download(look_up(ID))
    assert not list(Path(os.environ["HF_HUB_CACHE"]).rglob(f"*{PART}"))
    with pytest.raises(ModelNotFound):
        resolve_model(ID)


def test_a_revision_is_a_name_or_a_commit(hub: Any) -> None:
    old = hub.add(ID, FILES, ref="v1")
    new = hub.add(ID, {**FILES, "config.json": b'{"model_type": "qwen3"}'})
    assert look_up(ID, revision="v1").revision == old
    assert look_up(ID, revision=old).revision == old
    assert look_up(ID).revision == new
    download(look_up(ID, revision="v1"))
    download(look_up(ID))
    assert resolve_model(ID).revision == new
    assert resolve_model(ID, revision="v1").revision == old
    assert resolve_model(ID, revision=old[:7]).revision == old
    with pytest.raises(ModelNotFound, match="v2") as caught:
        look_up(ID, revision="v2")
    assert caught.value.hint == "it has v1, main"


def test_an_unchanged_file_of_a_new_revision_is_not_fetched_again(hub: Any) -> None:
    hub.add(ID, FILES)
    download(look_up(ID))
    hub.add(ID, {**FILES, "config.json": b'{"model_type": "qwen3"}'})
    hub.asked.clear()
    model = look_up(ID)
    assert model.missing_bytes < len(WEIGHTS)
    download(model)
    assert hub.sent("model.safetensors") == []


def test_a_gated_model_gives_page_and_login_before_any_file(
    hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, FILES, gated="manual", members={"hf_tests_member"})
    with pytest.raises(GatedModel) as caught:
        look_up(ID)
    assert f"{hub.address}/{ID}" in caught.value.hint
    assert "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_tests_stranger")
    with pytest.raises(GatedModel, match="your account") as caught:
        look_up(ID)
    assert "hf_tests" not in str(caught.value) + caught.value.hint
    assert not [p for _, p, _ in hub.asked if "resolve" in p]
    monkeypatch.setenv("HF_TOKEN", "hf_tests_member")
    assert download(look_up(ID)).path.is_dir()


def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add(ID, FILES, gated="auto", members={"hf_tests_member"})
    monkeypatch.setenv("HF_TOKEN", "hf_tests_member")
    download(look_up(ID))
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if b"hf_tests_member" in p.read_bytes()]
    sent = [h.get("authorization") for _, p, h in hub.asked if p.startswith("/api/")]
    assert sent == ["Bearer hf_tests_member"] * len(sent)
    assert [h.get("authorization") for _, p, h in hub.asked if p.startswith("/cdn/")] == [None]


def test_requests_name_luthier_and_nothing_of_the_machine(hub: Any) -> None:
    hub.add(ID, FILES)
    download(look_up(ID))
    agents = {h.get("user-agent", "") for _, _, h in hub.asked}
    assert all(agent.startswith("luthier/") for agent in agents)


def test_an_unknown_model_has_its_nearest_names(hub: Any) -> None:
    with pytest.raises(ModelNotFound, match="no model acme/tini") as caught:
        look_up("acme/tini", known=["acme/tiny", "acme/large"])
    assert "did you mean acme/tiny" in caught.value.hint
    with pytest.raises(ModelNotFound, match="not the id"):
        look_up("no spaces allowed")


def test_no_network_gives_every_way_out(monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:secret@127.0.0.1:9")
    with pytest.raises(Unreachable) as caught:
        look_up(ID)
    assert "secret" not in str(caught.value) + caught.value.hint
    for way in ("HTTPS_PROXY", "HF_ENDPOINT", "folder", "package index"):
        assert way in caught.value.hint


def test_a_slip_is_told_also_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    known = ["acme/tiny-model", "other/large"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        with pytest.raises(Unreachable) as caught:
            look_up("acme/tiny-modle", known=known)
        assert caught.value.hint.startswith("did you mean acme/tiny-model? Otherwise check the connection")
        for right in ("acme/tiny-model", "someone/else"):
            with pytest.raises(Unreachable) as caught:
                look_up(right, known=known)
            assert "did you mean" not in caught.value.hint


@pytest.mark.parametrize(("status", "kind"), [(500, Unreachable), (429, Unreachable), (403, GatedModel)])
def test_a_hub_that_answers_with_an_error(hub: Any, status: int, kind: type[Exception]) -> None:
    hub.add(ID, FILES)
    hub.status = status
    with pytest.raises(kind, match=str(status)):
        look_up(ID)


def test_offline_asks_nobody(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ID, FILES)
    got = download(look_up(ID))
    hub.asked.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match="HF_HUB_OFFLINE"):
        look_up(ID)
    assert resolve_model(ID) == got
    assert hub.asked == []


def test_not_enough_disk_is_said_before_the_first_byte(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(ID, FILES)
    model = look_up(ID)
    monkeypatch.setattr("luthier.hub.cache.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(DoesNotFit, match=r"204\.9 kB of disk and 1\.0 kB are free"):
        download(model)
    assert hub.sent("model.safetensors") == []


def test_gguf_alone_cannot_be_tuned(hub: Any) -> None:
    hub.add("acme/gguf", {"tiny.gguf": b"GGUF", "README.md": b""}, card={"base_model": ID})
    with pytest.raises(Unsupported, match="GGUF") as caught:
        look_up("acme/gguf")
    assert ID in caught.value.hint


def test_folders_are_models_too(tmp_path: Path, hub: Any) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    with pytest.raises(FileProblem, match=r"no config\.json"):
        resolve_model(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(FileProblem, match="adapter"):
        resolve_model(str(folder))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_bytes(FILES["README.md"])
    got = resolve_model(str(folder))
    assert (got.path, got.id, got.revision, got.licence) == (folder, "saved", None, "apache-2.0")
    with pytest.raises(FileProblem, match="no such folder"):
        resolve_model("./missing")


def test_an_unknown_name_tells_the_command_that_fetches_it(hub: Any) -> None:
    with pytest.raises(ModelNotFound) as caught:
        resolve_model("acme/tini", revision="v1", known=[ID])
    assert "luthier get acme/tini --revision v1" in caught.value.hint
    assert f"did you mean {ID}" in caught.value.hint


def test_what_another_program_fetched_is_found_if_it_is_whole(hub: Any) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.add(ID, FILES, card={"license": "mit"})
    snapshot_download(ID, cache_dir=os.environ["HF_HUB_CACHE"], endpoint=hub.address)
    got = resolve_model(ID)
    assert (got.revision, got.licence) == (commit, "apache-2.0")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (got.path / "model.safetensors").unlink()
    (got.path / "model-00001-of-00002.safetensors").write_bytes(b"x")
    (got.path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotFound):
        resolve_model(ID)


def test_a_file_that_shrank_on_disk_is_not_a_model(hub: Any) -> None:
    hub.add(ID, FILES)
    got = download(look_up(ID))
    blob = (got.path / "model.safetensors").resolve()
    blob.write_bytes(b"torn")
    with pytest.raises(ModelNotFound):
        resolve_model(ID)


def test_a_killed_download_goes_on(hub: Any, tmp_path: Path) -> None:
    hub.add(ID, FILES)
    hub.cut["model.safetensors"] = [90_000]
    code = (
        "import os, signal\n"
        "from huggingface_hub import constants\n"
        "constants.DOWNLOAD_CHUNK_SIZE = 10_000\n"
        "from luthier.hub.remote import look_up\n"
        "from luthier.hub.snapshot import download\n"
        "def tell(done, total):\n"
        "    if done >= 80_000: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"download(look_up({ID!r}), progress=tell)\n"
    )
    child = subprocess.run([sys.executable, "-c", code], env=os.environ, timeout=60, check=False)
    assert child.returncode == -9
    assert not [h for _, _, h in hub.asked if "torch" in h.get("user-agent", "")]
    hub.cut.clear()
    hub.asked.clear()
    got = download(look_up(ID))
    assert (got.path / "model.safetensors").read_bytes() == WEIGHTS
    (taken_up,) = hub.sent("model.safetensors")
    assert int(taken_up.removeprefix("bytes=").removesuffix("-")) >= 70_000
