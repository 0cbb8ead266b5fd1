"""Terms of a licence, structured. Luthier informs and cites; this is not legal advice."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Fact

Answer = Literal["yes", "no", "conditional", "unknown"]
LicenceRule = Literal[
    "apache-2.0", "mit", "osi", "commercial", "no-acceptable-use-policy", "may-train-others"
]
Use = Literal["commercial", "research", "internal"]


class Clause(Fact):
    """One passage that a decision rests on."""

    topic: Literal[
        "commercial-use",
        "user-threshold",
        "acceptable-use",
        "outputs",
        "naming",
        "display",
        "notice",
        "attribution",
        "redistribution",
        "region",
    ]
    where: str
    """Section of the text."""
    says: str
    """What it says, in our words."""


class Licence(Fact):
    """What a licence allows and asks."""

    id: str
    name: str
    spdx: str | None = None
    url: str | None = None
    """Where the text stands."""
    osi_approved: bool
    commercial_use: Answer
    user_threshold: int | None = None
    """Monthly active users from which a separate licence is needed."""
    acceptable_use_policy: bool | None
    """None: not verified."""
    acceptable_use_url: str | None = None
    may_train_others: Answer
    """Whether outputs may train other models."""
    outputs_note: str | None = None
    attribution: bool
    notice: str | None = None
    """Text that must go along."""
    naming: str | None = None
    """What a distributed derivative must be called."""
    name_prefix: str | None = None
    display: str | None = None
    """What must be shown to users."""
    redistribution: Answer
    """Whether derivatives may be passed on."""
    region: str | None = None
    """Whom the licence leaves out."""
    excludes_eu_multimodal: bool = False
    note: str | None = None
    clauses: tuple[Clause, ...] = ()
    verticals: dict[str, str] = {}
    """Field of use -> what the acceptable-use policy says that concerns it."""
    verified: Literal["text-read", "copy-read", "tag-only", "recalled"] = "tag-only"
    """How far the text itself was checked."""
    sources: tuple[str, ...] = ()

    @property
    def duties(self) -> tuple[str, ...]:
        """What must be done when a tuned model is passed on or shown, one sentence each."""
        found: list[str] = []
        if self.notice:
            found.append(f"ship the notice: {self.notice}")
        elif self.attribution:
            found.append("keep the copyright and licence notices")
        if self.naming:
            found.append(f"name: {self.naming}")
        if self.display:
            found.append(f"display: {self.display}")
        if self.acceptable_use_policy:
            found.append("pass on and follow the acceptable-use policy")
        return tuple(found)
