"""Exports in a folder of one's own: whole, checked, beside their papers."""

import subprocess

import pytest

from luthier.errors import FileProblem, UsageError
from luthier.exporting.files import artifact_of
from luthier.runs.directory import RunDirectory
from luthier.runs.handout import hand_out, kinds_of
from luthier.schema.load import export_from
from luthier.schema.recipe import DataChoice, ModelChoice, Recipe


@pytest.fixture
def run(tmp_path):
    recipe = Recipe(name="demo", model=ModelChoice(id="/m"), data=DataChoice(train=("/a.jsonl",)))
    made = RunDirectory.create(recipe, root=tmp_path / "runs")
    out = made.path / "artifacts"
    (out / "merged").mkdir(parents=True)
    for name in ("demo-F16.gguf", "LICENSE", "README.md", "notes.txt", "merged/model.safetensors"):
        (out / name).write_text(name)
    return made


def artifacts(run):
    found = {"gguf:F16": "demo-F16.gguf", "merged": "merged"}
    return [
        artifact_of(run.path / "artifacts" / path, kind, relative_to=run.path) for kind, path in found.items()
    ]


def test_files_folders_papers_and_checksums(run, tmp_path):
    to = hand_out(run, artifacts(run), tmp_path / "out" / "mine")
    names = {p.relative_to(to).as_posix() for p in to.rglob("*") if p.is_file()}
    assert names == {"demo-F16.gguf", "LICENSE", "README.md", "merged/model.safetensors", "SHA256SUMS"}
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=to).returncode == 0
    assert [p.name for p in to.parent.iterdir()] == ["mine"]


def test_a_folder_with_something_in_it_is_left_alone(run, tmp_path):
    to = tmp_path / "mine"
    to.mkdir()
    hand_out(run, artifacts(run)[:1], to)
    with pytest.raises(UsageError, match="holds something"):
        hand_out(run, artifacts(run), to)
    assert not (to / "merged").exists()


def test_nothing_is_left_of_what_fails(run, tmp_path):
    found = artifacts(run)
    (run.path / "artifacts" / "demo-F16.gguf").unlink()
    with pytest.raises(FileProblem, match="has gone"):
        hand_out(run, found, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}


def test_kinds_by_what_was_asked():
    assert kinds_of(adapter=True, merged=False, onnx=False, gguf=("F16", "Q8_0")) == [
        "adapter",
        "gguf:F16",
        "gguf:Q8_0",
    ]


def test_no_types_of_gguf_are_none_and_not_an_empty_one():
    assert export_from(adapter=True, gguf="").gguf == ()
    assert export_from(gguf="F16, Q8_0,").gguf == ("F16", "Q8_0")
