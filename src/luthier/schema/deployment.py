"""What serving and deploying hand on."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Record
from luthier.schema.results import ParityCheck

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


class Smoke(Record):
    """One prompt put to a deployment right after it was made."""

    prompt: str
    answer: str
    stopped: bool
    """Whether an end token ended the answer."""
    tokens_per_second: float | None = None
    memory: int | None = None
    """Bytes that the runtime held, where it says."""


class Deployment(Record):
    """A model made ready for one runtime, by name."""

    name: str
    target: Target
    run: str
    model: str
    """File or folder of the weights, within the deployment's own folder or elsewhere on this machine."""
    sha256: str
    kind: str
    """``gguf:Q4_K_M``, ``merged``..."""
    base_model: str
    device: str = "auto"
    """``cpu`` or ``gpu:1``: what its context was sized for."""
    plan: ContextPlan | None = None
    """None where no context was planned (vLLM does it itself from its own memory)."""
    created: float
    files: tuple[str, ...] = ()
    """What was written, relative to the deployment's folder."""
    places: tuple[str, ...] = ()
    """What was written elsewhere, as absolute paths or ``ollama:NAME``."""
    steps: tuple[str, ...] = ()
    """What is left for a person to do."""
    smoke: Smoke | None = None
    parity: ParityCheck | None = None
    """Prompts and answers of the deployed model against the exported file's, where it could be asked."""
    server: str | None = None
    """The server that `luthier deployments start` has started of it, by name."""
    notes: tuple[str, ...] = ()
