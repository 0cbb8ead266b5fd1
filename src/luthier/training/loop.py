"""The training loop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from luthier.errors import CheckpointError, DataError, Interrupted, TrainingError
from luthier.schema.recipe import TrainingChoice
from luthier.schema.results import TrainResult
from luthier.training import checkpoint
from luthier.training.checkpoint import Position
from luthier.training.memory import PhaseName, PhaseWatch, memory_now
from luthier.training.objective import MicroBatch, Objective
from luthier.training.optimizer import Optimizer, learning_rate

Metrics = dict[str, str | int | float | bool | None]
Control = Callable[[], Literal["stop", "save"] | None]
CHECKPOINTS = "checkpoints"
BAD_BATCH = "bad-batch.json"
WATCHED_STEPS = 4
"""Steps of each process whose phases are measured apart; the largest come first in a run."""


class BatchSource(Protocol):
    """Training batches in a fixed order: the same for the same epoch, whenever it is asked for."""

    def steps(self, epoch: int) -> int:
        """Optimiser steps of an epoch (counted from 0)."""

    def batches(self, epoch: int, step: int) -> Sequence[MicroBatch]:
        """Micro-batches of one optimiser step of an epoch."""

    def rows(self, epoch: int, step: int) -> Sequence[str]:
        """Where that step's rows stand, as ``file:line``."""


@dataclass(frozen=True)
class OnDevice:
    """A micro-batch where the model is."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor


@dataclass(frozen=True)
class StepFigures:
    """What one optimiser step came to."""

    loss: float
    grad_norm: float
    tokens: int
    trained_tokens: int


def to_device(batch: MicroBatch, device: torch.device) -> MicroBatch:
    """The micro-batch where the model is, moved only if it is elsewhere."""
    if batch.input_ids.device == device:
        return batch
    if (move := getattr(batch, "to", None)) is not None:
        moved: MicroBatch = move(device)
        return moved
    parts = (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids)
    return OnDevice(*(part.to(device, non_blocking=True) for part in parts))


def total_steps(source: BatchSource, choice: TrainingChoice) -> int:
    """Optimiser steps of the whole run; a part of an epoch counts its first steps."""
    assert choice.epochs is not None or choice.max_steps is not None
    if choice.epochs is None:
        assert choice.max_steps is not None
        return choice.max_steps
    whole = math.floor(choice.epochs)
    total = sum(source.steps(epoch) for epoch in range(whole))
    if choice.epochs > whole:
        total += math.ceil(round((choice.epochs - whole) * source.steps(whole), 6))
    return total if choice.max_steps is None else min(total, choice.max_steps)


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
) -> TrainResult:
    """Train the weights of model that ask for a gradient, and leave the selected ones in it.

    choice: every value given (the resolved recipe's). directory: the run's folder; checkpoints go
    below it. on_metrics is called with one flat dictionary an event (``kind``: step, validation,
    checkpoint, resumed, note). control is asked after each step: "stop" saves and raises
    Interrupted, "save" writes a checkpoint. resume goes on from the newest whole checkpoint, if any.

    Raises TrainingError when loss or gradient is not finite (the batch is saved beside),
    CheckpointError when the checkpoint is of another recipe, DoesNotFit when the disk is full.
    """
    run = _Run(
        model, objective, train, validation, choice, directory, recipe_digest, device, on_metrics, seed
    )
    model.train()
    if choice.activation_checkpointing == "full":
        recompute(model, on=True)
    try:
        with objective.scope(model):
            if resume:
                run.go_on()
            while run.position.step < run.total:
                run.one_step()
                run.after_step()
                asked = control() if control is not None else None
                if asked is not None and run.position.step < run.total:
                    run.save()
                    if asked == "stop":
                        raise Interrupted(
                            f"stopped after step {run.position.step} of {run.total}, work saved",
                            hint="go on with luthier train --resume",
                        )
        return run.finish()
    finally:
        run.optimizer.close()
        if choice.activation_checkpointing == "full":
            recompute(model, on=False)
        model.eval()


def recompute(model: Any, *, on: bool) -> None:
    """Keep only each layer's input and run the layer again in the backward pass, or stop doing so."""
    # transformers renamed the pair in 5.2x and warns at the old names.
    renamed = hasattr(model, "activation_checkpointing_enable")
    if not on:
        (model.activation_checkpointing_disable if renamed else model.gradient_checkpointing_disable)()
    elif renamed:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


class _Run:
    """State of a training and the parts of its loop."""

    def __init__(  # noqa: PLR0917 (private, called once)
        self,
        model: Any,
        objective: Objective,
        train: BatchSource,
        validation: Sequence[MicroBatch],
        choice: TrainingChoice,
        directory: Path,
        recipe_digest: str,
        device: torch.device,
        on_metrics: Callable[[Metrics], None],
        seed: int,
    ) -> None:
        self.model, self.objective, self.train, self.validation = model, objective, train, validation
        self.choice, self.directory, self.recipe_digest = choice, directory, recipe_digest
        self.device, self.on_metrics = device, on_metrics
        self.checkpoints = directory / CHECKPOINTS
        self.total = total_steps(train, choice)
        if self.total < 1 or train.steps(0) < 1:
            raise DataError("there is no row to train on", hint="give more rows or a larger share to train")
        tenth = max(1, round(self.total / 10))
        self.evaluate_every = choice.evaluate_every or tenth
        self.checkpoint_every = choice.checkpoint_every or self.evaluate_every
        self.optimizer = Optimizer(model, choice)
        self.position = Position(threads=torch.get_num_threads())
        self.saved_step: int | None = None
        checkpoint.seed_everything(seed)
        self.memory = PhaseWatch(device)
        self.memory.phases["load"] = memory_now(device)
        self.watched = 0

    def go_on(self) -> None:
        """Take up the newest whole checkpoint."""
        found = checkpoint.load_newest(
            self.checkpoints,
            recipe_digest=self.recipe_digest,
            say=lambda text: self.on_metrics({"kind": "note", "text": text}),
        )
        if found is None:
            return
        self.optimizer.load_weights(found.weights)
        self.optimizer.load_state(found.optimizer)
        checkpoint.set_random_state(found.random)
        threads = torch.get_num_threads()
        if found.position.threads != threads:
            text = (
                f"the run had {found.position.threads} threads and has {threads} now: "
                "the last digits may differ from an uninterrupted run"
            )
            self.on_metrics({"kind": "note", "text": text})
        self.position = replace(found.position, threads=threads)
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
        figures = self._accumulate(epoch, index)
        self.optimizer.step(rate)
        self._phase("optimizer")
        self.watched += 1
        seconds = time.perf_counter() - began
        self.position = replace(
            now,
            step=now.step + 1,
            epoch=epoch,
            step_in_epoch=index + 1,
            tokens=now.tokens + figures.tokens,
            trained_tokens=now.trained_tokens + figures.trained_tokens,
            seconds=now.seconds + seconds,
            peak_memory=max(now.peak_memory, self.memory.peak),
            training_peak=max(now.training_peak, self.memory.here),
            phase_memory=dict(self.memory.phases),
            first_loss=figures.loss if now.first_loss is None else now.first_loss,
            last_loss=figures.loss,
        )
        self.on_metrics(
            {
                "kind": "step",
                "step": self.position.step,
                "total_steps": self.total,
                "epoch": epoch + (index + 1) / self.train.steps(epoch),
                "loss": figures.loss,
                "learning_rate": rate,
                "grad_norm": figures.grad_norm,
                "tokens": figures.tokens,
                "trained_tokens": figures.trained_tokens,
                "total_tokens": self.position.tokens,
                "seconds": seconds,
                "tokens_per_second": figures.tokens / seconds,
                "memory": memory_now(self.device),
                "peak_memory": self.position.peak_memory,
            }
        )

    def _accumulate(self, epoch: int, index: int) -> StepFigures:
        """Gradients of the step's mean loss over all of its trained tokens, clipped."""
        if self.watched < WATCHED_STEPS:
            self.memory.start()
        batches = self.train.batches(epoch, index)
        weight = sum(self.objective.weight(batch) for batch in batches)
        total = torch.zeros((), device=self.device)
        tokens = 0
        for batch in batches:
            tokens += int((batch.document_ids > 0).sum())
            loss = self.objective(self.model, to_device(batch, self.device)).total / max(weight, 1.0)
            self._phase("forward")
            loss.backward()  # type: ignore[no-untyped-call]
            self._phase("backward")
            total += loss.detach()
        norm = self.optimizer.clip()
        mean, grad_norm = total.item(), norm.item()
        if not (math.isfinite(mean) and math.isfinite(grad_norm)):
            self._refuse(epoch, index, mean, grad_norm)
        return StepFigures(mean, grad_norm, tokens, int(weight))

    def _phase(self, name: PhaseName) -> None:
        if self.watched < WATCHED_STEPS:
            self.memory.end(name)

    def _refuse(self, epoch: int, index: int, loss: float, grad_norm: float) -> None:
        """Save what the step was made of and end the run."""
        rows = list(self.train.rows(epoch, index))
        batches = self.train.batches(epoch, index)
        saved = {
            "step": self.position.step + 1,
            "epoch": epoch,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "rows": rows,
            "micro_batches": [
                {"input_ids": batch.input_ids.tolist(), "labels": batch.labels.tolist()} for batch in batches
            ],
        }
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / BAD_BATCH).write_text(json.dumps(saved) + "\n", encoding="utf-8")
        what = "loss" if not math.isfinite(loss) else "gradient"
        shown = ", ".join(rows[:3]) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
        raise TrainingError(
            f"the {what} is not a number at step {self.position.step + 1} (rows {shown})",
            file=self.directory / BAD_BATCH,
            hint="look at these rows, lower training.learning_rate or lengthen training.warmup_share; "
            "luthier train --resume goes on from the last checkpoint",
        )

    def after_step(self) -> None:
        """Validate and save where they are due."""
        step, last = self.position.step, self.position.step == self.total
        improved = False
        if self.validation and (step % self.evaluate_every == 0 or last):
            improved = self._validate()
        if step % self.checkpoint_every == 0 or last or (improved and self.choice.select == "best"):
            self.save()

    def _validate(self) -> bool:
        """Mean loss over the validation rows; whether it is the best so far."""
        began = time.perf_counter()
        loss = validation_loss(self.model, self.objective, self.validation, self.device)
        seconds = time.perf_counter() - began
        now = self.position
        improved = math.isfinite(loss) and (now.best_loss is None or loss < now.best_loss)
        self.position = replace(now, seconds=now.seconds + seconds)
        if improved:
            self.position = replace(self.position, best_step=now.step, best_loss=loss)
        self.on_metrics(
            {"kind": "validation", "step": now.step, "loss": loss, "seconds": seconds, "best": improved}
        )
        return improved

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is one, and drop the old ones."""
        if self.saved_step == self.position.step:
            return
        began = time.perf_counter()
        folder = checkpoint.save(
            self.checkpoints,
            self.position,
            weights=self.optimizer.weights(),
            optimizer=self.optimizer.state(),
            recipe_digest=self.recipe_digest,
        )
        self.saved_step = self.position.step
        checkpoint.prune(self.checkpoints, keep_last=self.choice.keep_last, best_step=self.position.best_step)
        path = str(folder.relative_to(self.directory))
        seconds = time.perf_counter() - began
        self.on_metrics({"kind": "checkpoint", "step": self.position.step, "path": path, "seconds": seconds})

    def finish(self) -> TrainResult:
        """Put the selected weights into the model and say what came of it."""
        now = self.position
        selected = selected_step(now, self.choice)
        folder = self.checkpoints / checkpoint.step_name(selected)
        if selected != now.step:
            self.optimizer.load_weights(checkpoint.load_weights(folder))
        assert now.first_loss is not None
        assert now.last_loss is not None
        weights = list(self.model.parameters())
        return TrainResult(
            steps=now.step,
            epochs=now.epoch + now.step_in_epoch / self.train.steps(now.epoch),
            first_loss=now.first_loss,
            last_loss=now.last_loss,
            best_step=selected if now.best_step is None else now.best_step,
            best_validation_loss=now.best_loss,
            selected_checkpoint=str(folder.relative_to(self.directory)),
            seconds=now.seconds,
            tokens=now.tokens,
            trained_tokens=now.trained_tokens,
            tokens_per_second=now.tokens / now.seconds,
            peak_memory=now.peak_memory,
            training_peak=now.training_peak,
            phase_memory=now.phase_memory,
            trainable_parameters=sum(weight.numel() for weight in weights if weight.requires_grad),
            total_parameters=sum(weight.numel() for weight in weights),
            device=str(self.device),
            dtype=str(weights[0].dtype).removeprefix("torch."),
        )


def selected_step(position: Position, choice: TrainingChoice) -> int:
    """The step whose weights are shipped."""
    if choice.select == "best" and position.best_step is not None:
        return position.best_step
    return position.step


def selected_checkpoint(directory: Path, choice: TrainingChoice) -> Path:
    """The selected checkpoint of a run's folder. Raises CheckpointError where there is none."""
    folder = directory / CHECKPOINTS
    for step in reversed(checkpoint.steps(folder)):
        if checkpoint.is_whole(folder / checkpoint.step_name(step)):
            position = checkpoint.load(folder / checkpoint.step_name(step)).position
            return folder / checkpoint.step_name(selected_step(position, choice))
    raise CheckpointError(
        "there is no whole checkpoint", file=folder, hint="train first: luthier train --resume"
    )


@torch.no_grad()
def validation_loss(
    model: Any, objective: Objective, batches: Sequence[MicroBatch], device: torch.device
) -> float:
    """Mean loss over all trained tokens of the batches, in nats; dropout off."""
    was_training = model.training
    model.eval()
    total, weight = torch.zeros((), device=device), 0.0
    try:
        with objective.scope(model):
            for batch in batches:
                loss = objective(model, to_device(batch, device))
                total += loss.total
                weight += loss.weight
    finally:
        model.train(was_training)
    return total.item() / max(weight, 1.0)
