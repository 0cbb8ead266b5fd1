"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from luthier.errors import CheckpointError, DataError, DoesNotFit, Interrupted, TrainingError
from luthier.schema.recipe import TrainingChoice
from luthier.schema.results import TrainResult
from luthier.training import checkpoint
from luthier.training.accumulation import Accumulation, updated_already
from luthier.training.bad_steps import BadStep, BadSteps
from luthier.training.checkpoint import Position
from luthier.training.division import WHOLE, Division
from luthier.training.ema import Average
from luthier.training.events import Metrics, nobody, note
from luthier.training.faults import BAD_BATCHES, WINDOW, not_a_number
from luthier.training.fused import missing
from luthier.training.guard import ran_out
from luthier.training.held_out import validation_loss
from luthier.training.layers import CompileClock, layers_as
from luthier.training.manifest import CHECKPOINTS, step_name
from luthier.training.memory import PhaseWatch, memory_now
from luthier.training.neftune import noisy
from luthier.training.objective import MicroBatch, Objective
from luthier.training.optimizer import Optimizer, learning_rate
from luthier.training.overlap import Overlap
from luthier.training.profile import StepProfile
from luthier.training.recorded import Passes
from luthier.training.saving import Saver
from luthier.training.selection import selected_step
from luthier.training.sharding import Divided, Through, at_once, parameters_of
from luthier.training.source import BatchSource, total_steps
from luthier.training.world import ALONE, World

Control = Callable[[], Literal["stop", "save"] | None]
WISHES: tuple[Literal["stop", "save"] | None, ...] = (None, "save", "stop")
"""What a run may be asked for, the stronger later."""


def fit(
    model: Any,
    objective: Objective,
    train: BatchSource,
    validation: Sequence[MicroBatch],
    *,
    choice: TrainingChoice,
    seed: int,
    directory: Path,
    recipe_digest: str,
    device: torch.device,
    on_metrics: Callable[[Metrics], None],
    control: Control | None = None,
    resume: bool = False,
    world: World = ALONE,
    through: Through = at_once,
    division: Division = WHOLE,
    memory: PhaseWatch | None = None,
) -> TrainResult:
    """Train the weights of model that ask for a gradient, and leave the selected ones in it.

    choice: every value given (the resolved recipe's). directory: the run's folder; checkpoints go
    below it. on_metrics is called with one flat dictionary an event (``kind``: step, skipped, validation,
    checkpoint, resumed, spike, out_of_memory, note). control is asked after each step: "stop" saves and
    raises Interrupted, "save" writes a checkpoint. resume goes on from the newest whole checkpoint, if any.

    world: the processes that train together; each gives the same arguments, the first alone writes, speaks
    and is asked. through: what every use of a model whose weights are divided goes through
    (`sharding.divide`); the selected weights are not put back into such a model. division: what this process
    has of a model that is divided in another way, the objective with it. memory: takes the peaks of this
    process by phase, which the caller may read after any step; one of the loop's own where None.

    A step whose loss or gradient is not a number leaves the weights as they are, and so does one that
    runs out of memory: it is done again in smaller pieces, with the same loss.

    Raises TrainingError when too many steps come to no number (their batches are kept below the run's
    folder), CheckpointError when the checkpoint is of another recipe, DoesNotFit when the disk is full
    or one row alone is too much for the memory.
    """
    run = _Run(
        model, objective, train, validation, choice, seed, directory, recipe_digest, device, on_metrics,
        world, through, division, memory or PhaseWatch(device),
    )  # fmt: skip
    model.train()
    profile = StepProfile(choice.profile_steps if world.first else 0, directory, device)
    try:
        noise = noisy(model, choice.neftune_alpha)
        with layers_as(choice, model, run.note) as clock, objective.scope(model), noise:
            if resume:
                run.go_on()
            while not run.over:
                profile.before(run.position.step + 1)
                run.one_step()
                run.compiled(clock)
                run.profiled(profile.after(run.position.step))
                run.after_step()
                asked = run.asked(control)
                if asked is not None and not run.over:
                    run.save()
                    if asked == "stop":
                        run.saver.wait()
                        raise Interrupted(
                            f"stopped after step {run.position.step} of {run.total}, work saved",
                            hint="go on with luthier train --resume",
                        )
        return run.finish()
    finally:
        run.saver.close(run.note)
        run.profiled(profile.close(run.position.step))
        run.optimizer.close()
        if run.overlap is not None:
            run.overlap.close()
        model.eval()


@dataclass(eq=False, repr=False)
class _Run:
    """A training: what `fit` is given, the state that it has come to, and the parts of its loop."""

    model: Any
    objective: Objective
    train: BatchSource
    validation: Sequence[MicroBatch]
    choice: TrainingChoice
    seed: int
    directory: Path
    recipe_digest: str
    device: torch.device
    on_metrics: Callable[[Metrics], None]
    world: World
    through: Through
    division: Division
    memory: PhaseWatch

    def __post_init__(self) -> None:
        model, objective, choice, directory = self.model, self.objective, self.choice, self.directory
        train, device, seed = self.train, self.device, self.seed
        world, through, division = self.world, self.through, self.division
        self.divided = world.divided
        if not world.first:
            self.on_metrics = nobody
        self.checkpoints = directory / CHECKPOINTS
        self.total = total_steps(train, choice)
        if self.total < 1 or train.steps(0) < 1:
            raise DataError("there is no row to train on", hint="give more rows or a larger share to train")
        tenth = max(1, round(self.total / 10))
        self.evaluate_every = choice.evaluate_every or tenth
        self.checkpoint_every = choice.checkpoint_every or self.evaluate_every
        self.optimizer = Optimizer(model, choice, world, division)
        self.average = None if choice.ema is None else Average(self.optimizer, choice.ema)
        self.position = Position(threads=torch.get_num_threads())
        self.saved_step: int | None = None
        self.saver = Saver(directory, choice, self.recipe_digest, self.on_metrics)
        self.graphs = 0
        if not self.divided:
            world.same(self.optimizer.masters.values())
        self.optimizer.round_back()
        checkpoint.seed_everything(seed)
        self.memory.phases["load"] = memory_now(device)
        alone = not (world.sharded or division.side or self.optimizer.in_backward)
        # A layer whose input is on the host runs backward inside another's pass; replayed graphs tell nobody.
        nested = choice.activation_checkpointing == "offload" or bool(choice.offload_parameters)
        early = alone and not nested and not choice.cuda_graphs
        self.overlap: Overlap | None = None
        if early and world.shares > 1:
            self.overlap = Overlap(self.optimizer.model_weights, self.optimizer.masters, world)
        passes = Passes(
            model,
            objective,
            self.optimizer.masters,
            through=through,
            record=bool(choice.cuda_graphs) and device.type == "cuda" and alone,
            say=self.note,
            arriving=self.optimizer.gradients,
        )
        self.sums = Accumulation(
            model, objective, choice, self.optimizer, passes=passes, overlap=self.overlap, memory=self.memory,
            seed=seed, world=world, division=division, through=through, tell=self.on_metrics,
        )  # fmt: skip
        self.bad = BadSteps(directory, choice, self.on_metrics, writes=world.first)
        if (lacking := missing(device)) is not None:
            self.note(lacking)

    @property
    def over(self) -> bool:
        """Whether all steps are done, or enough of them."""
        return self.position.step >= self.total or self.position.ended

    def asked(self, control: Control | None) -> Literal["stop", "save"] | None:
        """What the first process is asked for, told to all."""
        found = control() if control is not None and self.world.first else None
        return WISHES[self.world.most(WISHES.index(found))]

    def note(self, text: str) -> None:
        """Say something to whoever reads the metrics."""
        self.on_metrics(note(text))

    def compiled(self, clock: CompileClock) -> None:
        """Say what making kernels took, whenever it took something."""
        if clock.graphs > self.graphs:
            self.graphs = clock.graphs
            self.note(f"compiled the layers into {clock.graphs} graphs, {clock.seconds:.0f} s in all")

    def profiled(self, path: Path | None) -> None:
        """Say where a trace was written."""
        if path is not None:
            text = (
                f"profile written to {path.relative_to(self.directory)}: open it at https://ui.perfetto.dev"
            )
            self.note(text)

    def go_on(self) -> None:
        """Take up the newest whole checkpoint."""
        found = checkpoint.load_newest(
            self.checkpoints,
            recipe_digest=self.recipe_digest,
            say=self.note,
        )
        if found is None:
            return
        self.optimizer.load_weights(found.weights)
        self.optimizer.load_state(found.optimizer)
        if self.average is not None and found.average is not None:
            self.average.load(found.average)
        checkpoint.set_random_state(found.random)
        threads = torch.get_num_threads()
        if found.position.threads != threads:
            text = (
                f"the run had {found.position.threads} threads and has {threads} now: "
                "the last digits may differ from an uninterrupted run"
            )
            self.note(text)
        self.position = replace(found.position, threads=threads)
        self.sums.halvings = self.position.halvings
        for name, size in found.position.phase_memory.items():
            self.memory.phases[name] = max(size, self.memory.phases.get(name, 0))
        self.saved_step = self.position.step
        self.on_metrics({"kind": "resumed", "step": self.position.step, "total_steps": self.total})

    def one_step(self) -> None:
        """Forward and backward over the step's micro-batches, then one update."""
        began = time.perf_counter()
        now = self.position
        epoch, index = now.epoch, now.step_in_epoch
        if index >= self.train.steps(epoch):
            epoch, index = epoch + 1, 0
        rate = learning_rate(now.step, self.total, self.choice)
        self.optimizer.begin(rate)
        figures = self.sums.gradients(now.step + 1, lambda: self.train.batches(epoch, index))
        self.position = replace(now, halvings=self.sums.halvings)
        fault = not_a_number(figures.loss, figures.grad_norm)
        this = BadStep(now.step + 1, self.train, epoch, index, figures)
        if fault is not None:
            self._skip(this, fault)
        elif self.bad.leap(this, now.recent):
            self.sums.forget()
        else:
            self._update(rate)
        self.sums.phase("optimizer")
        self.sums.watched += 1
        seconds = time.perf_counter() - began
        good = fault is None
        self.position = replace(
            self.position,
            step=now.step + 1,
            epoch=epoch,
            step_in_epoch=index + 1,
            tokens=now.tokens + figures.tokens,
            trained_tokens=now.trained_tokens + figures.trained_tokens,
            seconds=now.seconds + seconds,
            peak_memory=max(now.peak_memory, self.memory.peak),
            training_peak=max(now.training_peak, self.memory.here),
            phase_memory=dict(self.memory.phases),
            first_loss=figures.loss if now.first_loss is None and good else now.first_loss,
            last_loss=figures.loss if good else now.last_loss,
            recent=[*now.recent, figures.loss][-WINDOW:] if good else now.recent,
        )
        self.on_metrics(
            {
                "kind": "step" if good else "skipped",
                "step": self.position.step,
                "total_steps": self.total,
                "epoch": epoch + (index + 1) / self.train.steps(epoch),
                "loss": figures.loss if good else None,
                "learning_rate": rate,
                "grad_norm": figures.grad_norm if good else None,
                "tokens": figures.tokens,
                "trained_tokens": figures.trained_tokens,
                "total_tokens": self.position.tokens,
                "seconds": seconds,
                "tokens_per_second": figures.tokens / seconds,
                "data_wait": figures.waited,
                "memory": memory_now(self.device),
                "peak_memory": self.position.peak_memory,
            }
        )

    def _update(self, rate: float) -> None:
        # Weights that are rounded by chance stay the same in all processes that hold the same ones.
        self.sums.draw(self.position.step + 1, self.world.size + self.world.place("shard"))
        try:
            self.optimizer.step(rate)
            if self.average is not None:
                self.average.update()
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
            raise DoesNotFit(
                f"the optimiser's states do not fit at step {self.position.step + 1}: {error}".splitlines()[
                    0
                ],
                hint="method.name=lora or a smaller method.rank; a smaller model (`luthier recommend`)",
            ) from None

    def _skip(self, bad: BadStep, fault: str) -> None:
        """Leave a step out, weights untouched; end the run when there have been too many."""
        if self.optimizer.in_backward:
            what = f"the {fault} is not a number"
            self.bad.keep(bad, what)
            raise updated_already(bad.step, what)
        self.sums.forget()
        self.position = replace(self.position, skipped=self.position.skipped + 1)
        self.bad.leave_out(bad, fault, self.position.skipped)

    def after_step(self) -> None:
        """Validate and save where they are due."""
        self.saver.look()
        step, last = self.position.step, self.position.step == self.total
        improved = False
        if self.validation and (step % self.evaluate_every == 0 or last):
            improved = self._validate()
            last = last or self._enough()
        if step % self.checkpoint_every == 0 or last or (improved and self.choice.select == "best"):
            self.save()

    def _validate(self) -> bool:
        """Mean loss over the validation rows; whether it is the best so far."""
        began = time.perf_counter()
        loss, averaged = self._held_out_loss(), {}
        if self.average is not None and self.average.values:
            with self.average.shown():
                averaged["average_loss"] = self._held_out_loss()
        seconds = time.perf_counter() - began
        now = self.position
        improved = math.isfinite(loss) and (now.best_loss is None or loss < now.best_loss)
        self.position = replace(now, seconds=now.seconds + seconds)
        if improved:
            self.position = replace(self.position, best_step=now.step, best_loss=loss, stale=0)
        else:
            self.position = replace(self.position, stale=now.stale + 1)
        event: Metrics = {"kind": "validation", "step": now.step, "loss": loss, **averaged}
        self.on_metrics({**event, "seconds": seconds, "best": improved})
        return improved

    def _held_out_loss(self) -> float:
        return validation_loss(
            self.model, self.objective, self.validation, self.device, world=self.world, through=self.through
        )

    def _enough(self) -> bool:
        """Whether the validation loss has not fallen for as long as the recipe bears."""
        patience, now = self.choice.patience, self.position
        if patience is None or now.stale < patience or now.step == self.total:
            return False
        self.position = replace(now, ended=True)
        text = (
            f"stopped at step {now.step} of {self.total}: {now.stale} evaluations without a validation loss "
            f"below that of step {now.best_step} (training.patience {patience})"
        )
        self.note(text)
        return True

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one, and drop the old ones."""
        if self.saved_step == self.position.step:
            return
        self.saved_step = self.position.step
        if not self.world.first and not self.divided:
            return
        # Where the weights are divided all give their parts, and the first writes them.
        weights, optimizer = self.optimizer.weights(), self.optimizer.state()
        average = None if self.average is None else self.average.values
        if self.world.first:
            # What was gathered from the others is nobody else's and need not be copied.
            live = self.optimizer.tensors() if self.divided else None
            self.saver.save(self.position, weights=weights, optimizer=optimizer, average=average, live=live)

    def _put_back(self, step: int) -> int:
        """Put the weights of a checkpoint into the model; the step whose weights are there then.

        They stay as they are where it is torn: its run must not stand still for ever.
        """
        try:
            weights = checkpoint.load_weights(self.checkpoints / step_name(step))
        except CheckpointError as error:
            last = self.position.step
            self.note(f"{error.message}: step {step} was the best, the weights of step {last} are shipped")
            return last
        self.optimizer.load_weights(weights)
        return step

    def finish(self) -> TrainResult:
        """Put the selected weights into the model and say what came of it."""
        self.saver.wait()
        self.world.wait()
        now = self.position
        if now.first_loss is None or now.last_loss is None:
            raise TrainingError(
                "not one step came to a number, so nothing was trained",
                file=self.directory / BAD_BATCHES,
                hint="lower training.learning_rate; look at the batches kept there",
            )
        selected = selected_step(now, self.choice)
        folder = self.checkpoints / step_name(selected)
        # A machine that takes part in another one's run has no folder of it; its weights are not kept.
        if selected != now.step and not self.divided and (self.world.first or folder.is_dir()):
            selected = self._put_back(selected)
            folder = self.checkpoints / step_name(selected)
        if self.choice.select == "ema" and self.average is not None:
            self.optimizer.load_weights(self.average.values)
        weights = list(self.model.parameters())
        trained = sum(weight.numel() for weight in weights if weight.requires_grad)
        sizes = self.division.sizes or (trained, parameters_of(self.model))
        dtype = self.through.dtype if isinstance(self.through, Divided) else weights[0].dtype
        return TrainResult(
            steps=now.step,
            epochs=now.epoch + now.step_in_epoch / self.train.steps(now.epoch),
            first_loss=now.first_loss,
            last_loss=now.last_loss,
            best_step=selected if now.best_step is None else now.best_step,
            best_validation_loss=now.best_loss,
            selected_checkpoint=str(folder.relative_to(self.directory)),
            skipped_steps=now.skipped,
            stopped_early=now.ended,
            seconds=now.seconds,
            tokens=now.tokens,
            trained_tokens=now.trained_tokens,
            tokens_per_second=now.tokens / now.seconds,
            peak_memory=now.peak_memory,
            training_peak=now.training_peak,
            phase_memory=now.phase_memory,
            trainable_parameters=sizes[0],
            total_parameters=sizes[1],
            device=str(self.device),
            dtype=str(dtype).removeprefix("torch."),
        )
