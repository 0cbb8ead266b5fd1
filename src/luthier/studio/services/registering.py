"""Registered models as pages and API show them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.errors import LuthierError, UsageError
from luthier.runs import registry
from luthier.runs.directory import RunDirectory, list_runs
from luthier.runs.report import words
from luthier.runs.stages import load_artifacts
from luthier.schema.registry import AliasChange, Version
from luthier.studio.problems import NotFound


@dataclass(frozen=True, slots=True)
class ScoreWords:
    """One split's score in words."""

    split: str
    metric: str
    baseline: str
    tuned: str
    interval: str
    verdict: str


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version with the aliases that name it."""

    version: Version
    aliases: tuple[str, ...]
    scores: tuple[ScoreWords, ...]
    there: bool
    """Whether its run is still on this machine."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """One registered name."""

    name: str
    versions: tuple[VersionView, ...]
    aliases: dict[str, int]
    history: tuple[AliasChange, ...]
    """Newest first."""


def models() -> list[ModelView]:
    """Every registered name."""
    return [model(name) for name in registry.names()]


def model(name: str) -> ModelView:
    """One registered name with its versions, newest first. Errors: NotFound."""
    if not registry.NAME.fullmatch(name):
        raise NotFound(f"no model is registered as {name[:80]!r}")
    try:
        known = registry.versions(name)
    except UsageError as error:
        raise NotFound(error.message, hint=error.hint) from None
    aliases = registry.aliases(name)
    return ModelView(
        name=name,
        versions=tuple(_view(one, aliases) for one in known),
        aliases=aliases,
        history=tuple(reversed(registry.history(name))),
    )


def _view(version: Version, aliases: dict[str, int]) -> VersionView:
    scores = []
    for split, score in version.scores.items():
        share = words.is_share(score.metric, score.baseline)
        low, high = (words.score(score.metric, x, share=share) for x in (score.tuned.low, score.tuned.high))
        scores.append(
            ScoreWords(
                split=split,
                metric=words.metric_name(score.metric),
                baseline=words.score(score.metric, score.baseline.value, share=share),
                tuned=words.score(score.metric, score.tuned.value, share=share),
                interval=f"{low} to {high}",
                verdict=score.verdict,
            )
        )
    return VersionView(
        version=version,
        aliases=tuple(sorted(a for a, number in aliases.items() if number == version.version)),
        scores=tuple(scores),
        there=(Path(version.path) / "status.json").is_file(),
    )


def registrable(runs: Path) -> list[RunDirectory]:
    """Runs that have written something to use, newest first."""
    return [run for run in list_runs(runs) if load_artifacts(run)]


def version(name: str, number: int) -> Version:
    """One version. Errors: NotFound."""
    try:
        return registry.find(f"{name}:{number}")
    except UsageError as error:
        raise NotFound(error.message, hint=error.hint) from None


def previous(name: str, alias: str) -> int | None:
    """What an alias would name after a roll back; None where it named nothing before."""
    try:
        return registry.before(name, alias)
    except LuthierError:
        return None
