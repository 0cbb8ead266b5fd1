"""How a candidate's step is cut, and what memory it may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from luthier.planning.estimate import device_of, estimate_training
from luthier.planning.layout import answers_do_not_fit, group_sizes, host_short
from luthier.planning.solver import Question, memory_budget
from luthier.planning.together import why_not_divided, why_whole_for
from luthier.schema.estimate import Estimate, EvaluationShape, TrainingShape
from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import BatchShape
from luthier.schema.recipe import EvaluationChoice, Method, Recipe
from luthier.schema.request import MethodName, Request

Estimator = Callable[[ModelCard, Method, BatchShape, Hardware], Estimate]
"""Predicts memory and time of a training. Pure: equal arguments give equal answers."""

DEFAULT_ROWS = 1_000
DEFAULT_LENGTH = {"decoder": 2_048, "encoder": 256}
LONGEST_DEFAULT = 8_192
"""Rows are not taken to be longer than this without data that says so."""


def budget_of(hardware: Hardware) -> int:
    """Bytes that a training may use on one device: the smallest one's, where there are several."""
    device = device_of(hardware)
    budget = memory_budget(hardware, device)
    if device == "cuda" and len(hardware.accelerators) > 1:
        smallest = min(a.memory_free for a in hardware.accelerators)
        budget = int(budget * smallest / max(1, hardware.accelerators[0].memory_free))
    return budget


def dtype_of(hardware: Hardware) -> Literal["float32", "bfloat16"]:
    """What a training computes in there (`planning.dtypes`): bf16 where the device has it, else fp32."""
    if device_of(hardware) == "cuda":
        return "bfloat16" if all(a.bf16 for a in hardware.accelerators) else "float32"
    return "bfloat16" if hardware.processor.bf16 else "float32"


def least_bytes(card: ModelCard, method: MethodName, request: Request, hardware: Hardware) -> int:
    """Bytes that no training of the model can go below: weights, and for full their gradients and moments."""
    element = 4 if dtype_of(hardware) == "float32" else 2
    total = card.total or 0
    share = {"full": 4.0 * element, "lora": float(element), "qlora": 0.5}[method]
    return int(total * share / devices_of(request.purpose, hardware, images=request.reads_images))


def devices_of(purpose: str, hardware: Hardware, *, images: bool) -> int:
    """How many devices take part: one where texts of a batch are compared with each other, and for images."""
    if device_of(hardware) != "cuda" or purpose == "similarity" or images:
        return 1
    return max(1, len(hardware.accelerators))


def training_length(card: ModelCard, request: Request) -> tuple[int, float, str]:
    """(longest row, mean row, where that comes from) in tokens."""
    ceiling = card.context.native or LONGEST_DEFAULT
    if request.profile is not None:
        longest, mean = (
            request.profile.tokens.p99,
            request.profile.tokens.total / request.profile.tokens.count,
        )
        if request.sequence_length is not None:
            longest = request.sequence_length
        length = min(_rounded(longest), ceiling)
        return length, min(mean, length), f"99 % of the data's rows have at most {longest:,} tokens"
    if request.sequence_length is not None:
        length = min(request.sequence_length, ceiling)
        return length, length / 2, "asked for; half of it a row on average"
    usual = DEFAULT_LENGTH["decoder" if card.kind in ("decoder", "vision-language") else "encoder"]
    length = min(max(usual, min(request.context or 0, LONGEST_DEFAULT)), ceiling)
    return length, length / 4, f"no data given: rows of up to {length:,} tokens, a quarter of it on average"


def _rounded(length: int) -> int:
    return max(8, -(-length // 64) * 64)


def rows_of(request: Request) -> int:
    """Training rows: asked for, of the data, or the default."""
    if request.rows is not None:
        return request.rows
    return request.profile.rows if request.profile is not None else DEFAULT_ROWS


def base_shape(
    card: ModelCard, request: Request, hardware: Hardware, *, batch_size: int, epochs: float
) -> BatchShape:
    """The step of a request, with nothing that saves memory."""
    length, mean, source = training_length(card, request)
    return _begun(
        request.purpose, hardware, images=request.reads_images, batch_size=batch_size, length=length,
        mean=mean, rows=rows_of(request), epochs=epochs, source=source,
        dividable=why_whole_for(request.purpose) is None,
    )  # fmt: skip


def _begun(
    purpose: str, hardware: Hardware, *, images: bool, batch_size: int, length: int, mean: float, rows: int,
    epochs: float, dividable: bool, source: str,
) -> BatchShape:  # fmt: skip
    """One row at a time, nothing recomputed: the start of every search."""
    devices = devices_of(purpose, hardware, images=images)
    return BatchShape(
        micro_batch_size=1,
        batch_size=max(batch_size, devices),
        sequence_length=length,
        tokens_per_row=mean,
        rows=rows,
        epochs=epochs,
        checkpointing=False,
        dtype=dtype_of(hardware),
        devices=devices,
        dividable=dividable,
        texts=texts_of(purpose),
        source=source,
    )


def texts_of(purpose: str) -> int:
    """Texts of a row that go through the model each by itself.

    An embedder reads a pair as two (mined negatives would make it three); a reranker reads query and
    document as one text. Chunks of a contrastive batch are recomputed (GradCache, arXiv 2101.06983), so
    that memory is that of one chunk however many negatives a batch holds.
    """
    return 2 if purpose == "similarity" else 1


@dataclass(frozen=True, slots=True)
class Misfit:
    """No shape fits. needed: the estimate that needs least; why: why weights were not divided, if so."""

    needed: Estimate
    why: str | None = None


def fit_shape(
    card: ModelCard,
    method: Method,
    shape: BatchShape,
    hardware: Hardware,
    estimate: Estimator,
    *,
    regardless: bool = False,
) -> tuple[BatchShape, Estimate] | Misfit:
    """The fastest shape that fits, with its estimate.

    Whole with everything kept is taken at once. Else activations are recomputed, and (FSDP2) the fewest
    devices that can hold one model together: which of these is faster hangs on the link between them. They
    are not asked to where a plan would refuse it (`why_not_together`), unless ``regardless`` of that.
    """
    budget, found = budget_of(hardware), list[tuple[BatchShape, Estimate]]()
    needed = estimate(card, method, shape, hardware)
    if needed.process.high <= budget:
        return shape, needed
    why = None if regardless else why_not_together(card, shape, hardware)
    sizes = [1] if why is not None else group_sizes(shape.devices)
    for again in (False, True):
        for shard in sizes if again else sizes[1:]:
            cut = shape.model_copy(update={"checkpointing": again, "shard": shard})
            needed = estimate(card, method, cut, hardware)
            if needed.process.high <= budget:
                if shape.devices == 1:
                    return cut, needed
                found.append(widen(card, method, cut, hardware, found=needed, estimate=estimate))
                break
    if not found:
        return Misfit(needed, why)
    return min(found, key=lambda pair: _seconds(pair[1]))


def why_not_together(card: ModelCard, shape: BatchShape, hardware: Hardware) -> str | None:
    """Why a plan would not let the devices hold one model together, or None."""
    arch = card.architecture
    if shape.devices == 1 or arch is None:
        return None
    if not shape.dividable:
        return "its weights cannot be divided over the GPUs"
    return host_short(arch, shape.dtype, hardware, shape.devices)


def unanswered(card: ModelCard, method: Method, shape: BatchShape, hardware: Hardware) -> str | None:
    """Why a plan refuses held-out prompts of a model that devices hold together, with ways out; or None."""
    arch = card.architecture
    if shape.shard == 1 or arch is None:
        return None
    question = Question(arch, method, hardware, device_of(hardware), shape.dtype)
    leanest = TrainingShape(
        micro_batch_size=1, sequence_length=shape.sequence_length, shard=shape.shard,
        activation_checkpointing="full",
    )  # fmt: skip
    judging = EvaluationShape(
        batch_size=1, prompt_tokens=shape.sequence_length, new_tokens=EvaluationChoice().max_new_tokens
    )
    judged = estimate_training(
        arch, method, leanest, hardware, tokens=1, device=question.device, dtype=shape.dtype,
        evaluation=judging,
    )  # fmt: skip
    if judged.peak.name == "evaluate" and judged.process.high > question.budget:
        refused = answers_do_not_fit(question, judged)
        return f"{refused.message}: {refused.hint}"
    return None


def _seconds(found: Estimate) -> float:
    return found.seconds.expected if found.seconds is not None else 0.0


def widen(
    card: ModelCard,
    method: Method,
    shape: BatchShape,
    hardware: Hardware,
    *,
    found: Estimate,
    estimate: Estimator,
) -> tuple[BatchShape, Estimate]:
    """The largest micro-batch that still fits with the same recomputation and division."""
    budget = budget_of(hardware)
    for micro in (8, 4, 2):
        if micro * shape.devices > shape.batch_size:
            continue
        wider = shape.model_copy(update={"micro_batch_size": micro})
        other = estimate(card, method, wider, hardware)
        if other.process.high <= budget:
            return wider, other
    return shape, found


def fit_recipe(
    card: ModelCard, recipe: Recipe, hardware: Hardware, *, rows: int
) -> tuple[Estimate, int, str | None]:
    """(estimate, budget, why a plan would not divide it so) of a recipe with length, batch and epochs."""
    from luthier.planning.estimate import estimate_candidate

    training = recipe.training
    length = training.sequence_length or DEFAULT_LENGTH["decoder"]
    shape = _begun(
        recipe.task, hardware, images=recipe.vision is not None, batch_size=training.batch_size or 16,
        length=length, mean=length / 2, rows=rows, epochs=training.epochs or 1.0,
        dividable=why_not_divided(recipe) is None, source="the recipe",
    )  # fmt: skip
    outcome, why = fit_shape(card, recipe.method, shape, hardware, estimate_candidate), None
    if isinstance(outcome, Misfit) and outcome.why is not None:
        why = outcome.why
        outcome = fit_shape(card, recipe.method, shape, hardware, estimate_candidate, regardless=True)
    return (outcome.needed if isinstance(outcome, Misfit) else outcome[1]), budget_of(hardware), why
