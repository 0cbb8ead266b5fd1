"""``luthier plan``: memory by part, time and cost, before anything loads."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import err, memory, out, print_json
from luthier.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.planning.solver import Change, Question
    from luthier.schema.estimate import Estimate, TrainingShape
    from luthier.schema.hardware import Hardware
    from luthier.schema.model import Architecture
    from luthier.schema.recipe import Method, Recipe

Flag = Annotated[bool, Parameter(negative="")]
DEFAULT_LENGTH = 2048
DEFAULT_ROWS = 1000
LEAST_DOLLARS = 0.01
SHOWN = 5 << 20
"""Bytes of a part from which it has a line: less is 0.00 GiB."""


def plan(
    model: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    hardware: str | None = None,
    method: str = "lora",
    rank: int = 16,
    optimizer: str = "adamw",
    length: int | None = None,
    batch: int = 16,
    rows: int = DEFAULT_ROWS,
    epochs: float = 1.0,
    dtype: str | None = None,
    price_per_hour: float | None = None,
    exact: Flag = False,
    offline: Flag = False,
    json: Flag = False,
) -> int:
    """Predict memory by part, time and cost of a training, and what each change would save.

    Parameters
    ----------
    model
        A recipe.yaml, a model of the catalogue, or a folder with a saved model.
    overrides
        Settings of a recipe that win: training.sequence_length=1024 method.rank=32.
    hardware
        Hardware in words: "rtx 4090", h100, cpu:16GB; this machine if not given.
    method
        full, lora or qlora; a recipe has its own.
    rank
        Rank of the adapters; a recipe has its own.
    optimizer
        adamw, adamw-8bit, paged-adamw-8bit, adamw-bf16, adamw-bf16-kahan or muon; a recipe has its own.
    length
        Tokens of the longest row; a recipe's data has its own.
    batch
        Rows for each optimiser step.
    rows
        Training rows, for the time.
    epochs
        Passes over the rows, for the time.
    dtype
        float32 or bfloat16; what the device does fast if not given.
    price_per_hour
        US dollars an hour for each GPU; a dated list price of hardware in words if not given.
    exact
        Follow the very step, tensor by tensor, in place of the formula (GPU plans; takes seconds to minutes).
    offline
        Fetch nothing: a recipe's model must be on disk.
    json
        Print one JSON object.
    """
    if price_per_hour is not None and not 0 <= price_per_hour < float("inf"):
        raise UsageError(f"{price_per_hour:g} dollars an hour", hint="use 0 or more")
    if Path(model).suffix in (".yaml", ".yml"):
        if length is not None or dtype is not None:
            raise UsageError("a recipe has its own settings", hint="write them as key=value after the recipe")
        return _of_recipe(
            Path(model), overrides, hardware, price=price_per_hour, exact=exact, offline=offline, as_json=json
        )
    from luthier.planning.audit import audit
    from luthier.planning.hypothetical import parse_hardware
    from luthier.planning.levers import check_products

    _check(rows=rows, epochs=epochs, rank=rank, length=length, batch=batch)
    machine = parse_hardware(hardware) if hardware is not None else audit()
    arch, config = shape_of(model)
    recipe = _recipe_of(model, arch, _method(method, rank), length, batch, _optimizer(optimizer), overrides)
    recipe = _on_all(recipe, machine, overrides)
    check_products(recipe, arch)
    question = _question(arch, recipe, machine, dtype=dtype, rows=rows, epochs=epochs)
    return _answer(model, recipe, question, rows * epochs, config=config, price=price_per_hour, exact=exact,
                   as_json=json)  # fmt: skip


def _check(*, rows: int, epochs: float, rank: int, length: int | None, batch: int) -> None:
    """Refuse numbers that describe no training."""
    if batch < 1:
        raise UsageError(f"a batch of {batch} rows", hint="use at least 1")
    if rows < 1 or not 0 < epochs < float("inf"):
        raise UsageError(
            f"{rows} rows, {epochs:g} times, are nothing to train on", hint="use at least one row"
        )
    if rank < 1:
        raise UsageError(f"adapters of rank {rank}", hint="use at least 1; 8 to 64 are usual")
    if length is not None and length < 1:
        raise UsageError(f"rows of {length} tokens", hint="use at least 1")


def shape_of(model: str) -> tuple[Architecture, dict[str, Any] | None]:
    """Shape of a folder or a catalogue entry, with the folder's config.json. Errors: ModelNotFound."""
    import json as words

    from luthier.catalog.index import model_card
    from luthier.errors import Unsupported
    from luthier.sizing.model_config import architecture_of

    folder = Path(model).expanduser()
    if folder.is_dir():
        return architecture_of(folder), words.loads((folder / "config.json").read_text())
    card = model_card(model)
    if card.architecture is None:
        raise Unsupported(
            f"{card.id}: its shape is not verified, so its memory cannot be predicted",
            hint="name a folder with its config.json",
        )
    return card.architecture, None


def _method(name: str, rank: int) -> Method:
    from luthier.errors import did_you_mean
    from luthier.schema.recipe import Full, Lora, QLora

    known: dict[str, Method] = {"full": Full(), "lora": Lora(rank=rank), "qlora": QLora(rank=rank)}
    if name not in known:
        raise UsageError(
            f"{name} is not a method", hint=did_you_mean(name, known) or f"use one of {', '.join(known)}"
        )
    return known[name]


def _optimizer(name: str) -> str:
    from typing import get_args

    from luthier.errors import did_you_mean
    from luthier.schema.recipe import OptimizerName

    known = get_args(OptimizerName)
    if name not in known:
        raise UsageError(
            f"{name} is not an optimiser", hint=did_you_mean(name, known) or f"use one of {', '.join(known)}"
        )
    return name


def _purpose(model: str) -> str:
    """What a model of the catalogue is for; a folder is taken for one that writes."""
    from luthier.catalog.index import model_card

    return "chat" if Path(model).expanduser().is_dir() else model_card(model).purposes[0]


def _recipe_of(  # noqa: PLR0917 (the words of the command)
    model: str,
    arch: Architecture,
    method: Method,
    length: int | None,
    batch: int,
    optimizer: str,
    overrides: tuple[str, ...],
) -> Recipe:
    """The recipe that the command's words describe, for settings that are given as in one."""
    from luthier.schema.load import recipe_from

    training = {
        "sequence_length": length or min(DEFAULT_LENGTH, arch.max_positions or DEFAULT_LENGTH),
        "batch_size": batch, "optimizer": optimizer, "epochs": 1,
    }  # fmt: skip
    values = {
        "task": _purpose(model), "model": {"id": model}, "method": method.model_dump(exclude_defaults=True)
        | {"name": method.name}, "data": {"train": "rows.jsonl"}, "training": training,
    }  # fmt: skip
    return recipe_from(values, overrides)


def _on_all(recipe: Recipe, machine: Hardware, overrides: tuple[str, ...]) -> Recipe:
    """With all GPUs of the machine where nobody says how many, and a batch that they can share."""
    from luthier.planning.estimate import device_of
    from luthier.planning.levers import check_levers, check_units
    from luthier.planning.together import check_devices

    device, training = device_of(machine), recipe.training
    devices = training.devices
    if not any(one.startswith("training.devices=") for one in overrides) and recipe.task != "similarity":
        alike = len({one.name for one in machine.accelerators}) == 1  # others would wait for the slowest
        devices = len(machine.accelerators) if device == "cuda" and alike else 1
    batch = -(-(training.batch_size or 1) // devices) * devices
    changed = training.model_copy(update={"devices": devices, "batch_size": batch})
    recipe = recipe.model_copy(update={"training": changed})
    check_levers(recipe)
    check_units(recipe, machine, device)
    check_devices(recipe, machine, device)
    return recipe


def _question(
    arch: Architecture, recipe: Recipe, machine: Hardware, *, dtype: str | None, rows: int, epochs: float
) -> Question:
    from luthier.planning.estimate import device_of
    from luthier.planning.solver import Question

    device = device_of(machine)
    if dtype is None:
        fast = machine.accelerators[0].bf16 if device == "cuda" else machine.processor.bf16
        dtype = "bfloat16" if fast else "float32"
    elif dtype not in ("float32", "bfloat16"):
        raise UsageError(f"{dtype} is not a type to train in", hint="use float32 or bfloat16")
    tokens = round(rows * epochs * (recipe.training.sequence_length or DEFAULT_LENGTH))
    return Question(
        arch, recipe.method, machine, device, dtype, tokens=tokens, processes=recipe.training.devices
    )


def _wanted(recipe: Recipe, question: Question, steps: int) -> TrainingShape:
    """The step of one device, before it is cut."""
    from luthier.catalog.purposes import spec_of
    from luthier.planning.estimate import compiles
    from luthier.schema.estimate import TrainingShape

    training = recipe.training
    batch = (training.batch_size or 1) // training.devices
    compiled = (
        compiles(question.device, question.dtype, steps) if training.compile is None else training.compile
    )
    return TrainingShape.model_validate(
        {
            "micro_batch_size": min(batch, training.micro_batch_size or batch),
            "sequence_length": training.sequence_length,
            "batch_size": batch,
            "optimizer": training.optimizer,
            "activation_checkpointing": training.activation_checkpointing or "none",
            "recomputed_layers": training.recomputed_layers,
            "offload_parameters": bool(training.offload_parameters),
            "update_in_backward": training.update_in_backward,
            "compiled": compiled,
            "padded": not question.arch.causal or spec_of(recipe.task).answers != "chat",
            "added_up": training.devices > 1,
        }
    )


def _answer(
    model: str,
    recipe: Recipe,
    question: Question,
    rows: float,
    *,
    config: dict[str, Any] | None,
    price: float | None,
    exact: bool,
    as_json: bool,
) -> int:
    """Cut the step, estimate it, and print; 3 where nothing fits. rows: of all epochs together."""
    from luthier.errors import DoesNotFit
    from luthier.planning.cost import priced
    from luthier.planning.cut import waiting_instead
    from luthier.planning.exchange import Group, shared
    from luthier.planning.layout import choose
    from luthier.planning.solver import changes, demand_host, smallest_step
    from luthier.planning.together import why_not_divided
    from luthier.sizing.model_config import taken_for_ordinary
    from luthier.sizing.training import check_shape

    training, why, away = recipe.training, "", ""
    wanted = _wanted(recipe, question, max(1, round(rows / (training.batch_size or 1))))
    check_shape(question.arch, wanted)
    unknown = None if config is None else taken_for_ordinary(question.arch)
    trouble: LuthierError | None = None
    pick = partial(
        choose, question, devices=training.devices, given=training.parallel,
        dividable=why_not_divided(recipe) is None, micro_fixed=training.micro_batch_size is not None,
        checkpointing_fixed=training.activation_checkpointing is not None,
    )  # fmt: skip
    try:
        if wanted.offload_parameters:
            demand_host(question)
        layout = pick(wanted)
        shape, why = layout.shape, layout.why
    except DoesNotFit as error:
        instead = waiting_instead(recipe, question, wanted, pick)
        if instead is None:
            shape, trouble = smallest_step(wanted), error
        else:
            shape, away = instead[0].shape, instead[1]
    estimate = shared(
        question.estimate(shape), Group.of(recipe), arch=question.arch, method=question.method, shape=shape,
        hardware=question.hardware, tokens=question.tokens, device=question.device, dtype=question.dtype,
    )  # fmt: skip
    if exact:
        estimate = _traced(question, shape, estimate, config)
    elif unknown is not None:
        estimate = estimate.model_copy(update={"assumptions": (unknown, *estimate.assumptions)})
    estimate, price_words = priced(estimate, question.hardware, price)
    savings = changes(question, shape)
    if as_json:
        print_json(
            {
                "model": model,
                "fits": trouble is None,
                "budget": question.budget,
                "shape": shape.model_dump(mode="json"),
                "estimate": estimate.model_dump(mode="json"),
                "priced": price_words,
                "changes": [_values(change) for change in savings],
            }
        )
        return 0 if trouble is None else trouble.exit_code
    if trouble is not None:
        # What cannot run takes no time.
        estimate = estimate.model_copy(update={"seconds": None, "tokens_per_second": None, "cost": None})
    _print(question, shape, estimate, savings, price_words, why if training.devices > 1 else "", away)
    if trouble is not None:
        raise trouble
    return 0


def _values(change: Change) -> dict[str, Any]:
    """A change as plain values."""
    return {"what": change.what, "setting": change.setting, "saves": change.saves, "fits": change.fits}


def _print_cost(estimate: Estimate, priced: str) -> None:
    if estimate.cost is None:
        return
    cost = estimate.cost
    if cost.high < LEAST_DOLLARS:
        out().print("  Cost  less than a cent")
    else:
        out().print(f"  Cost  ${cost.expected:.2f}  (${cost.low:.2f} to ${cost.high:.2f})")
    out().print(f"  assumed: {priced}", style="dim", soft_wrap=True)


def _traced(
    question: Question, shape: TrainingShape, estimate: Estimate, config: dict[str, Any] | None
) -> Estimate:
    from luthier.checks.trace.config import config_of
    from luthier.checks.trace.run import trace_training, traced_estimate
    from luthier.errors import Unsupported

    if question.device != "cuda":
        raise Unsupported(
            "the exact trace follows GPU kernels, and this plan is for a CPU",
            hint="leave out --exact: the formula's CPU figure is held to measured runs",
        )
    if question.arch.new_tokens:
        raise Unsupported("new tokens are not traced", hint="leave out --exact: the formula counts them")
    err().print("tracing the step without a GPU...", style="dim")
    capability = question.hardware.accelerators[0].compute_capability or (0, 0)
    found = trace_training(
        config or config_of(question.arch),
        question.method,
        shape,
        dtype=question.dtype,
        hopper=capability >= (9, 0),
    )
    return traced_estimate(estimate, found)


def _print(  # noqa: PLR0917 (what the page says, from the top)
    question: Question,
    shape: TrainingShape,
    estimate: Estimate,
    savings: tuple[Change, ...],
    priced: str,
    devices: str,
    away: str,
) -> None:
    from rich.padding import Padding

    from luthier.cli.story import columns, grid, show_estimate

    cut = (
        f"{shape.micro_batch_size} x {shape.sequence_length:,} tokens at a time, "
        f"{shape.accumulation} of them a step"
    )
    again = {
        "none": "kept",
        "selective": "products and attention kept, the rest recomputed in the backward pass",
        "full": "recomputed in the backward pass",
        "offload": "recomputed in the backward pass, layers' inputs in the host's memory",
    }[shape.activation_checkpointing]
    out().print(
        grid(
            [
                ("Method", f"{question.method.name}, {question.dtype}, on {question.device}"),
                *([("Devices", devices)] if devices else []),
                ("Step", cut),
                ("Activations", again),
                *([("Weights", f"frozen ones wait in the host's memory: {away}")] if away else []),
                ("Layers", "compiled" if shape.compiled else "one kernel for each operation"),
                ("Room", f"{memory(question.budget)} for the process"),
            ]
        )
    )
    phases = estimate.phases
    parts = {part: None for phase in phases for part, held in phase.parts.items() if held > SHOWN}
    table = columns("", *(phase.name for phase in phases), numbers=range(1, len(phases) + 1))
    for part in parts:
        table.add_row(part, *(memory(held) if (held := phase.parts.get(part)) else "" for phase in phases))
    table.add_row("together", *(memory(phase.total) for phase in phases), style="bold")
    out().print(Padding(table, (1, 0, 0, 2)))
    beside = round(estimate.process.expected - estimate.peak.total)
    if beside > SHOWN and estimate.basis == "formula":
        said = f"  Beside the parts torch's allocator reserves about {memory(beside)}, which the peak counts."
        out().print(said, style="dim", soft_wrap=True)
    show_estimate(estimate)
    _print_cost(estimate, priced)
    for change in savings:
        out().print(f"  · {change.sentence}", style="dim")
    for said in estimate.assumptions:
        out().print(f"  assumed: {said}", style="dim", soft_wrap=True)


def _of_recipe(
    path: Path,
    overrides: tuple[str, ...],
    hardware: str | None,
    *,
    price: float | None,
    exact: bool,
    offline: bool,
    as_json: bool,
) -> int:
    """Plan of a recipe with its own model and data, here or on described hardware."""
    from luthier.cli.story import show_plan
    from luthier.planning.audit import audit
    from luthier.planning.cost import priced
    from luthier.planning.hypothetical import parse_hardware
    from luthier.planning.solver import Question, changes
    from luthier.runs.prepare import check_asked, rates, settle
    from luthier.runs.scratch import bring_model
    from luthier.schema.load import load_recipe

    def say(words: str) -> None:
        err().print(words, soft_wrap=True, markup=False)

    recipe = load_recipe(path, overrides)
    check_asked(recipe)
    model = bring_model(recipe, say=say, offline=offline)
    machine = audit() if hardware is None else parse_hardware(hardware)
    settled = settle(recipe, model, machine, say=say)
    found = settled.resolved
    estimate, config = found.estimate, shape_of(str(model.path))[1]
    dtype = str(found.recipe.model.dtype)
    question = Question(
        settled.architecture,
        found.recipe.method,
        machine,
        found.device,
        dtype,
        tokens=found.tokens,
        matrix_rate=rates(settled.probe).get(dtype),
        corrections=settled.corrections,
        processes=found.recipe.training.devices // found.recipe.training.nodes,
    )
    if exact:
        estimate = _traced(question, found.shape, estimate, config)
    estimate, price_words = priced(estimate, machine, price)
    savings = changes(question, found.shape)
    if as_json:
        print_json(
            {
                "recipe": found.recipe.model_dump(mode="json"),
                "device": found.device,
                "steps": found.steps,
                "tokens": found.tokens,
                "disk_bytes": found.disk_bytes,
                "estimate": estimate.model_dump(mode="json"),
                "warnings": list(found.warnings),
                "changes": [_values(change) for change in savings],
            }
        )
        return 0
    show_plan(found.recipe, estimate)
    _print_cost(estimate, price_words)
    for warning in found.warnings:
        err().print(f"! {warning}", style="yellow", soft_wrap=True)
    for change in savings:
        out().print(f"  · {change.sentence}", style="dim")
    return 0
