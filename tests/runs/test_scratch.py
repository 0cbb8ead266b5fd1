"""Models from scratch are made once, whole, whoever is first."""

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
