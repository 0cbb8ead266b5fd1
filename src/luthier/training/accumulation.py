"""The gradients of one step over all of its micro-batches, in pieces as small as the memory needs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luthier.errors import DoesNotFit, TrainingError
from luthier.schema.recipe import TrainingChoice
from luthier.training.division import Division
from luthier.training.events import Metrics, Tell, note
from luthier.training.guard import MORE_ROOM, Draws, HostShort, cut, ran_out, units_of
from luthier.training.memory import PhaseName, PhaseWatch, memory_now
from luthier.training.objective import MicroBatch, Objective, WholeStep, to_device
from luthier.training.optimizer import Optimizer
from luthier.training.overlap import Overlap
from luthier.training.recorded import Passes
from luthier.training.sharding import Divided, Through
from luthier.training.world import World

WATCHED_STEPS = 4
"""Steps of each process whose phases are measured apart; the largest come first in a run."""


@dataclass(frozen=True)
class StepFigures:
    """What one optimiser step came to."""

    loss: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    waited: float
    """Seconds until the batches were there."""


class Accumulation:
    """Works through the micro-batches of one step after another.

    passes: runs a micro-batch forward and backward. overlap: sends gradients while the backward pass runs,
    where it may. A step that runs out of memory is done again in smaller pieces, with the same loss, and
    those after it begin with these (``halvings``).
    """

    def __init__(
        self,
        model: Any,
        objective: Objective,
        choice: TrainingChoice,
        optimizer: Optimizer,
        *,
        passes: Passes,
        overlap: Overlap | None,
        memory: PhaseWatch,
        seed: int,
        world: World,
        division: Division,
        through: Through,
        tell: Tell,
    ) -> None:
        self.model, self.objective, self.choice, self.optimizer = model, objective, choice, optimizer
        self.passes, self.overlap, self.memory = passes, overlap, memory
        self.seed, self.world, self.division, self.through, self.tell = seed, world, division, through, tell
        self.device = memory.device
        self.watched = 0
        """Steps that are done in this process."""
        self.halvings = 0
        """How often micro-batches are halved."""

    def gradients(self, step: int, load: Callable[[], Sequence[MicroBatch]]) -> StepFigures:
        """Leave a step's gradients (counted from 1) in the masters, clipped. load: gives its micro-batches.

        Raises DoesNotFit where one row alone is too much for the memory, TrainingError where memory ran out
        and weights have been updated already.
        """
        began = time.perf_counter()
        turns = self.world.turns(load())
        waited = time.perf_counter() - began
        batches = [batch for batch, _ in turns]
        own = sum(self.objective.weight(batch) for batch, counts in turns if counts)
        (weight,) = self.world.total(own)
        self.draw(step, self.division.draws)
        while True:
            draws = Draws.now(self.device)
            loss, tokens = torch.zeros((), device=self.device), 0
            short: str | None = None
            if self.overlap is not None:
                self.overlap.begin()
            try:
                loss, tokens = self._accumulate(turns, weight)
                out = False
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                if self.optimizer.in_backward:
                    raise updated_already(step, "memory ran out") from None
                if self.world.sharded or self.division.side:
                    # The others wait for this one's part: there is no second try.
                    raise self._too_much(step, batches, error) from None
                out, short = True, _of_host(error)
            # Out of the block: the error's traceback holds the tensors that did not fit.
            if self.overlap is not None:
                self.overlap.end()
            if not self.world.most(int(out)):
                break
            self._shrink(step, batches, short)
            draws.put_back(self.device)
        if self.world.size > 1 and not self.world.sharded and self.overlap is None:
            self._add_up()
        norm = self.optimizer.clip()
        total, count = self.world.total(loss.item(), tokens)
        return StepFigures(total, norm.item(), int(count), int(weight), waited)

    def draw(self, step: int, place: int) -> None:
        """Begin a step's draws anew: a function of step and place, so that nothing need be saved."""
        if self.world.size > 1:
            torch.manual_seed(self.seed + 1_000_003 * (step - 1) + place)

    def _add_up(self) -> None:
        """Add the gradients of all processes up; a weight that none of them used stays without one."""
        self.division.add_up(self.optimizer.masters)
        masters = list(self.optimizer.masters.values())
        used = self.world.total(*(float(master.grad is not None) for master in masters))
        wanted = [master for master, count in zip(masters, used, strict=True) if count]
        for master in wanted:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        self.world.add([master.grad for master in wanted if master.grad is not None])

    def _accumulate(self, turns: Sequence[tuple[MicroBatch, bool]], weight: float) -> tuple[Tensor, int]:
        """Add up this process's part of the step's mean loss and its gradients; and its tokens."""
        if self.watched < WATCHED_STEPS:
            self.memory.start()
        pieces = []
        if not isinstance(self.objective, WholeStep):
            pieces = [(piece, counts) for whole, counts in turns for piece in cut(whole, self.halvings)]
        if self.world.sharded and self.halvings:
            # A batch of one row is not cut: each process takes part in as many passes as the others.
            pieces += [(pieces[0][0], False)] * (self.world.most(len(pieces)) - len(pieces))
        self.optimizer.gradients.single = self.optimizer.takes_single and len(pieces) == 1
        self.passes.begin()
        total = torch.zeros((), device=self.device)
        tokens = 0
        if turns and isinstance(self.objective, WholeStep):
            batches = [to_device(batch, self.device) for batch, _ in turns]
            tokens = sum(int((batch.document_ids > 0).sum()) for batch in batches)
            total = self.objective.step(self.model, batches, max(weight, 1.0))
            self.phase("backward")
            return total, tokens
        for place, (batch, counts) in enumerate(pieces, 1):
            tokens += int((batch.document_ids > 0).sum()) * counts
            if isinstance(self.through, Divided):
                self.through.begin(last=place == len(pieces))
            if self.overlap is not None and place == len(pieces):
                self.overlap.arm()
            total += self.passes(batch, counts / max(weight, 1.0), lambda: self.phase("forward"))
            self.phase("backward")
        self.passes.end(settled=self.watched >= WATCHED_STEPS)
        return total, tokens

    def forget(self) -> None:
        """Let go of the gradients that there are."""
        self.optimizer.forget()
        self.model.zero_grad(set_to_none=True)

    def _shrink(self, step: int, batches: Sequence[MicroBatch], short: str | None) -> None:
        """Halve what goes through the model at once, and let go of what the step has left behind.

        short: what the host's memory had no room for, where it was that which ran out.
        """
        held = memory_now(self.device)
        self.passes.forget("memory ran out")
        self.forget()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        pieces = [piece for batch in batches for piece in cut(batch, self.halvings)]
        count, unit = max(map(units_of, pieces), default=(0, "rows"))
        if self.world.most(count) < 2:
            told = short or f"{held / 2**30:.2f} GiB held"
            raise DoesNotFit(
                f"step {step} runs out of memory with one row at a time ({told})",
                hint=self._smaller(batches, short),
            )
        now = -(-count // 2)
        self.halvings += 1
        event: Metrics = {"step": step, "rows": count, "now": now, "unit": unit, "held": held}
        self.tell({"kind": "out_of_memory", **event})
        text = (
            f"step {step} ran out of memory with {count} {unit} at once, which the plan did not foresee: "
            f"going on with {now} and twice as many micro-batches; batch and loss stay the same"
        )
        self.tell(note(text))

    def _too_much(self, step: int, batches: Sequence[MicroBatch], error: BaseException) -> DoesNotFit:
        short = _of_host(error)
        told = f" ({short})" if short else ""
        rows = max(int(batch.input_ids.shape[0]) for batch in batches)
        smaller = f"training.micro_batch_size={rows // 2}; " if rows > 1 else ""
        return DoesNotFit(
            f"step {step} runs out of memory on one of the devices that hold the model together{told}",
            hint=f"{smaller}{self._smaller(batches, short)}; then luthier train --resume",
        )

    def _smaller(self, batches: Sequence[MicroBatch], short: str | None) -> str:
        """Ways to need less, those first that give up least; short: the host's memory, not the device's."""
        longest = max(int(batch.input_ids.shape[1]) for batch in batches)
        ways = []
        if short is not None:
            ways.append(
                f"training.activation_checkpointing=full keeps layers' inputs on the GPU; {MORE_ROOM}"
            )
        elif self.choice.activation_checkpointing not in ("full", "offload"):
            ways.append("training.activation_checkpointing=full")
        ways += [
            "a smaller method.rank, or method.name=lora instead of full",
            f"training.sequence_length={max(8, longest // 2)} with data.over_length=truncate",
            "a smaller model (`luthier recommend`)",
        ]
        return "; ".join(ways)

    def phase(self, name: PhaseName) -> None:
        """End a phase of one of the first steps."""
        if self.watched < WATCHED_STEPS:
            self.memory.end(name)


def _of_host(error: BaseException) -> str | None:
    """What the host's memory had no room for; None where it was the device's that ran out."""
    return str(error) if isinstance(error, HostShort) else None


def updated_already(step: int, what: str) -> TrainingError:
    """A step that cannot be taken back: some of its weights have changed."""
    return TrainingError(
        f"{what} at step {step}, where training.update_in_backward has changed weights",
        hint="luthier train --resume goes on from the last checkpoint; without update_in_backward such a "
        "step is done again in smaller pieces, or left out",
    )
