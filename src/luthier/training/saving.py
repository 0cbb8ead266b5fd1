"""When a checkpoint's parts are copied, who writes them, and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError
from luthier.schema.recipe import TrainingChoice
from luthier.training import checkpoint
from luthier.training.checkpoint import Position
from luthier.training.events import Metrics, Tell, note
from luthier.training.guard import HostShort
from luthier.training.manifest import CHECKPOINTS
from luthier.training.writer import HostCopies, Writer

if TYPE_CHECKING:
    from torch import Tensor


class Saver:
    """Checkpoints of one run below its folder, written beside the training or in its way.

    tell is called with an event ``checkpoint`` (step, path, seconds of writing, seconds that the training
    stood still for it) once it is on the disk, always from the caller's thread. Every method raises what
    `checkpoint.save` raised for a write that has failed meanwhile.
    """

    def __init__(self, directory: Path, choice: TrainingChoice, recipe_digest: str, tell: Tell) -> None:
        self.directory, self.choice, self.recipe_digest, self.tell = directory, choice, recipe_digest, tell
        self._copies, self._writer = HostCopies(), Writer()
        self._event: Metrics = {}
        self._short = False
        """Whether the host had no room for the copy."""

    def save(
        self,
        position: Position,
        *,
        weights: Mapping[str, Tensor],
        optimizer: Mapping[str, Any],
        average: Mapping[str, Tensor] | None,
        live: Iterable[Tensor] | None = None,
    ) -> None:
        """Copy the parts of a step's checkpoint and begin to write them, or write them at once.

        live: which of their tensors the training changes (`HostCopies.copy`).
        """
        began = time.perf_counter()
        self.wait()
        random = checkpoint.random_state()
        parts: dict[str, Any] = {"weights": weights, "optimizer": optimizer, "average": average}
        beside = self.choice.background_checkpoints is not False and not self._short
        if beside:
            try:
                parts = self._copies.copy(parts, live=live)
            except HostShort as error:
                beside, self._copies, self._short = False, HostCopies(), True
                self.tell(note(f"{error}: from now on training waits for each checkpoint to be written"))
        event = self._event = {"kind": "checkpoint", "step": position.step}

        def write() -> None:
            since = time.perf_counter()
            folder = checkpoint.save(
                self.directory / CHECKPOINTS,
                position,
                **parts,
                recipe_digest=self.recipe_digest,
                random=random,
            )
            checkpoint.prune(
                self.directory / CHECKPOINTS,
                keep_last=self.choice.keep_last,
                best_step=position.best_step,
            )
            event["path"] = str(folder.relative_to(self.directory))
            event["seconds"] = time.perf_counter() - since

        if beside:
            self._writer.submit(write)
        else:
            write()
        event["stalled"] = time.perf_counter() - began
        if not beside:
            self.tell(event)

    def look(self) -> None:
        """Tell of a write that has ended since."""
        if self._writer.ended():
            self.tell(self._event)

    def wait(self) -> None:
        """Return when all is on the disk, and tell of it."""
        if self._writer.wait():
            self.tell(self._event)

    def close(self, note: Callable[[str], None]) -> None:
        """Wait on the way out of a training that has failed already: a second failure is only told."""
        try:
            self.wait()
        except LuthierError as error:
            note(str(error))
