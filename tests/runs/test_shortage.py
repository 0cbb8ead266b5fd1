"""A training that runs out of memory says what each change of its own plan would save."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.errors import DoesNotFit
from luthier.planning.hypothetical import parse_hardware
from luthier.runs import workflow
from luthier.runs.directory import RunDirectory
from luthier.runs.shortage import ways_out
from luthier.runs.worker import work
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import DataChoice, Full, ModelChoice, Recipe
from luthier.schema.run import Planned

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A full tuning of a 1B on a card of 24 GB, as it was prepared."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    recipe = Recipe(
        name="short",
        model=ModelChoice(id="some/model", dtype="bfloat16"),
        method=Full(),
        data=DataChoice(train=("rows.jsonl",)),
    )
    found = RunDirectory.create(recipe, root=tmp_path / "runs")
    shape = TrainingShape(micro_batch_size=4, batch_size=16, sequence_length=4096)
    found.save_stage("planned", "", Planned(shape=shape, tokens=1, steps=1))
    found.save_stage("hardware", "", parse_hardware("rtx 4090"))
    found.save_stage("model", "", {"path": str(tmp_path / "model")})
    return found


def test_each_change_and_what_it_saves(run: RunDirectory) -> None:
    said = ways_out(run)
    assert said is not None
    ways = said.split("; ")
    assert ways[0].startswith("recomputing activations (training.activation_checkpointing=full) saves ")
    moments = next(way for way in ways if way.startswith("moments in eight bits"))
    assert moments.endswith("(training.optimizer=adamw-8bit) saves 7.0 GiB")
    assert any("training.sequence_length=" in way for way in ways)
    assert "micro_batch_size" not in said
    assert "then it fits" not in said


@pytest.mark.parametrize("disk", [False, True])
def test_the_worker_puts_it_into_the_failure(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, *, disk: bool
) -> None:
    def short(_run: RunDirectory, board: object, _job: object) -> None:
        with board.stage("train"):  # type: ignore[attr-defined]
            raise DoesNotFit("there is no room", hint="something general", file="/disk" if disk else None)

    monkeypatch.setattr(workflow, "execute", short)
    monkeypatch.setattr("luthier.runs.worker.signal.signal", lambda *_: None)
    assert work(run.path) == DoesNotFit.exit_code
    failure = run.status.failure
    assert failure is not None
    assert failure.hint == ("something general" if disk else ways_out(run))


def test_an_old_run_has_its_own_words(tmp_path: Path) -> None:
    recipe = Recipe(model=ModelChoice(id="some/model"), data=DataChoice(train=("rows.jsonl",)))
    assert ways_out(RunDirectory.create(recipe, root=tmp_path)) is None
