"""How a candidate's step is cut, and what memory it may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from luthier.planning.estimate import device_of
from luthier.planning.layout import group_sizes
from luthier.planning.solver import memory_budget
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import BatchShape
from luthier.schema.recipe import Method, Recipe
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


def dtype_of(hardware: Hardware) -> Literal["float32", "bfloat16", "float16"]:
    """What the device computes fast in: bf16 where it has it natively, else fp16 on a GPU, fp32 on a CPU."""
    if device_of(hardware) == "cuda":
        return "bfloat16" if all(a.bf16 for a in hardware.accelerators) else "float16"
    return "bfloat16" if hardware.processor.bf16 else "float32"


def least_bytes(card: ModelCard, method: MethodName, hardware: Hardware) -> int:
    """Bytes that no training of the model can go below: weights, and for full their gradients and moments."""
    element = 4 if dtype_of(hardware) == "float32" else 2
    total = card.total or 0
    share = {"full": 4.0 * element, "lora": float(element), "qlora": 0.5}[method]
    return int(total * share / devices_of(hardware))


def devices_of(hardware: Hardware) -> int:
    """How many devices take part."""
    return max(1, len(hardware.accelerators)) if device_of(hardware) == "cuda" else 1


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
    """One row at a time, nothing recomputed: the start of every search."""
    length, mean, source = training_length(card, request)
    devices = devices_of(hardware)
    return BatchShape(
        micro_batch_size=1,
        batch_size=max(batch_size, devices),
        sequence_length=length,
        tokens_per_row=mean,
        rows=rows_of(request),
        epochs=epochs,
        checkpointing=False,
        dtype=dtype_of(hardware),
        devices=devices,
        texts=texts_of(request),
        source=source,
    )


def texts_of(request: Request) -> int:
    """Texts of a row that go through the model each by itself.

    An embedder reads a pair as two (mined negatives would make it three); a reranker reads query and
    document as one text. Chunks of a contrastive batch are recomputed (GradCache, arXiv 2101.06983), so
    that memory is that of one chunk however many negatives a batch holds.
    """
    return 2 if request.purpose == "similarity" else 1


def fit_shape(
    card: ModelCard, method: Method, shape: BatchShape, hardware: Hardware, estimate: Estimator
) -> tuple[BatchShape, Estimate] | Estimate:
    """The shape, activations recomputed if need be, with its estimate; that estimate alone if none fits."""
    for again in (False, True):
        cut = shape.model_copy(update={"checkpointing": again})
        outcome = _over_devices(card, method, cut, hardware, estimate)
        if not isinstance(outcome, Estimate):
            break
    return outcome


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


def _over_devices(
    card: ModelCard, method: Method, shape: BatchShape, hardware: Hardware, estimate: Estimator
) -> tuple[BatchShape, Estimate] | Estimate:
    """Several devices: as it is where one holds it all, else divided over as few as fit (FSDP2).

    The shape that fits with its estimate, or the estimate of the one that needs least.
    """
    budget = budget_of(hardware)
    for shard in group_sizes(shape.devices):
        divided = shape.model_copy(update={"shard": shard})
        found = estimate(card, method, divided, hardware)
        if found.process.high <= budget:
            return divided, found
    return found


def fit_recipe(card: ModelCard, recipe: Recipe, hardware: Hardware, *, rows: int) -> tuple[Estimate, int]:
    """(estimate, budget) of a recipe that says its sequence length, batch size and epochs."""
    from luthier.planning.estimate import estimate_candidate

    training = recipe.training
    length = training.sequence_length or DEFAULT_LENGTH["decoder"]
    devices = devices_of(hardware)
    shape = BatchShape(
        micro_batch_size=1,
        batch_size=max(training.batch_size or 16, devices),
        sequence_length=length,
        tokens_per_row=length / 2,
        rows=rows,
        epochs=training.epochs or 1.0,
        checkpointing=False,
        dtype=dtype_of(hardware),
        devices=devices,
        texts=2 if recipe.task == "similarity" else 1,
        source="the recipe",
    )
    outcome = fit_shape(card, recipe.method, shape, hardware, estimate_candidate)
    return (outcome if isinstance(outcome, Estimate) else outcome[1]), budget_of(hardware)
