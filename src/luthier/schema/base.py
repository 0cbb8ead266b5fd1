"""What all records share: extra keys are errors, records never change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen value that crosses a stage. Units stand in field names or their sentences.

    Its validator is built at its first use, and the sentences under its fields are read from the source
    only when somebody asks (`luthier.schema.explain`): most commands need neither of most records.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, protected_namespaces=())


class Range(Record):
    """A figure with its band: low <= expected <= high, all in the unit of the field it stands in."""

    low: float
    expected: float
    high: float


class Fact(Record):
    """A record that nobody fills in by hand: its sentences are for readers of the code."""
