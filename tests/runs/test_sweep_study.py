"""The study asks the same after a kill, ends what lags, and knows what mattered."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="pip install 'luthier[sweep]'")

from luthier.runs.sweep.space import split_words
from luthier.runs.sweep.study import open_study
from luthier.schema.sweep import SweepChoice

WORDS = ["training.learning_rate=1e-5..1e-2:log", "method.rank=4,8,16"]


def choice(words: list[str] = WORDS, **others: object) -> SweepChoice:
    space, _ = split_words(words)
    return SweepChoice.model_validate({"name": "s", "space": space, "trials": 9, **others})


def loss_of(settings: dict[str, str]) -> float:
    """A bowl around 1e-3 in which the rank hardly matters."""
    from math import log10

    return (log10(float(settings["training.learning_rate"])) + 3) ** 2 + int(settings["method.rank"]) / 1000


def run(folder: Path, trials: int, asked: list[dict[str, str]]) -> None:
    with open_study(folder, choice()) as study:
        study.fill({"training.learning_rate": 2e-4, "method.rank": 8}, "own")
        while len(study.trials()) < trials:
            known = study.ask()
            asked.append(known.settings)
            study.complete(known.number, loss_of(known.settings))


def test_a_sweep_that_was_cut_asks_what_an_uncut_one_asks(tmp_path: Path) -> None:
    whole: list[dict[str, str]] = []
    parts: list[dict[str, str]] = []
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    run(tmp_path / "whole", 6, whole)
    run(tmp_path / "parts", 4, parts)  # beyond the first, drawn ones
    run(tmp_path / "parts", 6, parts)
    assert whole == parts
    assert whole[0] == {"training.learning_rate": "0.0002", "method.rank": "8"}
    assert len({tuple(one.items()) for one in whole}) >= 5
    with open_study(tmp_path / "parts", choice()) as study:
        known = study.trials()
        assert known[0].attrs["why"] == "own"
        assert [one.value for one in known] == [loss_of(one) for one in whole]
        importance = study.importance()
    assert importance["training.learning_rate"] > importance["method.rank"]
    assert sum(importance.values()) == pytest.approx(1.0)


def test_every_setting_is_tried_once_where_there_are_few(tmp_path: Path) -> None:
    few = choice(["method.rank=4,8,16", "method.rslora=true,false"], trials=6)
    with open_study(tmp_path, few) as study:
        study.fill({"method.rank": 8, "method.rslora": False}, "own")
        asked = [study.ask() for _ in range(6)]
    assert asked[0].settings == {"method.rank": "8", "method.rslora": "false"}
    assert len({tuple(one.settings.items()) for one in asked}) == 6


def test_what_lags_is_ended_and_what_cannot_be_done_is_no_result(tmp_path: Path) -> None:
    with open_study(tmp_path, choice()) as study:
        for loss in (1.2, 1.1, 1.0):  # each better than those before it
            number = study.ask().number
            assert [study.report(number, rung, loss) for rung in (1, 2, 3)] == [False] * 3
            study.complete(number, loss)
        behind = study.ask().number
        assert not study.report(behind, 1, 2.0)  # the first tenth is let go
        assert study.report(behind, 2, 2.0)
        assert not study.report(behind, 2, 9.0)  # a rung counts once
        study.prune(behind)
        ahead = study.ask().number
        assert not study.report(ahead, 2, 0.9)
        impossible = study.ask().number
        study.note(impossible, infeasible="too large")
        study.prune(impossible)
        broken = study.ask().number
        study.fail(broken)
    with open_study(tmp_path, choice()) as study:
        states = [one.state for one in study.trials()]
        assert states == ["complete"] * 3 + ["pruned", "running", "pruned", "fail"]
        assert study.known(impossible).attrs["infeasible"] == "too large"
        assert study.known(impossible).value is None
        # taken up by another process
        assert study.report(ahead, 3, 5.0) is False
        study.complete(ahead, 0.8)
        assert study.known(ahead).value == 0.8
