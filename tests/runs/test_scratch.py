"""Models from scratch are made once, whole, whoever is first."""

import json

import pytest

from luthier.errors import FileProblem
from luthier.files import UNFINISHED
from luthier.hub.cache import room
from luthier.runs import scratch
from luthier.schema.recipe import DataChoice, FromScratch, Full, ModelChoice, Recipe


def recipe_of(folder):
    (folder / "rows.jsonl").write_text('{"text": "abcabc"}\n{"text": "cab"}\n')
    return Recipe(
        task="text-generation",
        model=ModelChoice(
            id="tiny", from_scratch=FromScratch(parameters=20_000, tokenizer="characters", context=32)
        ),
        method=Full(),
        data=DataChoice(train=(str(folder / "rows.jsonl"),)),
    )


def quiet(words):
    pass


def test_two_that_make_the_same_model_at_once_both_have_it_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    recipe, make, second = recipe_of(tmp_path), scratch._make, []

    def meanwhile(recipe, texts, folder):
        """The other process makes all of it while this one has begun."""
        folder.mkdir(parents=True)
        (folder / "begun").write_text("")
        monkeypatch.setattr(scratch, "_make", make)
        second.append(scratch.scratch_model(recipe, say=quiet))
        assert (folder / "begun").is_file()
        (folder / "begun").unlink()
        folder.rmdir()
        make(recipe, texts, folder)

    monkeypatch.setattr(scratch, "_make", meanwhile)
    first = scratch.scratch_model(recipe, say=quiet)
    assert first == second[0]
    assert (first.path / "tokenizer.json").is_file()
    assert [path.name for path in room("models").iterdir()] == [first.path.name]
    assert list(room("models").glob(f"{UNFINISHED}*")) == []


def test_a_given_tokenizer_is_taken_as_it_is_now(tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    made = scratch.scratch_model(recipe_of(tmp_path), say=quiet).path
    given = tmp_path / "given"
    given.mkdir()
    plain = recipe_of(tmp_path)
    choice = plain.model.from_scratch.model_copy(update={"tokenizer": str(given)})
    recipe = plain.model_copy(update={"model": plain.model.model_copy(update={"from_scratch": choice})})
    with pytest.raises(FileProblem, match=r"no tokenizer\.json") as caught:
        scratch.scratch_model(recipe, say=quiet)
    assert "a folder with a tokenizer" in caught.value.hint
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (given / name).write_text((made / name).read_text())
    first = scratch.scratch_model(recipe, say=quiet).path
    words = json.loads((first / "tokenizer.json").read_text())
    assert words == json.loads((made / "tokenizer.json").read_text())
    assert json.loads((first / "config.json").read_text())["vocab_size"] >= 3
    (given / "tokenizer.json").write_text(json.dumps(words, indent=1))
    second = scratch.scratch_model(recipe, say=quiet).path
    assert second != first
    settings = json.loads((given / "tokenizer_config.json").read_text())
    (given / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    third = scratch.scratch_model(recipe, say=quiet).path
    assert third not in (first, second)
    assert json.loads((third / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"
