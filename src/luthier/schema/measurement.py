"""What one run was predicted to need and what it needed: one line of the store of measurements."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Range, Record
from luthier.schema.estimate import TrainingShape
from luthier.schema.hardware import Accelerator
from luthier.schema.model import Architecture
from luthier.schema.recipe import Method


class Machine(Record):
    """What a measurement holds for. Two machines are alike when all of this is equal."""

    device: Literal["cpu", "cuda"]
    processor: str
    cores: int
    accelerator: str | None = None
    """Name of the GPU that was trained on."""


class Prediction(Record):
    """What was said before the run began."""

    phases: dict[str, int] = {}
    """Phase -> bytes of the process."""
    process: Range
    tensors: Range
    seconds: Range | None = None
    """Training steps and validation."""
    basis: str = "formula"


class Shortage(Record):
    """A step that ran out of memory although it was predicted to fit."""

    step: int
    rows: int
    """Rows at once that did not fit."""
    now: int
    """Rows at once that the run went on with."""
    unit: Literal["rows", "documents"] = "rows"
    held: int
    """Bytes in use when it happened."""


class Measurement(Record):
    """One training: enough to predict it again, and what it came to. Bytes, seconds, tokens."""

    version: Literal[1] = 1
    """Version of this record."""
    time: float
    """When it was written, in seconds since the epoch."""
    run: str
    model: str
    architecture: Architecture
    method: Method
    shape: TrainingShape
    """As it ran: with the micro-batch that was left after a shortage."""
    dtype: str
    machine: Machine
    gpu: Accelerator | None = None
    """The GPU that was trained on, for its rates."""
    matrix_rate: float | None = None
    """FLOP/s of matrix products in that type, as measured when the run was prepared."""
    kernels: str
    """Which attention, loss and adapters the plan took for granted."""
    versions: dict[str, str]
    """Package -> version."""
    steps: int
    tokens: int
    predicted: Prediction
    peak: int
    """Largest bytes since the training began: resident set on a CPU, allocated tensors on a GPU."""
    phases: dict[str, int] = {}
    """Phase -> its largest bytes, by the same measure."""
    seconds: float
    """Training steps alone."""
    validation_seconds: float = 0.0
    shortages: tuple[Shortage, ...] = ()
