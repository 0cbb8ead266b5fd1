"""The mappings that docs/data.md shows do what it says, on rows in the form of those data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli.main import main
from luthier.data.load import read_chats
from luthier.data.versions import sources_of
from luthier.schema.load import load_recipe

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)

TOWNS = ["Bern", "Oslo", "Lima", "Riga", "Rome", "Cairo", "Quito", "Dakar", "Minsk", "Sofia"]
SQUAD = [
    {
        "id": f"5733be28{n:04d}",
        "title": f"Town_{n % 5}",
        "context": f"In {1900 + n} the great bridge of {town} was opened. It has {n + 2} arches.",
        "question": f"How many arches has the bridge of {town}?",
        "answers": {"text": [f"{n + 2}", f"{n + 2} arches"], "answer_start": [50, 50]},
    }
    for n, town in enumerate(TOWNS)
]
HELLASWAG = [
    {
        "ind": n,
        "activity_label": "Baking bread",
        "ctx_a": f"A person bakes bread number {n}.",
        "ctx_b": "they",
        "ctx": f"A person bakes bread number {n}. they",
        "endings": ["eat the oven.", f"take bread {n} out.", "paint the wall.", "swim away."],
        "source_id": f"activity~{n}",
        "split": "train",
        "split_type": "indomain",
        "label": "1",
    }
    for n in range(10)
]


def example(name: str, place: Path, rows: list[dict[str, Any]]) -> Path:
    """The page's recipe for a file, and the file."""
    (block,) = [block for block in BLOCKS if f"train: {name}" in block]
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = place / "recipe.yaml"
    recipe.write_text("model: {id: ./model}\n" + block, encoding="utf-8")
    return recipe


def check(recipe: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit) as left:
        main(["data", "check", "--for", str(recipe), "--json"])
    assert not left.value.code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_squad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = example("squad.jsonl", tmp_path, SQUAD)
    recipe = load_recipe(path, ())
    chats, shape, _ = read_chats(recipe.data, recipe.data.train, base=tmp_path)
    assert shape.name == "prompt-completion"
    assert [message["content"] for message in chats[3].messages] == [
        f"{SQUAD[3]['context']}\n\nQuestion: {SQUAD[3]['question']}",
        "5",
    ]
    assert [chat.group for chat in chats] == [row["title"] for row in SQUAD]
    report = check(path, capsys)
    assert (report["read"], report["kept"], report["format"]) == (10, 10, "prompt-completion")


def test_questions_on_one_article_stay_on_one_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.data.scan import Scanner, readings

    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    recipe = load_recipe(example("squad.jsonl", tmp_path, SQUAD), ())
    sources = sources_of(recipe, base=tmp_path)
    splits = Scanner(recipe, sources, *readings(recipe, sources)).splits()
    titles = [{SQUAD[row]["title"] for row in split.rows().tolist()} for split in splits]
    assert len(titles) == 3
    assert all(titles)
    assert sum(map(len, titles)) == len(set.union(*titles)) == 5


def test_hellaswag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = example("hellaswag.jsonl", tmp_path, HELLASWAG)
    recipe = load_recipe(path, ())
    chats, _, _ = read_chats(recipe.data, recipe.data.train, base=tmp_path)
    assert [message["content"] for message in chats[4].messages] == [HELLASWAG[4]["ctx"], "take bread 4 out."]
    assert check(path, capsys)["kept"] == 10


def test_unmapped_they_are_refused_with_a_mapping_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rows in (("squad.jsonl", SQUAD), ("hellaswag.jsonl", HELLASWAG)):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with pytest.raises(SystemExit) as left:
            main(["data", "check", str(path), "--json"])
        assert left.value.code == 4
        (finding,) = [
            one for one in json.loads(capsys.readouterr().out)["findings"] if one["code"] == "unknown-shape"
        ]
        assert "data.columns: {prompt:" in finding["fix"]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_recipe_of_the_page_is_one(block: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {id: a/b}\n" + block, encoding="utf-8")
    assert set(yaml.safe_load(block)) == {"data"}
    assert load_recipe(path, ()).data.train
