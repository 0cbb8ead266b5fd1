"""A search end to end but for the training itself: what a worker would write is written at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import log10
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="pip install 'luthier[sweep]'")
pytest.importorskip("torch", reason="pip install 'luthier[train]'")

from luthier.errors import DoesNotFit, UsageError
from luthier.runs.directory import RunDirectory
from luthier.runs.prepare import Prepared, prepare
from luthier.runs.sweep import crew, page, search
from luthier.runs.sweep.folder import SweepFolder, find_sweep, list_sweeps
from luthier.runs.sweep.space import split_words
from luthier.schema.load import load_recipe
from luthier.schema.recipe import Lora, Recipe
from luthier.schema.results import TrainResult
from luthier.schema.run import Failure, Job, Origin
from luthier.schema.sweep import SweepChoice, SweepResult
from tiny import save_tiny_model, write_recipe

WORDS = ["training.learning_rate=1e-4..1e-1:log", "method.rank=2,4,8"]


@dataclass
class Workers:
    """Stands in for worker processes."""

    started: list[tuple[str, str]] = field(default_factory=list)
    """Run and job, in order."""
    how: Callable[[RunDirectory, Recipe], str] = lambda _run, _recipe: "done"

    def __call__(self, run: RunDirectory, job: Job | None = None, *, threads: int | None = None) -> None:
        self.started.append((run.id, job.kind if job is not None else "all"))
        recipe = run.recipe
        ends = self.how(run, recipe)
        loss = loss_of(recipe)
        steps = 1 if ends == "stopped" else 10
        for step in range(1, steps + 1):
            run.append("metrics", {"kind": "step", "step": step, "total_steps": 10})
            run.append("metrics", {"kind": "validation", "step": step, "loss": loss + 1 - step / 10})
        failure = None
        if ends == "done":
            run.save_stage("train", "", trained(loss))
        elif ends == "failed":
            failure = Failure(
                kind="TrainingError", message="the loss is not a number", hint=None, exit_code=1
            )
        state: Any = ends
        run.set_status(run.status.model_copy(update={"state": state, "failure": failure}))


def loss_of(recipe: Recipe) -> float:
    """Best at 1e-2."""
    assert recipe.training.learning_rate is not None
    assert isinstance(recipe.method, Lora)
    return 1 + (log10(recipe.training.learning_rate) + 2) ** 2 + recipe.method.rank / 1000


def trained(loss: float) -> TrainResult:
    return TrainResult(
        steps=10, epochs=1, first_loss=5, last_loss=loss, best_step=10, best_validation_loss=loss,
        selected_checkpoint="checkpoints/step-10", seconds=3, tokens=10, trained_tokens=5,
        tokens_per_second=3, peak_memory=1 << 30, trainable_parameters=1, total_parameters=2,
        device="cpu", dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    folder = tmp_path_factory.mktemp("sweep")
    path = write_recipe(folder, save_tiny_model(folder / "model"))
    return path, prepare(load_recipe(path), say=lambda _words: None)


@pytest.fixture
def workers(base: tuple[Path, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """Workers that write at once, and a preparation that is done once."""
    found = Workers()
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(crew, "start_worker", found)
    monkeypatch.setattr(crew, "POLL", 0.0)

    def quietly(recipe: Recipe, say: object = None) -> Prepared:
        if isinstance(recipe.method, Lora) and recipe.method.rank == 8:
            raise DoesNotFit("rank 8 needs 90 GiB of 4")
        whole = base[1].recipe.model_copy(
            update={"name": recipe.name, "method": recipe.method, "training": recipe.training}
        )
        return replace(base[1], recipe=whole)

    monkeypatch.setattr(search, "prepare_quietly", quietly)
    return found


def made(base: tuple[Path, Prepared], words: list[str] = WORDS, **others: object) -> SweepFolder:
    space, fixed = split_words(words)
    choice = SweepChoice.model_validate({"name": "s", "space": space, "trials": 5, **others})
    return SweepFolder.create(choice, load_recipe(base[0], fixed))


def go(
    folder: SweepFolder, base: tuple[Path, Prepared], stop: Callable[[], bool] = lambda: False
) -> SweepResult:
    return search.search(folder, base[1], say=lambda _w: None, told=lambda _r: None, stopping=stop)


def test_every_trial_is_a_run_and_only_the_winner_is_proved(
    base: tuple[Path, Prepared], workers: Workers, tmp_path: Path
) -> None:
    folder = made(base)
    result = go(folder, base)
    assert len(result.trials) == 5
    assert result.trials[0].why == search.OWN
    infeasible = [t for t in result.trials if t.state == "infeasible"]
    assert infeasible
    assert all(
        t.settings["method.rank"] == "8" and "90 GiB" in t.reason and t.run is None for t in infeasible
    )
    done = [t for t in result.trials if t.state == "done"]
    assert result.winner is not None
    assert result.winner.loss == min(t.loss or 9 for t in done)
    assert {job for _, job in workers.started} == {"train"}
    assert [name for name, _ in workers.started] == [t.run for t in result.trials if t.run]
    run = RunDirectory(tmp_path / "runs" / str(done[-1].run))
    origin = run.stage("origin", Origin)
    assert origin is not None
    assert (origin.kind, origin.parent, origin.path) == ("sweep", "s", str(folder.path))
    assert "training.learning_rate" in origin.changed
    assert result.proved == ()

    attended = []

    def follow(run: RunDirectory) -> int:
        attended.append(run.id)
        # on disk before the first held-out row is answered
        assert folder.result is not None
        assert folder.result.proved == (run.id,)
        return 0

    proved = search.prove_winner(folder, result, follow=follow)
    assert attended == [result.winner.run]
    assert proved.proved == (result.winner.run,)
    assert proved.notes == ()


def test_a_sweep_goes_on_with_what_it_has(base: tuple[Path, Prepared], workers: Workers) -> None:
    folder = made(base, ["training.learning_rate=1e-4..1e-1:log"], trials=6)
    looks = iter([False] * 9)
    first = go(folder, base, lambda: next(looks, True))
    began = len(workers.started)
    assert 0 < len(first.trials) < 6
    second = go(folder, base)
    assert len(second.trials) == 6
    ended = [t for t in first.trials if t.state == "done"]
    assert ended == [t for t in second.trials if t.number in {one.number for one in ended}]
    assert len({name for name, _ in workers.started}) == 6
    assert began < len(workers.started)
    more = folder.extend(7)
    assert more.trials == 7
    assert len(go(folder, base).trials) == 7
    with pytest.raises(UsageError, match="asked for 7"):
        folder.extend(3)
    assert [one.path.name for one in list_sweeps()] == ["s"]
    assert find_sweep("latest").path == folder.path
    with pytest.raises(UsageError, match="already"):
        made(base)


def test_what_lags_is_ended_early_and_what_dies_is_begun_once_more(
    base: tuple[Path, Prepared], workers: Workers
) -> None:
    deaths: list[str] = []

    def how(run: RunDirectory, _recipe: Recipe) -> str:
        if run.id == "s-003" and len(deaths) < 1:
            deaths.append(run.id)
            return "lost"
        if run.id == "s-002":
            return "failed"
        return "done"

    workers.how = how
    folder = made(base, ["training.learning_rate=1e-4..1e-1:log"], trials=5)
    result = go(folder, base)
    by = {t.number: t for t in result.trials}
    assert by[2].state == "failed"
    assert by[2].reason == "the loss is not a number"
    assert by[3].state == "done"
    assert [name for name, _ in workers.started].count("s-003") == 2
    assert result.best != 2


def test_a_trial_that_was_ended_early_is_not_begun_again(
    base: tuple[Path, Prepared], workers: Workers
) -> None:
    folder = made(base, ["training.learning_rate=1e-4..1e-1:log"], trials=2)
    workers.how = lambda _run, _recipe: "stopped"
    looks = iter([False] * 3)
    with search.open_study(folder.path, folder.choice) as study:
        study.fill({}, "own")
        number = study.ask().number
        study.note(number, run="s-000", pruned="ended after 20% of its training")
    recipe = base[1].recipe.model_copy(update={"name": "s-000"})
    run = crew.run_for(replace(base[1], recipe=recipe), "s-000", folder.path, recipe)
    run.set_status(run.status.model_copy(update={"state": "stopped"}))
    result = go(folder, base, lambda: next(looks, True))
    assert result.trials[0].state == "pruned"
    assert "s-000" not in [name for name, _ in workers.started]


def test_a_proof_by_hand_counts_as_a_look(
    base: tuple[Path, Prepared], workers: Workers, tmp_path: Path
) -> None:
    folder = made(base, ["method.rank=2,4"])
    go(folder, base)
    (tmp_path / "runs" / "s-001" / "tuned.json").write_text("{}")
    assert go(folder, base).proved == ("s-001",)


def test_few_settings_are_all_tried_and_none_twice(base: tuple[Path, Prepared], workers: Workers) -> None:
    folder = made(base, ["method.rank=2,4"], trials=12)
    result = go(folder, base)
    assert sorted(t.settings["method.rank"] for t in result.trials) == ["2", "4"]
    assert len(workers.started) == 2


def test_the_page_shows_every_trial_and_escapes(base: tuple[Path, Prepared], workers: Workers) -> None:
    result = go(made(base), base)
    odd = result.trials[0].model_copy(update={"reason": "<script>alert(1)</script> | x"})
    result = result.model_copy(
        update={"trials": (odd, *result.trials[1:]), "importance": {"method.rank": 0.25}}
    )
    html = page.html(result)
    assert "<script>alert" not in html
    assert html.count('<figure class="card chart">') == len(page.charts(result)) >= 3
    assert "No held-out row has been answered." in html
    for trial in result.trials:
        assert not trial.run or trial.run in html
    assert "25%" in html
    text = page.markdown(result)
    assert "\\| x" in text
    assert "| method.rank | 2, 4, 8 |" in text.replace("\\", "")
    path = page.write_page(result)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert json.loads((Path(result.path) / "result.json").read_text())["choice"]["name"] == "s"


def test_a_second_winner_is_told_as_a_second_look(base: tuple[Path, Prepared], workers: Workers) -> None:
    folder = made(base)
    result = go(folder, base).model_copy(update={"proved": ("s-999",)})
    proved = search.prove_winner(folder, result, follow=lambda _run: 0)
    assert len(proved.proved) == 2
    assert "second look" in proved.notes[0]


def test_no_validation_rows_or_no_space(base: tuple[Path, Prepared], workers: Workers) -> None:
    folder = made(base, ["training.epochs=2"])
    with pytest.raises(UsageError, match="nothing is searched"):
        go(folder, base)
    bare = replace(base[1].data, splits=replace(base[1].data.splits, validation=[]))
    with pytest.raises(UsageError, match="no validation rows"):
        search.check_search(replace(base[1], data=bare), made(base, WORDS, name="other").choice)


def test_memory_is_shared_out_by_prediction(base: tuple[Path, Prepared], workers: Workers) -> None:
    one = crew.Crew(2)
    assert one.has_room(10**18)  # alone, the run's own check decides
    one.active = [crew.Working(0, RunDirectory(base[0].parent), None, one.budget - 100)]
    assert one.has_room(100)
    assert not one.has_room(101)
