"""Derive every value that a recipe leaves open, each with a sentence that says where it came from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import RecipeError
from luthier.planning.case import Case
from luthier.planning.correction import Corrections
from luthier.planning.cut import copied, cut
from luthier.planning.division import check_division, divided_along
from luthier.planning.documented import derive_documented
from luthier.planning.dtypes import derive_types
from luthier.planning.estimate import Device, compiles, estimate_training, evaluation_seconds
from luthier.planning.exchange import Group, shared
from luthier.planning.launching import check_graphs, records
from luthier.planning.layout import answers_do_not_fit
from luthier.planning.levers import (
    check_levers,
    check_products,
    check_units,
    eight_bit_products,
    products_told,
)
from luthier.planning.solver import GIB, does_not_fit
from luthier.planning.together import check_devices
from luthier.schema.base import Range
from luthier.schema.data_profile import LengthProfile
from luthier.schema.estimate import Estimate, EvaluationShape, TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Lora, Recipe
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.offload import waiting
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import BYTES
from luthier.sizing.speed import add

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


class _Resolver(Case):
    """Goes through what is open, step by step."""

    def run(self) -> Resolved:
        check_levers(self.given)
        check_units(self.given, self.hardware, self.device)
        check_products(self.given, self.arch)
        check_devices(self.given, self.hardware, self.device)
        check_division(self.given, self.arch)
        derive_types(self)
        derive_documented(self)
        length = self._length()
        texts = math.ceil(self.profile.inputs)
        together = length * texts  # all texts of a row are in memory at once
        tokens, steps = self._amount(together)
        self._kernels(steps)
        shape = copied(self, cut(self, together, texts, steps=steps))
        shape = self._launches(shape)
        if eight_bit_products(self.given):
            gpu = self.hardware.accelerators[0]  # check_units: there is one
            self.warnings.append(products_told(self.arch, shape, gpu))
        self._intervals(steps)
        evaluation = self._evaluation()
        question = self.question(tokens)
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
            recipe.method,
            evaluation,
            self.hardware,
            device=self.device,
            dtype=dtype,
            matrix_rate=self.rates.get(dtype),
            away=waiting(self.arch, recipe.method, BYTES[dtype]).total if shape.offload_parameters else 0,
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
        check_graphs(self.given, self.device, shape, compiled=compiled)
        if self.device != "cuda":
            return shape
        pays, why = records(self.given, self.arch, shape, self.hardware, compiled=compiled)
        kept = shape.model_copy(update={"recorded": True})
        if pays and not self.question(1).fits(kept) and self.question(1).fits(shape):
            pays, why = False, "gradients that stay from step to step do not fit"
        return kept if self.derive("training.cuda_graphs", pays, why) else shape

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
        return shared(
            found, Group.of(self.given), arch=self.arch, method=self.given.method, shape=shape,
            hardware=self.hardware, tokens=tokens, device=self.device, dtype=dtype,
        )  # fmt: skip

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
