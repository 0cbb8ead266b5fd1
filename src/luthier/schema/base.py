"""What all records share: extra keys are errors, records never change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen value that crosses a stage. Units stand in field names or their sentences."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=()
    )


class Range(Record):
    """A figure with its band: low <= expected <= high, all in the unit of the field it stands in."""

    low: float
    expected: float
    high: float


class Fact(Record):
    """A record that nobody fills in by hand: its sentences are for readers of the code.

    Gathering them as descriptions would read the source at every start, a third of the time that the
    records of the catalogue take to load.
    """

    model_config = ConfigDict(use_attribute_docstrings=False)
