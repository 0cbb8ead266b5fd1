"""How a step is cut: micro-batch, checkpointing, devices, and what waits in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from luthier.catalog.purposes import tunes_preferences
from luthier.errors import DoesNotFit, RecipeError
from luthier.planning.case import Case
from luthier.planning.layout import Layout, choose
from luthier.planning.levers import why_not_offloaded
from luthier.planning.solver import GIB, HOST_SHARE, Question, copies_to_products, demand_host
from luthier.planning.together import why_not_divided
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Lora, Recipe
from luthier.sizing.padding import FILLED, drawn_lengths, padding_of
from luthier.sizing.resident import BYTES
from luthier.sizing.states import checkpoint_bytes


def cut(case: Case, length: int, texts: int, *, steps: int) -> TrainingShape:
    """Micro-batch and checkpointing: the fastest cut of the batch that fits.

    length: tokens of all texts of the longest row; texts: how many they are; steps: of the training.
    """
    whole = int(case.value("training.batch_size"))
    micro = case.given.training.micro_batch_size
    unit = (micro or 1) * case.shares
    if whole % unit:
        parts = [] if micro is None else [f"training.micro_batch_size {micro}"]
        parts += [f"training.devices {case.shares}"] if case.shares > 1 else []
        raise RecipeError(
            f"training.batch_size {whole} is not a multiple of {' times '.join(parts)}",
            hint=f"use {-(-whole // unit) * unit} rows, or a micro-batch that divides {whole}",
        )
    batch = whole // case.shares
    if case.given.training.update_in_backward:
        micro = batch  # one backward pass is one step
    mode = case.given.training.activation_checkpointing
    wanted = _undivided(case, batch, micro or batch, length, texts)
    wanted = wanted.model_copy(update={"text_lengths": _text_lengths(case, wanted, texts, steps)})
    question = case.question(1)
    pick = partial(
        choose, question, devices=case.devices, given=case.given.training.parallel,
        dividable=why_not_divided(case.given) is None,
        micro_fixed=micro is not None, checkpointing_fixed=mode is not None,
    )  # fmt: skip
    if wanted.offload_parameters:
        demand_host(question)
    try:
        layout = pick(wanted)
    except DoesNotFit as error:
        found = waiting_instead(case.given, question, wanted, pick)
        if found is None:
            raise error from None
        layout, why = found
        case.derive("training.offload_parameters", True, why)
    shape = layout.shape
    if case.devices > 1:
        case.values["training.parallel"] = layout.sizes
        given = case.given.training.parallel
        if given is None or given.shard is None:
            case.sources["training.parallel"] = layout.why
        elif given.replicate is None:
            case.sources["training.parallel.replicate"] = layout.why
        if layout.why_kept is not None and (given is None or given.reshard is None):
            case.sources["training.parallel.reshard"] = layout.why_kept
    shape = shape.model_copy(update={"padding": padding(case, shape)})
    estimate = question.estimate(shape)
    fits = f"{estimate.process.expected / GIB:.1f} of {question.budget / GIB:.1f} GiB"
    case.derive(
        "training.micro_batch_size",
        shape.micro_batch_size,
        f"fits {fits}; {whole // shape.micro_batch_size} of them make the batch of {whole}"
        if shape.micro_batch_size < whole
        else f"the whole batch fits {fits}",
    )
    case.derive(
        "training.activation_checkpointing",
        shape.activation_checkpointing,
        f"not needed: {fits}"
        if shape.activation_checkpointing == "none"
        else f"without it the step would not fit {question.budget / GIB:.1f} GiB, or run slower",
    )
    return shape


def _undivided(case: Case, batch: int, micro: int, length: int, texts: int) -> TrainingShape:
    """The step of a device that has the whole model, with what is asked for. batch: rows of its share."""
    mode = case.given.training.activation_checkpointing
    packed = bool(case.value("data.packing"))
    mean = min(case.profile.train.total / max(1, case.profile.train.count), length)
    return TrainingShape(
        micro_batch_size=micro,
        sequence_length=length,
        batch_size=batch,
        documents=max(1, int(length // mean)) if packed else texts,
        mean_length=length if packed else mean,
        trained_share=min(1.0, case.profile.trained_share),
        patches=case.profile.patches,
        patches_per_token=case.profile.patches_total / max(1, case.profile.train.total),
        activation_checkpointing=mode or "none",
        recomputed_layers=case.given.training.recomputed_layers,
        compiled=bool(case.value("training.compile")),
        padded=case.spec.answers != "chat",
        compared=_compared(case, batch, texts),
        optimizer=case.given.training.optimizer,
        update_in_backward=case.given.training.update_in_backward,
        added_up=case.devices > 1,
        ema=case.given.training.ema is not None,
        background_checkpoints=bool(case.given.training.background_checkpoints),
        offload_parameters=bool(case.given.training.offload_parameters),
        log_probs=tunes_preferences(case.given),
        extra_forwards=_reference_passes(case),
    )


def waiting_instead(
    recipe: Recipe, question: Question, wanted: TrainingShape, pick: Callable[[TrainingShape], Layout]
) -> tuple[Layout, str] | None:
    """The cut with frozen weights in the host's memory where nothing else fits, and why so.

    pick: the layout of a step. None if they may not wait there, or that fits no more.
    """
    asked = recipe.training.offload_parameters
    if asked is not None or question.device != "cuda" or why_not_offloaded(recipe) is not None:
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
    return layout, (
        f"nothing else fits {question.budget / GIB:.1f} GiB: each micro-batch reads the frozen weights "
        f"twice from the host, {beside}"
    )


def copied(case: Case, shape: TrainingShape) -> TrainingShape:
    """Whether the host's memory has room for a copy of what a checkpoint holds."""
    element = BYTES[str(case.value("model.dtype"))]
    size = checkpoint_bytes(case.arch, case.given.method, shape.optimizer, element=element, average=shape.ema)
    copied = shape.model_copy(update={"background_checkpoints": True})
    if case.device == "cpu":
        fits = case.question(1).fits(copied)
    else:
        fits = size <= case.hardware.memory_free * HOST_SHARE
    said = f"a copy of the {size / 1e6:,.0f} MB that a checkpoint holds"
    why = f"{said} fits the memory" if fits else f"{said} does not fit: training waits for each"
    beside = case.derive("training.background_checkpoints", fits, why)
    return copied if beside else shape


def padding(case: Case, shape: TrainingShape) -> float:
    """Places for each token in a step of rows as they are drawn."""
    if not shape.padded:
        return 1.0
    texts = max(1, round(case.profile.inputs))
    return padding_of(
        case.profile.train,
        drawn=(shape.batch_size or shape.micro_batch_size) * texts,
        most=shape.micro_batch_size * texts,
        longest=max(1, int(case.value("training.sequence_length"))),
        filled=FILLED if case.device == "cuda" else 0,
    )


def _reference_passes(case: Case) -> float:
    """Forward passes of DPO's reference for each training pass: with adapters each time, else once."""
    choice = case.given.preference
    if choice is None or choice.loss != "dpo":
        return 0.0
    method = case.given.method
    if isinstance(method, Lora) and method.init_from is None:
        return 1.0
    return 1.0 / max(1.0, float(case.value("training.epochs") or 1.0))


def _text_lengths(case: Case, shape: TrainingShape, texts: int, steps: int) -> tuple[int, ...]:
    """Tokens of a step's texts where they are compared; none where a batch wants several texts of a class,
    for then its rows are not drawn one by one.
    """
    choice = case.given.similarity
    if not shape.compared or choice is None or choice.loss in {None, "batch-all-triplet"}:
        return ()
    return drawn_lengths(
        case.profile.train,
        rows=shape.batch_size or shape.micro_batch_size,
        texts=texts,
        longest=max(1, int(case.value("training.sequence_length"))),
        steps=steps,
    )


def _compared(case: Case, batch: int, texts: int) -> int:
    """Numbers that compare a batch's vectors: each query with every document, for each dimension."""
    choice = case.given.similarity
    if case.given.task != "similarity":
        return 0
    cuts = 1 + len(choice.dimensions) if choice is not None and choice.dimensions else 1
    return cuts * batch * batch * max(1, texts - 1)
