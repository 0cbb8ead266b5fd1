"""What somebody asks the recommender for. Every field has a neutral default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from luthier.schema.base import Fact
from luthier.schema.data import DataProfile
from luthier.schema.licence import LicenceRule, Use
from luthier.schema.recipe import Purpose

Goal = Literal["behaviour", "domain", "new-language", "from-scratch"]
Stage = Literal["first-run", "production", "research"]
Priority = Literal["balanced", "quality", "speed", "size", "ecosystem"]
SizeClass = Literal["under-1b", "edge", "general", "expert"]
Feature = Literal["tools", "thinking", "json", "image"]
Vertical = Literal["medical", "legal", "finance", "code", "education", "government"]
GuideName = Literal["A", "B", "C"]
MethodName = Literal["full", "lora", "qlora"]


class Request(Fact):
    """A task with its conditions. Filters are met or the model is rejected; preferences are weighed."""

    purpose: Purpose = "chat"
    """What the tuned model is for."""
    words: str | None = None
    """The sentence that this request was read from, if it was."""
    mapped: tuple[str, ...] = ()
    """Which words led to which field, one line each."""
    goal: Goal | None = None
    """What tuning should change: behaviour, knowledge of a domain, a new language, or all from scratch."""
    stage: Stage | None = None
    """How far along the project is: a first run, production or research."""
    use: Use | None = None
    """How the model will be used; commercial use leaves out non-commercial licences."""
    licence: tuple[LicenceRule, ...] = ()
    """Rules that the licence must meet, all of them."""
    monthly_users: int | None = Field(None, ge=0)
    """Monthly active users of the products it goes into; some licences have a threshold."""
    eu_entity: bool = False
    """Whether the user is domiciled in the European Union."""
    outputs_train_models: bool = False
    """Whether answers of the tuned model will train other models."""
    redistribute: bool = False
    """Whether the tuned weights will be passed on."""
    vertical: Vertical | None = None
    """Field of use; shows the policy clauses that concern it."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that the model must handle."""
    context: int | None = Field(None, ge=1)
    """Tokens that the model must read at once."""
    features: tuple[Feature, ...] = ()
    """Tool calling, thinking, JSON answers, images."""
    priority: Priority = "balanced"
    """What counts most when several fit."""
    size: SizeClass | None = None
    """Size by use: under 1B; edge (to what is called 4B); general (to 9B); expert (10B to 36B)."""
    min_parameters: int | None = Field(None, ge=0)
    """Smallest total parameters."""
    max_parameters: int | None = Field(None, ge=0)
    """Largest total parameters."""
    family: str | None = None
    """Only models whose family or name begins so."""
    method: MethodName | None = None
    """Only this method."""
    rows: int | None = Field(None, ge=1)
    """Training rows."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the rows."""
    sequence_length: int | None = Field(None, ge=8)
    """Tokens of the longest training row."""
    max_seconds: float | None = Field(None, gt=0)
    """Longest training that is acceptable."""
    max_cost: float | None = Field(None, gt=0)
    """Most US dollars that the training may cost."""
    price_per_hour: float | None = Field(None, ge=0)
    """US dollars an hour of one accelerator (of the machine, where it has none)."""
    target: str | None = None
    """Hardware that the tuned model will run on, in words; the training machine when not given."""
    gguf: bool = False
    """Whether it must run in llama.cpp, Ollama or LM Studio."""
    offline: bool = False
    """Only models whose weights come without the Hub."""
    profile: DataProfile | None = None
    """What was found in the training data."""

    @field_validator("licence", "languages", "features", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        """One word, words with commas, or a list; order and repetition mean nothing."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if isinstance(value, (list, tuple, set, frozenset)):
            return tuple(sorted({str(part).strip().lower() for part in value if str(part).strip()}))
        return value

    @property
    def reads_images(self) -> bool:
        return "image" in self.features
