"""What the recommender answers: ranked candidates with reasons, and what was rejected and why."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Fact, Range
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.model import Benchmark, ModelCard
from luthier.schema.recipe import Method
from luthier.schema.request import GuideName, Request


class BatchShape(Fact):
    """How a training step is cut."""

    micro_batch_size: int
    """Rows that go through the model at once on one device."""
    batch_size: int
    """Rows for each optimiser step, over all micro-batches and devices."""
    sequence_length: int
    """Longest row in tokens."""
    tokens_per_row: float
    """Mean tokens of a row."""
    rows: int
    epochs: float
    checkpointing: bool
    """Whether activations are recomputed in the backward pass."""
    dtype: Literal["float32", "bfloat16", "float16"]
    devices: int = 1
    shard: int = 1
    """Devices that hold one model together."""
    dividable: bool = True
    """Whether the weights of such a training may be divided over devices."""
    texts: int = 1
    """Texts that each row sends through the model: two of a pair that is compared by its vectors."""
    source: str = ""
    """Where length and rows come from."""

    @property
    def steps(self) -> int:
        return max(1, round(self.rows * self.epochs / self.batch_size))

    @property
    def accumulation(self) -> int:
        return max(1, self.batch_size // (self.micro_batch_size * self.devices))


class ScorePart(Fact):
    """One addend of a score."""

    name: str
    points: float
    why: str


class Reason(Fact):
    """One sentence for or about a candidate."""

    kind: Literal["quality", "fit", "licence", "rule", "variant", "method", "caveat", "data"]
    text: str
    source: str | None = None
    """Key into the catalogue's sources, a rule's name, or how it was computed."""


class Setting(Fact):
    """One hyperparameter with its source."""

    name: str
    value: str | int | float | bool
    source: str


class Serving(Fact):
    """How the tuned model would run on the target."""

    runtime: str
    quantisation: str
    context: int
    """Tokens of one slot."""
    slots: int
    weights: int
    """Bytes of the weights file."""
    cache: int
    """Bytes of the key/value cache over all slots."""
    total: int
    """Bytes in all, working buffers included."""
    available: int
    fits: bool
    tokens_per_second: Range | None = None
    """Predicted decoding rate of one slot; None where the target's bandwidth is not known."""
    note: str | None = None


class Evidence(Fact):
    """What the quality figure rests on."""

    index: float
    """Quality on the purpose's scale, 0 to 100."""
    basis: Literal["published", "converted", "prior"]
    benchmark: Benchmark | None = None
    text: str


class Candidate(Fact):
    """A model with a method that meets every condition and fits."""

    rank: int
    card: ModelCard
    weights: str
    """Repository of the variant to start from."""
    variant: Literal["instruct", "base", "only"]
    """``only``: the model has no such distinction (encoders)."""
    method: Method
    batch: BatchShape
    estimate: Estimate
    budget: int
    """Bytes that the training may use."""
    score: float
    parts: tuple[ScorePart, ...]
    evidence: Evidence
    reasons: tuple[Reason, ...] = ()
    duties: tuple[str, ...] = ()
    """What the licence asks."""
    warnings: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    serving: Serving | None = None
    alternatives: tuple[str, ...] = ()
    """Other methods that fit this model, in words."""

    @property
    def needed(self) -> int:
        """Bytes that the process is expected to need, the upper end of the band."""
        return round(self.estimate.process.high)

    @property
    def spare(self) -> int:
        return self.budget - self.needed


RejectionKind = Literal[
    "purpose",
    "variant",
    "modality",
    "family",
    "size",
    "licence",
    "context",
    "language",
    "feature",
    "gguf",
    "offline",
    "unknown-shape",
    "target",
    "method",
    "memory",
    "time",
    "cost",
]


REJECTION_WORDS: dict[RejectionKind, str] = {
    "purpose": "made for another purpose",
    "variant": "no base weights",
    "modality": "do not read images",
    "family": "of another family",
    "size": "of another size",
    "licence": "licence",
    "context": "context too short",
    "language": "language not covered",
    "feature": "feature missing",
    "gguf": "no GGUF",
    "offline": "weights only on the Hub",
    "unknown-shape": "shape not verified",
    "target": "too large for where it is to run",
    "method": "no method possible",
    "memory": "too large",
    "time": "too slow",
    "cost": "too dear",
}
"""Each reason as a heading over the models that it leaves out."""


class Rejection(Fact):
    """A model that is left out, with the first condition that it missed."""

    model: str
    kind: RejectionKind
    reason: str
    source: str | None = None
    """Clause, catalogue source or formula."""
    bytes_needed: int | None = None
    """memory: what the method that needs least would take."""


class GuideAnswer(Fact):
    """What one of the three public guides would answer."""

    guide: GuideName
    answer: str
    rule: str
    """The guide's own rule that leads there."""
    model: str | None = None
    """Catalogue id of the answer, where it is one model."""
    method: str | None = None
    wrong: tuple[str, ...] = ()
    """What verified facts say against it."""


class Relaxation(Fact):
    """One condition that could be given up, and what it would bring."""

    change: str
    gains: int
    """Models that would fit then."""
    best: str | None = None


class Plan(Fact):
    """The answer to a request."""

    request: Request
    hardware: Hardware | None
    candidates: tuple[Candidate, ...]
    total_candidates: int = 0
    """How many pairs fit, of which the first are shown."""
    rejected: tuple[Rejection, ...]
    guides: tuple[GuideAnswer, ...] = ()
    rules: tuple[str, ...] = ()
    """Rules that were applied, in words."""
    advice: tuple[str, ...] = ()
    """When another way than tuning is likely to serve better; what else to think of."""
    relaxations: tuple[Relaxation, ...] = ()
    """What to relax when nothing fits, least given up first."""
    nearest: str | None = None
    """When nothing fits: the model that needs least, and the hardware that would hold it."""
    next_commands: tuple[str, ...] = ()

    @property
    def best(self) -> Candidate | None:
        return self.candidates[0] if self.candidates else None
