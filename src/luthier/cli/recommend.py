"""``luthier recommend``: which model and which method, with reasons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import duration, memory, out, print_json
from luthier.errors import DoesNotFit, UsageError

if TYPE_CHECKING:
    from luthier.schema.hardware import Hardware
    from luthier.schema.plan import Candidate, Plan
    from luthier.schema.request import GuideName, Request

Flag = Annotated[bool, Parameter(negative="")]
NOT_ADVICE = "Licence terms are cited to inform; this is not legal advice."


def recommend(
    words: str | None = None,
    /,
    *,
    purpose: str | None = None,
    hardware: str | None = None,
    vram: str | None = None,
    unknown_hardware: Flag = False,
    goal: str | None = None,
    stage: str | None = None,
    priority: str | None = None,
    licence: str | None = None,
    use: str | None = None,
    users: int | None = None,
    eu: Flag = False,
    outputs_train_models: Flag = False,
    redistribute: Flag = False,
    vertical: str | None = None,
    language: str | None = None,
    context: int | None = None,
    feature: str | None = None,
    size: str | None = None,
    max_size: str | None = None,
    min_size: str | None = None,
    family: str | None = None,
    model: str | None = None,
    method: str | None = None,
    preset: str = "balanced",
    data: Path | None = None,
    rows: int | None = None,
    length: int | None = None,
    epochs: float | None = None,
    hours: float | None = None,
    dollars: float | None = None,
    price_per_hour: float | None = None,
    target: str | None = None,
    gguf: Flag = False,
    offline: Flag = False,
    as_guide: str | None = None,
    explain: Flag = False,
    all: Flag = False,  # noqa: A002
    output: Annotated[Path | None, Parameter(name=("--output", "-o"))] = None,
    json: Flag = False,
) -> None:
    """Rank pairs of model and method for a task on some hardware, and say why.

    Parameters
    ----------
    words
        The task in a sentence; it is mapped by rules that are shown. Options win over it.
    purpose
        chat, text-generation, similarity, reranking, multi-label- or multi-class-classification.
    hardware
        Hardware to train on, in words: "rtx 4090", 2xh100, cpu:16GB; this machine if not given.
    vram
        A GPU of which only the memory is known: 24GB.
    unknown_hardware
        Answer as if nothing were known of the hardware.
    goal
        What tuning should change: behaviour, domain, new-language or from-scratch.
    stage
        first-run, production or research.
    priority
        balanced, quality, speed, size or ecosystem.
    licence
        Rules with commas: apache-2.0, mit, osi, commercial, no-acceptable-use-policy, may-train-others.
    use
        commercial, research or internal.
    users
        Monthly active users of the products it goes into.
    eu
        The user is domiciled in the European Union.
    outputs_train_models
        Answers of the tuned model will train other models.
    redistribute
        The tuned weights will be passed on.
    vertical
        medical, legal, finance, code, education or government.
    language
        Languages with commas, by code or English name.
    context
        Tokens that the model must read at once.
    feature
        tools, thinking, json, image, with commas.
    size
        under-1b, edge, general or expert.
    max_size
        Most parameters: 8B, 500M.
    min_size
        Least parameters.
    family
        Only this family, maker or name's beginning.
    model
        Only this model.
    method
        full, lora or qlora.
    preset
        How thorough the settings are: quick, balanced or best.
    data
        Training rows; their number, lengths and languages are used.
    rows
        Number of training rows.
    length
        Tokens of the longest training row.
    epochs
        Passes over the rows.
    hours
        Longest training that is acceptable.
    dollars
        Most that the training may cost.
    price_per_hour
        US dollars an hour of one GPU (of the machine, where it has none).
    target
        Hardware that the tuned model will run on: phone:8GB, raspberry-pi, mac:32GB.
    gguf
        It must run in llama.cpp, Ollama or LM Studio.
    offline
        Only models whose weights come without the Hub.
    as_guide
        Answer by one of the three public guides alone: A, B or C.
    explain
        Show what each score adds up from, and the methods as measured beside guide C's words.
    all
        Show every candidate and every rejected model.
    output
        Write the first candidate's recipe to this file.
    json
        Print one JSON object.
    """
    options = {
        "purpose": purpose, "goal": goal, "stage": stage, "priority": priority, "licence": licence,
        "use": use, "monthly_users": users, "eu_entity": eu or None,
        "outputs_train_models": outputs_train_models or None,
        "redistribute": redistribute or None, "vertical": vertical, "languages": language, "context": context,
        "features": feature, "size": size, "family": family, "method": method, "rows": rows,
        "sequence_length": length, "epochs": epochs, "max_seconds": None if hours is None else hours * 3600,
        "max_cost": dollars, "price_per_hour": price_per_hour, "target": target, "gguf": gguf or None,
        "offline": offline or None,
    }  # fmt: skip
    request = read_request(words, options, max_size=max_size, min_size=min_size, data=data)
    machine = _machine(hardware, vram, unknown=unknown_hardware)
    if as_guide is not None:
        _print_guide(_guide(as_guide), request, machine, as_json=json)
        return
    plan = _plan(request, machine, model=model, preset=preset, most=None if all else 10)
    if output is not None:
        write_recipe(plan, output, data)
    if json:
        print_json({"plan": plan.model_dump(mode="json", exclude_none=True), "notice": NOT_ADVICE})
    else:
        show_plan(plan, explain=explain, everything=all)
        if output is not None:
            out().print(f"\nwrote {output}; next: luthier train {output}", style="bold", soft_wrap=True)
    if not plan.candidates:
        raise _nothing_fits(plan)


def read_request(
    words: str | None,
    options: dict[str, Any],
    *,
    max_size: str | None = None,
    min_size: str | None = None,
    data: Path | None = None,
) -> Request:
    """The request of a command's options. Errors: UsageError with the nearest name."""
    from luthier.cli.models import parse_count
    from luthier.planning.recommend.words import from_sentence, make_request

    given = {key: value for key, value in options.items() if value is not None}
    if max_size is not None:
        given["max_parameters"] = parse_count(max_size)
    if min_size is not None:
        given["min_parameters"] = parse_count(min_size)
    if data is not None:
        given["profile"] = _profile(data)
        given.setdefault("rows", given["profile"].rows)
    return from_sentence(words, given) if words is not None else make_request(given)


def _profile(path: Path) -> Any:
    from luthier.data.profile import profile

    return profile((str(path.resolve()),), base=Path.cwd())


def _machine(hardware: str | None, vram: str | None, *, unknown: bool) -> Hardware | None:
    from luthier.planning.audit import audit
    from luthier.planning.hypothetical import parse_hardware

    named = [word for word in (hardware, vram) if word is not None]
    if len(named) + unknown > 1:
        raise UsageError(
            "several machines were named", hint="give one of --hardware, --vram, --unknown-hardware"
        )
    if unknown:
        return None
    if hardware is not None:
        return parse_hardware(hardware)
    return audit(versions=False) if vram is None else parse_hardware(f"vram {vram}")


def _plan(
    request: Request, machine: Hardware | None, *, model: str | None, preset: str, most: int | None
) -> Plan:
    from typing import get_args

    from luthier.catalog.index import model_card
    from luthier.errors import did_you_mean
    from luthier.planning.recommend import recommend as rank
    from luthier.schema.hyperparameter import Preset

    presets = get_args(Preset)
    if preset not in presets:
        hint = did_you_mean(preset, presets) or f"one of {', '.join(presets)}"
        raise UsageError(f"{preset!r} is not a preset", hint=hint)
    models = None if model is None else [model_card(model)]
    return rank(request, machine, preset=preset, most=most, models=models)  # type: ignore[arg-type]


def write_recipe(plan: Plan, output: Path, data: Path | None) -> None:
    """Write the best candidate's recipe. Errors: DoesNotFit where there is none, UsageError for its place."""
    from luthier.planning.recommend.recipe import to_recipe
    from luthier.schema.load import dump_recipe

    if plan.best is None:
        raise _nothing_fits(plan)
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is not a directory", hint="make it first, or name another file")
    recipe = to_recipe(plan.best, plan.request, () if data is None else (str(data.resolve()),))
    output.write_text(dump_recipe(recipe), encoding="utf-8")


def _nothing_fits(plan: Plan) -> DoesNotFit:
    ways = [f"{r.change} ({r.gains} models, best {r.best})" for r in plan.relaxations]
    if plan.nearest is not None:
        ways.append(plan.nearest)
    return DoesNotFit(
        "no model meets the whole request",
        hint="; or ".join(ways) if ways else "see what was rejected and why above",
    )


def _guide(name: str) -> GuideName:
    folded = name.strip().upper().removeprefix("GUIDE").strip()
    known: dict[str, GuideName] = {"A": "A", "B": "B", "C": "C"}
    if folded in known:
        return known[folded]
    raise UsageError(f"{name!r} is not a guide", hint="A, B or C")


def _print_guide(guide: GuideName, request: Request, machine: Hardware | None, *, as_json: bool) -> None:
    from luthier.cli.plan_words import show_methods
    from luthier.planning.recommend.guides import GUIDE_NAMES, answer_of

    found = answer_of(guide, request, machine)
    if as_json:
        print_json({"guide": found.model_dump(mode="json"), "name": GUIDE_NAMES[guide]})
        return
    out().print(f"Guide {guide} ({GUIDE_NAMES[guide]}): {found.answer}", style="bold", soft_wrap=True)
    out().print(f"  its rule: {found.rule}", soft_wrap=True)
    for mark in found.wrong:
        out().print(f"  ✗ {mark}", soft_wrap=True)
    if guide == "C":
        show_methods()
    out().print("  without --as-guide, verified facts and predicted memory decide", style="dim")


def show_plan(plan: Plan, *, explain: bool = False, everything: bool = False) -> None:
    """A plan as people read it: ranked pairs, the first one's reasons, the rejected by reason."""
    from luthier.cli.plan_words import show_best, show_guides, show_methods, show_ranking, show_rejected

    for rule in plan.rules:
        out().print(f"  {rule}", style="dim", soft_wrap=True)
    if plan.candidates:
        show_ranking(plan, explain=explain)
        show_best(plan.candidates[0])
    show_guides(plan)
    if explain and plan.guides:
        show_methods()
    show_rejected(plan, everything=everything)
    if plan.advice:
        out().print("\nThink of", style="bold")
        for line in plan.advice:
            out().print(f"  {line}", soft_wrap=True)
    if plan.candidates:
        out().print("\nNext", style="bold")
        for command in plan.next_commands:
            out().print(f"  {command}", soft_wrap=True)
        out().print(f"\n{NOT_ADVICE}", style="dim")


def one_line(candidate: Candidate) -> str:
    """A candidate in one line."""
    seconds = candidate.estimate.seconds
    when = "time not known" if seconds is None else f"about {duration(seconds.expected)}"
    return (
        f"{candidate.weights} with {candidate.method.name}: {memory(candidate.needed)} of "
        f"{memory(candidate.budget)}, {when}"
    )
