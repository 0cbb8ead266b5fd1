"""The memory of a search: Optuna's study, kept beside the trials so that a killed sweep goes on."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import Unsupported
from luthier.runs.sweep.space import grid, inside, size_of, written
from luthier.schema.sweep import Axis, SweepChoice

RUNGS = 10
"""Trials are compared at tenths of their training, however many steps that is."""
FILE = "study.db"


def demand_optuna() -> Any:
    """Optuna, or the way to it. Errors: Unsupported."""
    try:
        import optuna
    except ImportError:
        raise Unsupported(
            "searching settings takes Optuna, which is not installed", hint="pip install 'luthier[sweep]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True, slots=True)
class Known:
    """A trial as the study has it."""

    number: int
    settings: dict[str, str]
    state: str
    """``running``, ``complete``, ``pruned`` or ``fail``."""
    value: float | None
    attrs: dict[str, Any]


class Study:
    """Asks for settings and is told what came of them. Made by `open_study`.

    The sampler is seeded anew for each trial by the sweep's seed and the trial's number, so that a sweep
    that was killed asks for what it would have asked for (with one run at a time).
    """

    def __init__(self, study: Any, choice: SweepChoice, optuna: Any) -> None:
        self._study, self._choice, self._optuna = study, choice, optuna
        self._trials: dict[int, Any] = {}
        self._axes = {axis.key: axis for axis in choice.space}

    def fill(self, own: Mapping[str, object], first: str) -> None:
        """Put what is to be tried for certain at the beginning: the recipe's own values (``first`` says
        so), and every setting where there are no more than trials. Once, in an empty study.
        """
        if self._study.trials:
            return
        settled = {key: inside(axis, own.get(key)) for key, axis in self._axes.items()}
        mine = {key: value for key, value in settled.items() if value is not None}
        whole = len(mine) == len(self._axes)
        if whole:
            self._study.enqueue_trial(self._raw(mine), user_attrs={"why": first})
        size = size_of(self._choice.space)
        if size is not None and size <= self._choice.trials:
            rest = [one for one in grid(self._choice.space) if not whole or one != mine]
            random.Random(self._choice.seed).shuffle(rest)
            for one in rest:
                self._study.enqueue_trial(self._raw(one), user_attrs={"why": "every setting is tried"})

    def ask(self) -> Known:
        """The next settings to try."""
        number = len(self._study.trials)
        waiting = [t.number for t in self._study.trials if t.state.name == "WAITING"]
        self._study.sampler = self._sampler(min(waiting, default=number))
        trial = self._study.ask({key: self._distribution(axis) for key, axis in self._axes.items()})
        self._trials[trial.number] = trial
        return self.known(trial.number)

    def report(self, number: int, rung: int, loss: float) -> bool:
        """A validation loss at a tenth of the training; whether the trial is to be ended."""
        trial = self._trial(number)
        seen = self._study.trials[number].intermediate_values
        if rung < 1 or rung in seen:
            return False
        trial.report(loss, rung)
        return bool(trial.should_prune())

    def note(self, number: int, **values: Any) -> None:
        """Keep facts beside a trial."""
        for key, value in values.items():
            self._trial(number).set_user_attr(key, value)

    def complete(self, number: int, loss: float) -> None:
        """The trial has ended well."""
        self._study.tell(number, loss)

    def prune(self, number: int) -> None:
        """The trial was ended early, or cannot be done: a worse result than any that has one."""
        self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """The trial says nothing about its settings."""
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def known(self, number: int) -> Known:
        """One trial."""
        return self._known(self._study.trials[number])

    def trials(self) -> list[Known]:
        """All trials that were asked for."""
        return [self._known(trial) for trial in self._study.trials if trial.state.name != "WAITING"]

    def importance(self) -> dict[str, float]:
        """Setting -> share of the loss's variance over the space that it explains (fANOVA).

        Empty where trials are too few or too alike to tell (or scikit-learn is missing).
        """
        ended = [t for t in self._study.trials if t.state.name == "COMPLETE"]
        if len(ended) < 4 or len({t.value for t in ended}) < 2:
            return {}
        evaluator = self._optuna.importance.FanovaImportanceEvaluator
        with contextlib.suppress(ImportError, RuntimeError, ValueError):
            found = self._optuna.importance.get_param_importances(
                self._study, evaluator=evaluator(seed=self._choice.seed)
            )
            return {str(key): float(value) for key, value in found.items()}
        return {}

    # -- Optuna's side -----------------------------------------------------------------------

    def _sampler(self, number: int) -> Any:
        seed = (self._choice.seed * 1_000_003 + number) % 2**32
        first = max(3, min(10, self._choice.trials // 3))
        return self._optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=first, multivariate=True, constant_liar=self._choice.jobs > 1
        )

    def _distribution(self, axis: Axis) -> Any:
        kinds = self._optuna.distributions
        if axis.choices:
            return kinds.CategoricalDistribution(axis.choices)
        if axis.whole:
            assert axis.low is not None
            assert axis.high is not None
            return kinds.IntDistribution(
                round(axis.low), round(axis.high), log=axis.log, step=round(axis.step or 1)
            )
        return kinds.FloatDistribution(axis.low, axis.high, log=axis.log, step=axis.step)

    def _raw(self, settings: Mapping[str, str]) -> dict[str, Any]:
        """Settings as Optuna keeps them: numbers for ranges, words for choices."""
        raw: dict[str, Any] = {}
        for key, value in settings.items():
            axis = self._axes[key]
            raw[key] = value if axis.choices else int(value) if axis.whole else float(value)
        return raw

    def _known(self, frozen: Any) -> Known:
        settings = {
            key: str(frozen.params[key]) if axis.choices else written(axis, frozen.params[key])
            for key, axis in self._axes.items()
            if key in frozen.params
        }
        value = frozen.value if frozen.state.name in ("COMPLETE", "PRUNED") else None
        return Known(frozen.number, settings, frozen.state.name.lower(), value, dict(frozen.user_attrs))

    def _trial(self, number: int) -> Any:
        if number not in self._trials:
            # A trial that an earlier process asked for: taken up by the name that the storage gave it.
            frozen = self._study.trials[number]
            self._trials[number] = self._optuna.trial.Trial(self._study, frozen._trial_id)
        return self._trials[number]


@contextmanager
def open_study(folder: Path, choice: SweepChoice) -> Iterator[Study]:
    """The study of a sweep's folder, made where there is none. Errors: Unsupported without Optuna."""
    optuna = demand_optuna()
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / FILE}")
    try:
        study = optuna.create_study(
            study_name=choice.name,
            storage=storage,
            direction="minimize",
            pruner=_pruner(optuna, choice),
            load_if_exists=True,
        )
        yield Study(study, choice, optuna)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _pruner(optuna: Any, choice: SweepChoice) -> Any:
    if choice.pruner == "median":
        first = max(2, min(5, choice.trials // 4))
        return optuna.pruners.MedianPruner(n_startup_trials=first, n_warmup_steps=2)
    if choice.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=RUNGS, reduction_factor=3)
    return optuna.pruners.NopPruner()
