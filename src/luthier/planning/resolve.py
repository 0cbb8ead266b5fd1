"""Derive every value that a recipe leaves open, each with a sentence that says where it came from."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from luthier.catalog.index import index
from luthier.catalog.purposes import spec_of, tunes_preferences
from luthier.errors import DoesNotFit, RecipeError
from luthier.planning.correction import Corrections
from luthier.planning.division import check_division, divided_along
from luthier.planning.estimate import Device, compiles, device_of, estimate_training, evaluation_seconds
from luthier.planning.launching import check_graphs, records
from luthier.planning.layout import Layout, answers_do_not_fit, choose, over_devices
from luthier.planning.levers import check_levers, check_units, why_not_offloaded
from luthier.planning.solver import GIB, HOST_SHARE, Question, copies_to_products, demand_host, does_not_fit
from luthier.planning.together import check_devices, why_not_divided
from luthier.schema.base import Range
from luthier.schema.data_profile import LengthProfile
from luthier.schema.estimate import Estimate, EvaluationShape, TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.hyperparameter import Condition, Hyperparameter
from luthier.schema.model import Architecture
from luthier.schema.recipe import Dtype, Lora, Parallel, Recipe
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.padding import FILLED, padding_of
from luthier.sizing.parameters import count_parameters
from luthier.sizing.speed import add
from luthier.sizing.states import checkpoint_bytes
from luthier.sizing.training import BYTES
from luthier.sizing.vision import with_tower

EVALUATIONS = 10
"""Evaluations on the validation rows in one run."""
ROUND_TO = 8
"""Sequence lengths are rounded up to a multiple of this."""
ANSWER_TOKENS = {"cuda": 32_768, "cpu": 8_192}
"""Tokens of prompts and answers at once while a model is judged."""
MOST_PROMPTS = 64


@dataclass(frozen=True)
class Resolved:
    """A recipe with nothing left to derive, and what it will need here."""

    recipe: Recipe
    estimate: Estimate
    device: Device
    shape: TrainingShape
    """How the step is cut."""
    evaluation: EvaluationShape
    tokens: int
    """All training tokens, every epoch counted."""
    steps: int
    """Optimiser steps of the whole run."""
    evaluation_seconds: Range | None
    """Time to answer the held-out prompts once with one model."""
    disk_bytes: int
    """Most that checkpoints and exports take on the disk."""
    warnings: tuple[str, ...] = ()


def resolve(
    recipe: Recipe,
    *,
    arch: Architecture,
    hardware: Hardware,
    profile: LengthProfile,
    matrix_rates: dict[str, float] | None = None,
    corrections: Corrections | None = None,
) -> Resolved:
    """Fill every open value of a recipe for one machine and predict what it needs.

    profile: lengths of the rendered rows. matrix_rates: measured FLOP/s of the device by dtype.
    corrections: what earlier runs on this machine came to. What the recipe says is never changed.
    Errors: DoesNotFit with what would fit, Unsupported for a method that is not done yet, RecipeError
    for contradictions.
    """
    return _Resolver(recipe, arch, hardware, profile, matrix_rates or {}, corrections=corrections).run()


class _Resolver:
    """Collects derived values and their sources; each step reads what the ones before it set."""

    def __init__(
        self,
        recipe: Recipe,
        arch: Architecture,
        hardware: Hardware,
        profile: LengthProfile,
        rates: dict[str, float],
        *,
        corrections: Corrections | None,
    ) -> None:
        self.spec = spec_of(recipe.task)
        if self.spec.answers != "chat":
            # A head over labels or scores stands in for the one over the vocabulary.
            arch = arch.model_copy(update={"head": False, "tied_embeddings": False})
        if recipe.vision is not None:
            arch = with_tower(arch, recipe.vision)
        self.given, self.arch, self.hardware, self.profile = recipe, arch, hardware, profile
        self.rates, self.corrections = rates, corrections
        self.device: Device = device_of(hardware)
        check_levers(recipe)
        check_units(recipe, hardware, self.device)
        check_devices(recipe, hardware, self.device)
        check_division(recipe, arch)
        self.devices = recipe.training.devices
        apart = recipe.training.parallel or Parallel()
        self.shares = self.devices // (apart.tensor * apart.context * apart.pipeline * apart.expert)
        """Into how many parts the rows of a step are shared out."""
        self.sources = dict(recipe.sources)
        self.values: dict[str, Any] = {}
        self.warnings: list[str] = []

    def value(self, key: str) -> Any:
        """The recipe's own value, or the derived one."""
        if key in self.values:
            return self.values[key]
        found: Any = self.given
        for part in key.split("."):
            found = getattr(found, part)
        return found

    def derive(self, key: str, value: Any, source: str) -> Any:
        """Set a value that the recipe leaves open; one that it gives stays."""
        if self.value(key) is None:
            self.values[key] = value
            self.sources[key] = source
        return self.value(key)

    def run(self) -> Resolved:
        self._types()
        self._documented()
        length = self._length()
        texts = math.ceil(self.profile.inputs)
        together = length * texts  # all texts of a row are in memory at once
        tokens, steps = self._amount(together)
        self._kernels(steps)
        shape = self._copied(self._cut(together, texts))
        shape = self._launches(shape)
        self._intervals(steps)
        evaluation = self._evaluation()
        question = self._question(tokens)
        estimate = self._estimate(shape, tokens, evaluation)
        while (
            estimate.process.high > question.budget
            and estimate.peak.name == "evaluate"
            and self.given.evaluation.batch_size is None
            and evaluation.batch_size > 1
        ):
            evaluation = self._fewer(evaluation, question.budget)
            estimate = self._estimate(shape, tokens, evaluation)
        if estimate.process.high > question.budget:
            if shape.shard > 1 and estimate.peak.name == "evaluate":
                raise answers_do_not_fit(question, estimate)
            raise does_not_fit(question, shape)
        self._name()
        recipe = self._recipe()
        dtype = str(self.value("model.dtype"))
        judging = evaluation_seconds(
            self.arch,
            evaluation,
            self.hardware,
            device=self.device,
            dtype=dtype,
            matrix_rate=self.rates.get(dtype),
        )
        validating = self._validation_share(estimate, tokens, steps)
        return Resolved(
            recipe=recipe,
            estimate=estimate.model_copy(update={"seconds": add(estimate.seconds, validating)}),
            device=self.device,
            shape=shape,
            evaluation=evaluation,
            tokens=tokens,
            steps=steps,
            evaluation_seconds=judging,
            disk_bytes=disk_bytes(recipe, self.arch, estimate.trainable_parameters),
            warnings=tuple(self.warnings),
        )

    def _types(self) -> None:
        """Type of the weights by what the device does fast, whatever the checkpoint was saved in."""
        processor = self.hardware.processor
        if self.device == "cuda":
            gpu = self.hardware.accelerators[0]
            if gpu.bf16:
                self.derive("model.dtype", "bfloat16", f"{gpu.name} computes bf16 natively")
            else:
                self.derive("model.dtype", "float32", f"{gpu.name} has no bf16")
                if self.value("model.dtype") == "bfloat16":
                    said = "bf16, which model.dtype asks for, is emulated there and slower than fp32"
                else:
                    said = "fp32 is right everywhere and several times slower than fp16"
                self.warnings.append(f"{gpu.name} has no bf16: {said}")
        else:
            dtype, why = self._host_type()
            self.derive("model.dtype", dtype, why)
            if self.value("model.dtype") == "bfloat16" and not processor.bf16:
                self.warnings.append(
                    f"bf16 is emulated on {processor.name}: expect it to be tens of times slower than fp32"
                )
        self.derive("model.attention", "sdpa", "torch's fused attention, the fastest on every device")

    def _host_type(self) -> tuple[Dtype, str]:
        processor = self.hardware.processor
        half, single = self.rates.get("bfloat16"), self.rates.get("float32")
        if half is not None and single is not None:
            measured = f"measured here: bf16 {half / 1e9:.0f}, fp32 {single / 1e9:.0f} GFLOP/s"
            if processor.bf16 and half > 1.3 * single:
                return "bfloat16", measured
            return "float32", measured
        if processor.bf16:
            return "bfloat16", f"{processor.name} computes bf16 natively"
        return "float32", f"{processor.name} has no bf16 instructions: whatever the weights are saved in"

    def _documented(self) -> None:
        """Values that are taken from the catalogue's table of documented settings."""
        training = self.given.training
        if training.learning_rate is None:
            self._from_table("learning_rate")
        if training.epochs is None and training.max_steps is None:
            self._from_table("epochs")
        if training.batch_size is None:
            self._from_table("batch_size")
            rows = self.profile.train.count
            if self.values["training.batch_size"] > rows:
                self.values["training.batch_size"] = rows
                self.sources["training.batch_size"] = f"all {rows} training rows"
            unit = (training.micro_batch_size or 1) * self.shares
            if self.values["training.batch_size"] % unit:
                self.values["training.batch_size"] = -(-self.values["training.batch_size"] // unit) * unit
                self.sources["training.batch_size"] += f", rounded up to a multiple of {unit}"
        method = self.given.method
        if isinstance(method, Lora):
            self.derive("method.alpha", 2.0 * method.rank, f"twice the rank of {method.rank}")

    def _from_table(self, name: str) -> None:
        row = documented(name, self.given, self.arch, self.profile.train.count)
        value = int(row.value) if name == "batch_size" else row.value
        basis = "" if row.basis == "documented" else f"{row.basis}: "
        self.derive(f"training.{name}", value, basis + row.source)

    def _length(self) -> int:
        """The sequence length: as long as the longest row, within the model's context."""
        longest = self.profile.train.maximum
        if self.profile.validation is not None:
            longest = max(longest, self.profile.validation.maximum)
        rounded = max(ROUND_TO, -(-longest // ROUND_TO) * ROUND_TO)
        ceiling = self.arch.max_positions
        if ceiling is not None and rounded > ceiling:
            rounded, why = ceiling, f"the model's context; the longest row has {longest:,} tokens"
        else:
            why = f"the longest row has {longest:,} tokens"
        length = self.derive("training.sequence_length", rounded, why)
        if ceiling is not None and length > ceiling:
            raise RecipeError(
                f"training.sequence_length: {length:,} is beyond the model's context of {ceiling:,} tokens",
                hint=f"set it to at most {ceiling}",
            )
        self.derive(
            "data.packing",
            False,
            "rows of a micro-batch lie end to end without padding, so packing would only change the batch",
        )
        return int(length)

    def _cut(self, length: int, texts: int) -> TrainingShape:
        """Micro-batch and checkpointing: the fastest cut of the batch that fits.

        length: tokens of all texts of the longest row; texts: how many they are.
        """
        whole = int(self.value("training.batch_size"))
        micro = self.given.training.micro_batch_size
        unit = (micro or 1) * self.shares
        if whole % unit:
            parts = [] if micro is None else [f"training.micro_batch_size {micro}"]
            parts += [f"training.devices {self.shares}"] if self.shares > 1 else []
            raise RecipeError(
                f"training.batch_size {whole} is not a multiple of {' times '.join(parts)}",
                hint=f"use {-(-whole // unit) * unit} rows, or a micro-batch that divides {whole}",
            )
        batch = whole // self.shares
        if self.given.training.update_in_backward:
            micro = batch  # one backward pass is one step
        mode = self.given.training.activation_checkpointing
        packed = bool(self.value("data.packing"))
        mean = min(self.profile.train.total / max(1, self.profile.train.count), length)
        wanted = TrainingShape(
            micro_batch_size=micro or batch,
            sequence_length=length,
            batch_size=batch,
            documents=max(1, int(length // mean)) if packed else texts,
            mean_length=length if packed else mean,
            trained_share=min(1.0, self.profile.trained_share),
            patches=self.profile.patches,
            patches_per_token=self.profile.patches_total / max(1, self.profile.train.total),
            activation_checkpointing=mode or "none",
            recomputed_layers=self.given.training.recomputed_layers,
            compiled=bool(self.value("training.compile")),
            padded=self.spec.answers != "chat",
            compared=self._compared(batch, texts),
            optimizer=self.given.training.optimizer,
            update_in_backward=self.given.training.update_in_backward,
            added_up=self.devices > 1,
            ema=self.given.training.ema is not None,
            background_checkpoints=bool(self.given.training.background_checkpoints),
            offload_parameters=bool(self.given.training.offload_parameters),
            log_probs=tunes_preferences(self.given),
            extra_forwards=self._reference_passes(),
        )
        question = self._question(1)
        pick = partial(
            choose, question, devices=self.devices, given=self.given.training.parallel,
            dividable=why_not_divided(self.given) is None,
            micro_fixed=micro is not None, checkpointing_fixed=mode is not None,
        )  # fmt: skip
        if wanted.offload_parameters:
            demand_host(question)
        try:
            layout = pick(wanted)
        except DoesNotFit as error:
            found = self._waiting(question, wanted, pick)
            if found is None:
                raise error from None
            layout = found
        shape = layout.shape
        if self.devices > 1:
            self.values["training.parallel"] = layout.sizes
            given = self.given.training.parallel
            if given is None or given.shard is None:
                self.sources["training.parallel"] = layout.why
            elif given.replicate is None:
                self.sources["training.parallel.replicate"] = layout.why
            if layout.why_kept is not None and (given is None or given.reshard is None):
                self.sources["training.parallel.reshard"] = layout.why_kept
        shape = shape.model_copy(update={"padding": self._padding(shape)})
        estimate = question.estimate(shape)
        fits = f"{estimate.process.expected / GIB:.1f} of {question.budget / GIB:.1f} GiB"
        self.derive(
            "training.micro_batch_size",
            shape.micro_batch_size,
            f"fits {fits}; {whole // shape.micro_batch_size} of them make the batch of {whole}"
            if shape.micro_batch_size < whole
            else f"the whole batch fits {fits}",
        )
        self.derive(
            "training.activation_checkpointing",
            shape.activation_checkpointing,
            f"not needed: {fits}"
            if shape.activation_checkpointing == "none"
            else f"without it the step would not fit {question.budget / GIB:.1f} GiB, or run slower",
        )
        return shape

    def _padding(self, shape: TrainingShape) -> float:
        """Places for each token in a step of rows as they are drawn."""
        if not shape.padded:
            return 1.0
        texts = max(1, round(self.profile.inputs))
        return padding_of(
            self.profile.train,
            drawn=(shape.batch_size or shape.micro_batch_size) * texts,
            most=shape.micro_batch_size * texts,
            longest=max(1, int(self.value("training.sequence_length"))),
            filled=FILLED if self.device == "cuda" else 0,
        )

    def _waiting(
        self, question: Question, wanted: TrainingShape, pick: Callable[[TrainingShape], Layout]
    ) -> Layout | None:
        """The cut with frozen weights in the host's memory; None if they may not be, or that fits no more."""
        asked = self.given.training.offload_parameters
        if asked is not None or self.device != "cuda" or why_not_offloaded(self.given) is not None:
            return None
        try:
            demand_host(question)
            layout = pick(wanted.model_copy(update={"offload_parameters": True}))
        except DoesNotFit:
            return None
        copies = copies_to_products(question, layout.shape)
        beside = "which takes no longer than the products"
        if copies > 1:
            beside = f"which makes a step take about {copies:.1f} times as long"
        self.derive(
            "training.offload_parameters",
            True,
            f"nothing else fits {question.budget / GIB:.1f} GiB: each micro-batch reads the frozen weights "
            f"twice from the host, {beside}",
        )
        return layout

    def _copied(self, shape: TrainingShape) -> TrainingShape:
        """Whether the host's memory has room for a copy of what a checkpoint holds."""
        element = BYTES[str(self.value("model.dtype"))]
        size = checkpoint_bytes(
            self.arch, self.given.method, shape.optimizer, element=element, average=shape.ema
        )
        copied = shape.model_copy(update={"background_checkpoints": True})
        if self.device == "cpu":
            fits = self._question(1).fits(copied)
        else:
            fits = size <= self.hardware.memory_free * HOST_SHARE
        said = f"a copy of the {size / 1e6:,.0f} MB that a checkpoint holds"
        why = f"{said} fits the memory" if fits else f"{said} does not fit: training waits for each"
        beside = self.derive("training.background_checkpoints", fits, why)
        return copied if beside else shape

    def _reference_passes(self) -> float:
        """Forward passes of DPO's reference for each training pass: with adapters each time, else once."""
        choice = self.given.preference
        if choice is None or choice.loss != "dpo":
            return 0.0
        method = self.given.method
        if isinstance(method, Lora) and method.init_from is None:
            return 1.0
        return 1.0 / max(1.0, float(self.value("training.epochs") or 1.0))

    def _compared(self, batch: int, texts: int) -> int:
        """Numbers that compare a batch's vectors: each query with every document, for each dimension."""
        choice = self.given.similarity
        if self.given.task != "similarity":
            return 0
        cuts = 1 + len(choice.dimensions) if choice is not None and choice.dimensions else 1
        return cuts * batch * batch * max(1, texts - 1)

    def _question(self, tokens: int) -> Question:
        dtype = str(self.value("model.dtype"))
        return Question(
            self.arch,
            self.given.method,
            self.hardware,
            self.device,
            dtype,
            tokens=tokens,
            matrix_rate=self.rates.get(dtype),
            corrections=self.corrections,
            processes=self.devices // self.given.training.nodes,
        )

    def _amount(self, length: int) -> tuple[int, int]:
        """Training tokens and optimiser steps of the whole run."""
        train = self.profile.train
        rows = train.count
        kept = min(train.total, rows * length)
        sequences = -(-kept // length) if self.value("data.packing") else rows
        batch = int(self.value("training.batch_size"))
        steps_an_epoch = max(1, -(-sequences // batch))
        epochs, most = self.value("training.epochs"), self.given.training.max_steps
        if epochs is None:
            assert most is not None
            epochs = most / steps_an_epoch
            self.derive("training.epochs", round(epochs, 4), f"{most} steps over {rows:,} rows")
        steps = max(1, round(steps_an_epoch * epochs))
        if most is not None and most < steps:
            steps = most
        return round(kept * steps / steps_an_epoch), steps

    def _intervals(self, steps: int) -> None:
        tenth = max(1, -(-steps // EVALUATIONS))
        every = self.derive(
            "training.evaluate_every", tenth, f"about {EVALUATIONS} evaluations in {steps:,} steps"
        )
        self.derive("training.checkpoint_every", every, "with each evaluation")

    def _kernels(self, steps: int) -> None:
        """Whether layers are compiled: worth some ten to thirty seconds, once, on a GPU with bf16."""
        selective = self.given.training.activation_checkpointing == "selective"
        if self.given.vision is not None:
            self.derive("training.compile", False, "layers of models that see are not compiled")
        elif (side := divided_along(self.given)) is not None:
            self.derive("training.compile", False, f"layers divided by {side} are not compiled")
        elif compiles(self.device, str(self.value("model.dtype")), steps):
            self.derive("training.compile", True, f"{steps:,} steps are worth the half minute it takes")
        elif selective:
            self.derive("training.compile", True, "selective checkpointing needs compiled layers")
        else:
            why = "on a GPU with bf16 only" if self.device != "cuda" else f"{steps:,} steps are too few"
            self.derive("training.compile", False, why)
        if selective and not self.value("training.compile"):
            raise RecipeError(
                "training.activation_checkpointing: selective needs compiled layers, and training.compile "
                "is false",
                hint="set training.compile: true, or training.activation_checkpointing: full",
            )

    def _launches(self, shape: TrainingShape) -> TrainingShape:
        """Whether the kernels of a micro-batch are launched one by one: the shape that says so."""
        compiled = bool(self.value("training.compile"))
        check_graphs(self.given, self.device, compiled=compiled)
        if self.device != "cuda":
            return shape
        pays, why = records(self.given, self.arch, shape, self.hardware, compiled=compiled)
        recorded = self.derive("training.cuda_graphs", pays, why)
        return shape.model_copy(update={"recorded": bool(recorded)})

    def _evaluation(self) -> EvaluationShape:
        """How many prompts are answered at once."""
        prompts, new = self.profile.prompts, self.given.evaluation.max_new_tokens
        if self.spec.answers != "chat":
            new = 0  # one forward pass answers
        longest = prompts.maximum if prompts is not None else self.profile.train.maximum
        rows = prompts.count if prompts is not None else 0
        if self.given.evaluation.max_rows is not None and rows:
            rows = min(rows, self.given.evaluation.max_rows)
        room = ANSWER_TOKENS[self.device]
        fitting = max(1, min(MOST_PROMPTS, room // (longest + new)))
        power = 1 << (fitting.bit_length() - 1)
        size = self.derive(
            "evaluation.batch_size",
            power,
            f"inputs of up to {longest:,} tokens, about {room:,} at a time"
            if self.spec.answers != "chat"
            else f"prompts of up to {longest:,} and answers of up to {new} tokens, "
            f"about {room:,} tokens at a time",
        )
        return EvaluationShape(batch_size=size, prompt_tokens=longest, new_tokens=new, rows=rows)

    def _fewer(self, evaluation: EvaluationShape, budget: int) -> EvaluationShape:
        """Half the prompts at once: judging must not need more room than there is."""
        size = evaluation.batch_size // 2
        self.values["evaluation.batch_size"] = size
        self.sources["evaluation.batch_size"] = (
            f"{size} answers at once fit {budget / GIB:.1f} GiB while a model is judged"
        )
        return evaluation.model_copy(update={"batch_size": size})

    def _estimate(self, shape: TrainingShape, tokens: int, evaluation: EvaluationShape) -> Estimate:
        dtype = str(self.value("model.dtype"))
        found = estimate_training(
            self.arch,
            self.given.method,
            shape,
            self.hardware,
            tokens=tokens,
            device=self.device,
            dtype=dtype,
            matrix_rate=self.rates.get(dtype),
            # With nothing held out no model answers, and none need be whole on one device.
            evaluation=evaluation if evaluation.rows or shape.shard == 1 else None,
            corrections=self.corrections,
        )
        return found if self.devices == 1 else over_devices(found, self.devices, shared=True)

    def _name(self) -> None:
        recipe = self.given
        model = recipe.model.id.rstrip("/").rsplit("/", 1)[-1]
        data = Path(recipe.data.train[0]).stem or "data"
        raw = f"{model}-{data}-{recipe.method.name}".lower()
        self.derive("name", re.sub(r"[^a-z0-9]+", "-", raw).strip("-"), "model, data and method")

    def _recipe(self) -> Recipe:
        """The recipe with all derived values in their places."""
        tree = self.given.model_dump()
        for key, value in self.values.items():
            place = tree
            *parents, last = key.split(".")
            for part in parents:
                place = place[part]
            place[last] = value
        tree["sources"] = self.sources
        return Recipe.model_validate(tree)

    def _validation_share(self, estimate: Estimate, tokens: int, steps: int) -> Range | None:
        """Time of all passes over the validation rows: forward only, a third of a training pass or less."""
        validation = self.profile.validation
        if estimate.seconds is None:
            return None
        if validation is None or not tokens:
            return Range(low=0, expected=0, high=0)
        passes = max(1, steps // int(self.value("training.evaluate_every")))
        share = passes * validation.total / tokens / 2.5
        seconds = estimate.seconds
        return Range(low=seconds.low * share, expected=seconds.expected * share, high=seconds.high * share)


def documented(name: str, recipe: Recipe, arch: Architecture, rows: int) -> Hyperparameter:
    """The first row of the catalogue's table that holds here. Errors: RecipeError when none does."""
    size = count_parameters(arch).total
    for row in index().hyperparameters:
        if row.name == name and _holds(row.when, recipe, arch, size, rows):
            return row
    raise RecipeError(f"training.{name}: no documented value is known", hint=f"set training.{name} yourself")


def _holds(when: Condition, recipe: Recipe, arch: Architecture, size: int, rows: int) -> bool:
    family = arch.model_type.lower()
    kind = "decoder" if arch.causal else spec_of(recipe.task).table_kind
    return (
        (not when.methods or recipe.method.name in when.methods)
        and (not when.purposes or recipe.task in when.purposes)
        and (not when.kinds or kind in when.kinds)
        and (not when.families or any(family.startswith(name.lower()) for name in when.families))
        and (not when.goals or not goals_of(recipe).isdisjoint(when.goals))
        and (not when.presets or "balanced" in when.presets)
        and (when.parameters_below is None or size < when.parameters_below)
        and (when.parameters_from is None or size >= when.parameters_from)
        and (when.rows_below is None or rows < when.rows_below)
        and (when.rows_from is None or rows >= when.rows_from)
    )


def goals_of(recipe: Recipe) -> set[str]:
    """What a recipe is after, as the table of settings names it."""
    scratch, pairs = recipe.model.from_scratch is not None, recipe.preference is not None
    return {name for name, holds in (("from-scratch", scratch), ("preference", pairs)) if holds}


def disk_bytes(recipe: Recipe, arch: Architecture, trainable: int) -> int:
    """Most bytes on disk at once: checkpoints (one more than is kept), merged weights and GGUF files."""
    checkpoint = trainable * (4 + 8)
    needed = checkpoint * (recipe.training.keep_last + 2)
    if recipe.export is None:
        return needed
    total = count_parameters(arch).total
    if recipe.export.merged or recipe.export.gguf:
        needed += total * BYTES[recipe.model.dtype or "float32"]
    if recipe.export.gguf:
        # Every quantised file is made from an F16 one that stands beside it.
        needed += sum(gguf_bytes(arch, kind) for kind in {*recipe.export.gguf, "F16"})
    if recipe.export.adapter and isinstance(recipe.method, Lora):
        needed += trainable * 4
    return needed
