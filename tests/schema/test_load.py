"""The YAML door: what it accepts, and what it says when it does not."""

from pathlib import Path

import pytest

from luthier.errors import FileProblem, RecipeError
from luthier.schema.explain import explain_key
from luthier.schema.load import dump_recipe, load_recipe, recipe_from
from luthier.schema.recipe import Full, Lora

GOOD = """\
task: chat
model:
  id: some-org/some-model
method:
  name: lora
  rank: 8
data:
  train: rows.jsonl
"""


def load(tmp_path: Path, text: str, *overrides: str):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return load_recipe(path, overrides)


def refuse(tmp_path: Path, text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return caught.value


def test_reads_and_anchors_paths_to_the_file(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.method == Lora(rank=8)
    assert recipe.data.train == (str(tmp_path / "rows.jsonl"),)
    assert recipe.model.id == "some-org/some-model"


def test_a_relative_model_directory_is_anchored_too(tmp_path: Path) -> None:
    (tmp_path / "some-org" / "some-model").mkdir(parents=True)
    assert load(tmp_path, GOOD).model.id == str(tmp_path / "some-org" / "some-model")


def test_unknown_key_names_line_and_nearest(tmp_path: Path) -> None:
    error = refuse(tmp_path, GOOD.replace("rank", "rnak"))
    assert error.line == 6
    assert error.message == "method.rnak is not a setting of lora"
    assert error.hint == "did you mean rank?"


def test_key_in_the_wrong_section_is_told_where_it_stands(tmp_path: Path) -> None:
    error = refuse(tmp_path, GOOD + "rank: 4\n")
    assert (error.line, error.hint) == (9, "it stands at method.rank")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD.replace("task: chat", "task: chatt"), 1, "'chatt' is not one of"),
        (GOOD.replace("lora", "lroa"), 5, "'lroa' is not one of"),
        (GOOD.replace("rank: 8", "rank: -1"), 6, "greater than or equal to 1"),
        (GOOD + "task: chat\n", 9, "duplicate key"),
        ("model: [\n", 2, "not valid YAML"),
        ("- a\n", 1, "a recipe is a mapping"),
        (GOOD.replace("  id: some-org/some-model", "  revision: main"), 2, "model.id is missing"),
    ],
)
def test_faults_have_line_and_words(tmp_path: Path, text: str, line: int, words: str) -> None:
    error = refuse(tmp_path, text)
    assert words in error.message
    assert error.line == line


def test_overrides_win_and_report_themselves(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "training.epochs=2", "--method.rank=32", "training.learning_rate=1e-4")
    assert recipe.training.epochs == 2
    assert recipe.method == Lora(rank=32)
    assert recipe.training.learning_rate == 1e-4
    error = refuse(tmp_path, GOOD, "training.epochz=2")
    assert error.file == "command line"
    assert error.hint == "did you mean epochs?"


def test_another_method_drops_the_first_ones_settings(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "method.name=full").method == Full()


def test_tilde_drops_a_key_and_a_bare_word_is_refused(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD, "~method.rank").method == Lora()
    assert "has no such key" in refuse(tmp_path, GOOD, "~method.alpha").message
    assert "is not a setting" in refuse(tmp_path, GOOD, "fast").message


def test_names_of_other_tools_are_understood(tmp_path: Path) -> None:
    text = "base_model: a/b\nlora_r: 4\nsequence_len: 512\nnum_epochs: 3\ndata:\n  train: x.jsonl\n"
    recipe = load(tmp_path, text)
    assert (recipe.model.id, recipe.method, recipe.training.sequence_length) == ("a/b", Lora(rank=4), 512)
    assert "twice" in refuse(tmp_path, GOOD + "lora_r: 4\n").message
    assert load(tmp_path, GOOD, "lora_r=5").method == Lora(rank=5)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(FileProblem, match="is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(FileProblem, match="not UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


def test_what_is_written_reads_back_equal(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD, "export.gguf=F16,Q4_K_M", "data.test=held.jsonl")
    assert recipe.export is not None
    assert recipe.export.gguf == ("F16", "Q4_K_M")
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


def test_yaml_1_2_numbers_and_words(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD + "training:\n  learning_rate: 1e-4\nname: no\n")
    assert recipe.training.learning_rate == 1e-4
    assert recipe.name == "no"


def test_python_values_are_checked_alike() -> None:
    assert recipe_from({"model": {"id": "a/b"}, "data": {"train": "/x.jsonl"}}).method == Lora()
    with pytest.raises(RecipeError, match="not a setting of data"):
        recipe_from({"model": {"id": "a/b"}, "data": {"train": "/x.jsonl", "trian": 1}})


def test_explain_key_gives_the_sentence() -> None:
    assert explain_key("lora_r") == ("method.rank", "int", "Rank of each adapter.")
    with pytest.raises(RecipeError):
        explain_key("method.rnak")
