"""A tuned model by name and version, with where it came from."""

from __future__ import annotations

from luthier.schema.base import Record
from luthier.schema.results import Artifact, Metric, Verdict


class Score(Record):
    """The primary metric of one held-out split."""

    metric: str
    baseline: Metric
    tuned: Metric
    verdict: Verdict


class Version(Record):
    """One version of a registered model. Never changed once written."""

    name: str
    version: int
    created: float
    run: str
    path: str
    """Directory of the run: its files are the model."""
    task: str
    base_model: str
    base_revision: str | None
    licence: str | None
    method: str
    data: str
    """Digest of the data, or the name and version of the dataset."""
    recipe: str
    """SHA-256 of the frozen recipe."""
    scores: dict[str, Score] = {}
    """Split -> score."""
    artifacts: tuple[Artifact, ...] = ()
    """With digests and parity; paths relative to the run."""
    note: str = ""

    @property
    def id(self) -> str:
        """``name:version``, usable wherever a run is."""
        return f"{self.name}:{self.version}"


class AliasChange(Record):
    """An alias given to a version, or taken away."""

    at: float
    alias: str
    version: int | None
    """None: the alias was removed."""
    before: int | None
    """What it named until then."""
