"""What serving and deploying hand on."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record

Target = Literal["ollama", "lmstudio", "llama.cpp", "vllm", "folder", "bundle"]


class ContextPlan(Record):
    """A context window and what it costs. Bytes."""

    context: int
    """Tokens of one slot."""
    slots: int
    cache_type: str
    weights: int
    cache: int
    buffers: int
    free: int
    where: str
    """The device whose memory it is."""
    longest: int
    """The longest context of a slot that fits."""
    model_context: int
    """What the model itself can read."""
    why: str
    longer: dict[int, int] = {}
    """Context -> bytes in all, for longer ones that fit."""

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.buffers
