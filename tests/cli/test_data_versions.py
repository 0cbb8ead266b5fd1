"""Versions of a data set on the command line: add, change, compare, and be told of what leaks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", *words])
    return int(left.value.code or 0)


def rows(path: Path, found: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in found]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


TRAIN = [(f"What is question {n}?", f"It is answer {n}.") for n in range(30)]
TEST = [(f"And what is case {n}?", f"It is case {n}.") for n in range(5)]


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no line of these is broken."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LUTHIER_DATASETS", raising=False)
    rows(tmp_path / "train.jsonl", TRAIN)
    rows(tmp_path / "test.jsonl", TEST)
    (tmp_path / "recipe.yaml").write_text(
        "model: {id: a/b}\ndata: {name: faq, train: train.jsonl, test: test.jsonl, validation_share: 0}\n"
    )
    return tmp_path


def change(place: Path) -> None:
    """One row changed, one gone, two new, of which one is a row of the earlier test split."""
    found = [(TRAIN[0][0], "It is another answer."), *TRAIN[1:29], ("A new one?", "Yes."), TEST[2]]
    rows(place / "train.jsonl", found)


def said_json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_versions_on_the_terminal(place: Path, capsys) -> None:
    assert call("ls") == 0
    assert "no data set in" in capsys.readouterr().out
    assert call("add", "recipe.yaml") == 0
    said = capsys.readouterr().out
    assert "(new): 30 train, 5 test rows" in said
    old = said.split()[0]
    assert old.startswith("faq@")
    assert call("add", "recipe.yaml") == 0
    assert f"{old} (known already)" in capsys.readouterr().out
    change(place)
    assert call("add", "recipe.yaml") == 0
    said = capsys.readouterr().out
    assert "(new): 31 train, 5 test rows" in said
    assert f"1 row of {old}/test stands in its training rows: scores there prove nothing" in said
    new = said.split()[0]
    assert new != old
    assert call("ls") == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "faq" in line]
    assert row == ["faq", "2", new.removeprefix("faq@"), "36"]
    assert call("versions", "faq") == 0
    said = capsys.readouterr().out
    assert said.index(old.removeprefix("faq@")) < said.index(new.removeprefix("faq@"))
    assert f"1 of {old.removeprefix('faq@')}/test" in said
    assert call("diff", old[:10], "faq") == 0
    said = capsys.readouterr().out
    assert f"{old} to {new}: 33 rows kept" in said
    words = " ".join(said.split())
    assert re.search(r"added 2 \(train.jsonl:30, 31\) removed", words)
    assert re.search(r"removed 1 \(train.jsonl:30\) changed 1 \(train.jsonl:1\) moved 0", words)
    assert "1 row of the old test split stands in the new training rows" in words


def test_versions_as_json(place: Path, capsys) -> None:
    assert call("add", "recipe.yaml", "--json") == 0
    old = said_json(capsys)
    assert (old["name"], old["new"], old["rows"]) == ("faq", True, {"train": 30, "test": 5})
    change(place)
    assert call("add", "recipe.yaml", "--fix", "spelling", "--json") == 0
    new = said_json(capsys)
    assert new["leaks"] == {f"{old['version']}/test": 1}
    assert new["fixes"] == ["spelling"]
    assert call("ls", "--json") == 0
    assert [one["version"] for one in said_json(capsys)["faq"]] == [old["version"], new["version"]]
    assert call("versions", "faq", "--json") == 0
    assert [one["version"] for one in said_json(capsys)] == [old["version"], new["version"]]
    assert call("diff", f"faq@{old['version']}", f"faq@{new['version']}", "--json") == 0
    found = said_json(capsys)
    assert {key: found[key] for key in ("kept", "added", "removed", "changed", "moved", "leaks")} == {
        "kept": 33, "added": 2, "removed": 1, "changed": 1, "moved": 0, "leaks": {"test": 1},
    }  # fmt: skip
    assert found["samples"]["changed"] == [f"{place}/train.jsonl:1"]


def test_names_that_are_not_known_are_refused(place: Path, capsys) -> None:
    assert call("add", "train.jsonl") == 2
    assert "a version needs a name" in capsys.readouterr().err
    assert call("add", "train.jsonl", "--name", "faq") == 0
    capsys.readouterr()
    assert call("versions", "fag") == 2
    assert "faq" in capsys.readouterr().err
    assert call("diff", "faq@ffff", "faq") == 2
    assert "Traceback" not in capsys.readouterr().err
