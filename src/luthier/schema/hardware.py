"""What a machine has. Sizes are bytes, rates are per second."""

from __future__ import annotations

from typing import Literal

from luthier.schema.base import Fact, Record


class Holder(Record):
    """A process that holds memory of an accelerator."""

    pid: int
    name: str
    memory_bytes: int | None
    """None where the driver does not say."""


class Accelerator(Record):
    """One GPU, real or hypothetical."""

    index: int
    name: str
    kind: Literal["cuda", "rocm", "mps"]
    memory_total: int
    memory_free: int
    compute_capability: tuple[int, int] | None = None
    bf16: bool
    fp8: bool = False
    driver: str | None = None
    bf16_flops: float | None = None
    """Dense matrix rate of the datasheet, in FLOP/s (fp16 where there is no bf16); None if unknown."""
    bandwidth: float | None = None
    """Memory bandwidth of the datasheet, in bytes/s."""
    holders: tuple[Holder, ...] = ()


class Processor(Record):
    """The CPU."""

    name: str
    cores: int
    """Cores that this process may use."""
    instruction_sets: tuple[str, ...]
    bf16: bool
    """Whether bf16 matrix products run natively (AVX512-BF16 or AMX, or ARM's BF16)."""


class Hardware(Record):
    """One machine, as audited or as described by the user."""

    processor: Processor
    memory_total: int
    memory_free: int
    disk_free: int | None
    """Free bytes where runs are written; None for hypothetical hardware."""
    accelerators: tuple[Accelerator, ...] = ()
    bandwidth: float | None = None
    """Bandwidth of the processor's memory in bytes/s; None where it is not known."""
    words: str = ""
    """How the user described it."""
    hypothetical: bool = False
    """True where it was described by the user, not read from this machine."""
    os: str = ""
    versions: dict[str, str] = {}
    """Package -> installed version."""


class GpuSpec(Fact):
    """An accelerator by its datasheet."""

    id: str
    name: str
    aliases: tuple[str, ...] = ()
    kind: Literal["cuda", "rocm", "mps"] = "cuda"
    memory_total: int
    """Bytes that a process sees: measured where it was, else 98 % of the nameplate."""
    nameplate: int
    """Bytes as sold."""
    flops: float
    """Dense matrix rate in FLOP/s: bf16, or fp16 where there is no bf16."""
    bandwidth: float
    """Memory bandwidth in bytes/s."""
    compute_capability: tuple[int, int] | None = None
    bf16: bool = True
    fp8: bool = False
    unified: bool = False
    """The accelerator's memory is the machine's memory."""
    price_per_hour: float | None = None
    """US dollars for an hour of one, rented on demand; None where no dated price is at hand."""
    priced: str = ""
    """Key into the catalogue's sources: whose price, and when."""
    verified: Literal["measured", "datasheet", "secondary", "recalled"]
