"""`luthier data check --for`, `show` and `profile`, as a person calls them and reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from luthier.cli.main import main
from luthier.schema.data import CheckReport, DataProfile
from pictures import png
from tiny import save_tiny_model


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["data", *words])
    return int(left.value.code or 0)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal in which no line of these is broken, however long the folder's name."""
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def chat(question: Any, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def rows(path: Path, found: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found.pop("version") == 1
    return found


def checked(capsys: pytest.CaptureFixture[str]) -> CheckReport:
    return CheckReport.model_validate(said(capsys))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> Path:
    """A folder with a recipe, a model, training rows with faults and test rows, of which one leaks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    shutil.copytree(model, tmp_path / "model")
    picture = [{"type": "text", "text": "And this?"}, {"type": "image_url", "image_url": {"url": "p/1.png"}}]
    found = [chat(f"What is {n} plus {n}?", f"{2 * n}") for n in range(20)]
    found[6]["messages"][1]["content"] = " "
    found[9] = chat("Say much.", "much " * 200)
    found[14] = chat(picture, "A pixel.")
    rows(tmp_path / "train.jsonl", found)
    rows(tmp_path / "test.jsonl", [found[3], chat("Who are you?", "Me.")])
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "1.png").write_bytes(png())
    (tmp_path / "recipe.yaml").write_text(
        "model: {id: ./model}\ndata:\n  train: train.jsonl\n  test: test.jsonl\n"
        "training: {sequence_length: 128}\n"
    )
    return tmp_path


def test_check_for_a_recipe_looks_at_what_the_recipe_will_do(place: Path, capsys) -> None:
    assert call("check", "--for", "recipe.yaml", "--json") == 4
    report = checked(capsys)
    found = {one.code: one for one in report.findings}
    assert (report.read, report.kept) == (20, 18)
    assert report.dropped == {"empty-answer": 1, "holds-images": 1}
    assert found["leakage"].line == 4
    assert found["empty-answer"].line == 7
    assert found["over-length-refused"].line == 10
    assert "128 tokens" in found["over-length-refused"].message
    assert found["holds-images"].line == 15
    assert all(found[code].level == "error" for code in ("leakage", "over-length-refused", "holds-images"))
    assert report.tokens is not None  # counted by the recipe's own model


def test_check_reads_well_on_a_terminal(place: Path, capsys) -> None:
    assert call("check", "--for", "recipe.yaml") == 4
    said = capsys.readouterr().out
    for words in (
        "error [leakage] rows stand in the held-out rows too",
        "at      train.jsonl:4",
        "do      remove them from one side",
        "20 read = 18 kept + 2 dropped (1 empty-answer, 1 holds-images)",
        "checked for",
        "4 errors stop a training",
        "--fix OUT writes the rows that can be used",
    ):
        assert words in said
    assert said.index("error [") < said.index("warning [") if "warning [" in said else True
    assert max(len(line) for line in said.splitlines() if "[" not in line) <= 100
    good = [chat(f"What is {n} times {n}?", f"{n * n}") for n in range(20)]
    rows(place / "train.jsonl", good)
    rows(place / "test.jsonl", [chat("Who are you?", "Me.")])
    assert call("check", "--for", "recipe.yaml") == 0
    assert "nothing stops a training" in capsys.readouterr().out


def test_other_files_and_other_columns_for_a_recipe(place: Path, capsys) -> None:
    rows(place / "other.jsonl", [{"q": f"What is {n}?", "a": f"It is {n}."} for n in range(9)] + [{"q": "x"}])
    text = (place / "recipe.yaml").read_text()
    (place / "recipe.yaml").write_text(text.replace("data:", "data:\n  columns: {prompt: q, completion: a}"))
    assert call("check", "other.jsonl", "--for", "recipe.yaml", "--json") == 4
    report = checked(capsys)
    assert (report.files, report.read, report.dropped) == (("other.jsonl",), 10, {"missing-field": 1})


def test_a_model_that_is_not_there_leaves_the_rest(place: Path, capsys) -> None:
    text = (place / "recipe.yaml").read_text()
    (place / "recipe.yaml").write_text(text.replace("./model", "./gone"))
    assert call("check", "--for", "recipe.yaml") == 4
    both = capsys.readouterr()
    assert "tokens are not counted" in both.err
    assert "[leakage]" in both.out
    assert "[holds-images]" in both.out
    assert "Traceback" not in both.err + both.out


def test_show_names_images_and_what_is_left_out(place: Path, capsys) -> None:
    assert call("show", "train.jsonl", "-n", "15", "--model", "./model") == 0
    both = capsys.readouterr()
    assert "train.jsonl:7" in both.err
    assert "images: p/1.png; a model of text cannot be trained on this row" in both.out
    assert call("show", "train.jsonl", "-n", "15", "--model", "./model", "--json") == 0
    shown = json.loads(capsys.readouterr().out)["rows"]
    assert [row["line"] for row in shown] == [*range(1, 7), *range(8, 17)]
    assert [row["images"] for row in shown if row["images"]] == [["p/1.png"]]
    assert "[image p/1.png]" in "".join(token["text"] for token in shown[13]["tokens"])


def test_profile_says_what_was_left_out(place: Path, capsys) -> None:
    assert call("profile", "train.jsonl", "--json") == 0
    found = DataProfile.model_validate(said(capsys))
    assert (found.read, found.rows, found.dropped) == (20, 19, {"empty-answer": 1})
    assert call("profile", "train.jsonl") == 0
    assert "20 read, the others cannot be used: 1 empty-answer" in capsys.readouterr().out
