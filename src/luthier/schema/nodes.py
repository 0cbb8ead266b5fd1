"""Machines that train one run together."""

from __future__ import annotations

from pydantic import Field

from luthier.schema.base import Record


class Place(Record):
    """Where a machine stands among those that train one run together."""

    nodes: int = Field(ge=2)
    """How many machines there are."""
    rank: int = Field(ge=0)
    """Which of them this is, from 0; the first keeps the run's folder and does all other stages."""
    host: str
    """Where they meet: an address of the first that all others reach."""
    port: int = Field(ge=1, le=65535)
    devices: int = Field(ge=1)
    """Devices of this machine that take part."""
    hosted: bool = False
    """Whether somebody else (torchrun) keeps the store at that address."""
    key: str = "luthier"
    """What entries in the store begin with: another start of the same job is another meeting."""

    @property
    def first(self) -> bool:
        """Whether this machine keeps the run."""
        return self.rank == 0

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Joined(Record):
    """What a machine says of itself when it comes to the meeting."""

    node: int
    host: str
    version: str
    """Luthier's, there."""
    accelerators: tuple[str, ...] = ()
    """Names of the devices that take part; none on a CPU."""


class Order(Record):
    """What the first machine asks the others to train."""

    run: str
    """The run's id."""
    path: str
    """Its folder there."""
    token: str
    """Contents of a file in that folder: a machine that reads it shares the disk."""
    recipe: str
    """The resolved recipe, as YAML."""
    model: dict[str, object]
    """The run's ``model.json``."""
    env: dict[str, object]
    """The run's ``env.json``."""
    data_digest: str
    """Digest of all rows."""
    kind: str
    """Kind of device: cuda or cpu."""


class Start(Record):
    """The word to begin training."""

    address: str
    """Where the processes form their group."""
    digest: str
    """Digest of what the training depends on."""
    size: int
    """Processes on all machines."""


class Trouble(Record):
    """Why a machine has given up."""

    node: int
    host: str
    kind: str
    """Class of the error."""
    message: str
    hint: str | None = None
