"""``luthier models``: the catalogue of base models."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from luthier.cli.console import memory, out, print_json
from luthier.errors import UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from luthier.schema.model import ModelCard
    from luthier.schema.request import Request

app = App(name="models", help="The catalogue of base models.", help_format="plaintext")

NUMBERS = ("params", "context", "active", "needs")
Flag = Annotated[bool, Parameter(negative="")]


@app.default
@app.command(name="list")
def list_models(
    *,
    family: str | None = None,
    purpose: str | None = None,
    kind: str | None = None,
    max_size: str | None = None,
    min_size: str | None = None,
    licence: str | None = None,
    language: str | None = None,
    context: int | None = None,
    feature: str | None = None,
    gguf: Flag = False,
    fits: Literal["full", "lora", "qlora"] | None = None,
    hardware: str | None = None,
    on_disk: Flag = False,
    json: Flag = False,
) -> None:
    """All models that meet every condition given, in the catalogue's order.

    Parameters
    ----------
    family
        Beginning of the family's, maker's or model's name: llama, qwen3, gemma.
    purpose
        chat, text-generation, similarity, reranking, multi-label- or multi-class-classification.
    kind
        decoder, vision-language, encoder, bi-encoder or cross-encoder.
    max_size
        Most parameters: 8B, 500M.
    min_size
        Least parameters.
    licence
        Rules with commas: apache-2.0, mit, osi, commercial, no-acceptable-use-policy, may-train-others.
    language
        Languages with commas, by code or English name.
    context
        Tokens that it must read by itself.
    feature
        tools, thinking, image, with commas.
    gguf
        Only models that llama.cpp's converter takes.
    fits
        Only models that can be trained here with this method; shows the memory.
    hardware
        Judge fits on hardware in words ("rtx 4090") rather than on this machine.
    on_disk
        Only models whose weights are on this machine.
    json
        Print one JSON object.
    """
    from luthier.catalog.index import all_models

    found = list(all_models())
    if kind is not None:
        _known_kind(kind)
        found = [card for card in found if card.kind == kind]
    conditions = (purpose, family, max_size, min_size, licence, language, context, feature)
    if gguf or any(condition is not None for condition in conditions):
        from luthier.planning.recommend.filters import listed

        request = _request(purpose, family, max_size, min_size, licence, language, context, feature, gguf)
        found = [card for card in found if listed(card, request, any_purpose=purpose is None)]
    if on_disk:
        found = _on_disk(found)
    needs = _needs(found, fits, hardware) if fits is not None else {}
    if fits is not None:
        found = [card for card in found if card.id in needs]
    if json:
        print_json({"models": [_row(card, needs.get(card.id)) for card in found]})
        return
    if not found:
        out().print("no model meets all of that; leave one condition out, or see `luthier recommend`")
        return
    _print_table(found, needs)


@app.command
def show(model: str, /, *, json: Flag = False) -> None:
    """All that is known of one model, with sources.

    Parameters
    ----------
    model
        Id, a variant's id, the short name or a loose one ("Llama 3.3 8B").
    json
        Print one JSON object.
    """
    from luthier.catalog.index import licence, model_card, sources, why_found

    card = model_card(model)
    why = why_found(model)
    if json:
        values = card.model_dump(mode="json", exclude_none=True)
        print_json(
            {"model": values, "found_by": why, "licence": licence(card.licence).model_dump(mode="json")}
        )
        return
    if why is not None:
        out().print(f"{model}: {why}\n", soft_wrap=True)
    _print_card(card)
    known = sources()
    out().print("\nSources", style="bold")
    for key in card.sources:
        out().print(f"  {key}: {known[key]}", soft_wrap=True)


@app.command
def add(source: str, /, *, name: str | None = None, json: Flag = False) -> None:
    """Make an entry for another model from its config, tokenizer and card; no weights are read.

    Parameters
    ----------
    source
        A directory with config.json, or the id of a model that is on this machine.
    name
        What to call it; the config's own name or the directory's if not given.
    json
        Print one JSON object.
    """
    from luthier.planning.added import card_from_directory, save_card

    directory = Path(source).expanduser()
    if not directory.is_dir():
        from luthier.hub.snapshot import resolve_model

        directory = resolve_model(source, offline=True).path
        name = name or source
    card, unknown = card_from_directory(directory, name=name)
    path = save_card(card)
    if json:
        print_json(
            {"model": card.model_dump(mode="json", exclude_none=True), "unknown": unknown, "path": str(path)}
        )
        return
    _print_card(card)
    out().print(f"\nKept in {path}; it works everywhere by the name {card.id}", soft_wrap=True)
    for line in unknown:
        out().print(f"  not known: {line}", soft_wrap=True)


@app.command
def rm(model: str, /) -> None:
    """Remove an entry that `luthier models add` made.

    Parameters
    ----------
    model
        Its name.
    """
    from luthier.planning.added import remove_card

    path = remove_card(model)
    out().print(f"removed {path}", soft_wrap=True)


def parse_count(text: str) -> int:
    """Parameters of ``8B``, ``500M``, ``1.5e9``. Errors: UsageError."""
    units = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
    folded = text.strip().lower()
    factor = units.get(folded[-1:], 1.0)
    try:
        return int(float(folded[:-1] if folded[-1:] in units else folded) * factor)
    except ValueError:
        raise UsageError(f"{text!r} is not a number of parameters", hint="write 8B, 500M or 1.5e9") from None


def _request(  # noqa: PLR0917 (the command's own conditions, once each)
    purpose: str | None,
    family: str | None,
    max_size: str | None,
    min_size: str | None,
    licence: str | None,
    language: str | None,
    context: int | None,
    feature: str | None,
    gguf: bool,
) -> Request:
    from luthier.planning.recommend.words import make_request

    values: dict[str, Any] = {
        "purpose": purpose,
        "family": family,
        "max_parameters": None if max_size is None else parse_count(max_size),
        "min_parameters": None if min_size is None else parse_count(min_size),
        "licence": licence,
        "languages": language,
        "context": context,
        "features": feature,
        "gguf": gguf,
    }
    return make_request({key: value for key, value in values.items() if value is not None})


def _known_kind(kind: str) -> None:
    from typing import get_args

    from luthier.errors import did_you_mean
    from luthier.schema.model import Kind

    kinds = get_args(Kind)
    if kind not in kinds:
        hint = did_you_mean(kind, kinds) or f"one of {', '.join(kinds)}"
        raise UsageError(f"{kind!r} is not a kind of model", hint=hint)


def _on_disk(cards: list[ModelCard]) -> list[ModelCard]:
    from luthier.hub.upkeep import cached_models

    here = {model.id for model in cached_models()}
    return [
        card
        for card in cards
        if here & {card.id, card.variants.instruct, card.variants.base, *card.variants.other}
    ]


def _needs(cards: list[ModelCard], method: Any, words: str | None) -> dict[str, int]:
    """Id -> bytes for the models that fit with the method."""
    from luthier.planning.audit import audit
    from luthier.planning.estimate import estimate_candidate
    from luthier.planning.hypothetical import parse_hardware
    from luthier.planning.recommend.ranking import needed_by
    from luthier.schema.request import Request

    machine = audit() if words is None else parse_hardware(words)
    found: dict[str, int] = {}
    for card in cards:
        request = Request(purpose=card.purposes[0])
        need = needed_by(card, method, request, machine, estimate=estimate_candidate)
        if isinstance(need, tuple) and need[1]:
            found[card.id] = need[0]
    return found


def count(parameters: int | None) -> str:
    """Parameters as people write them: 135M, 8.03B."""
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.2f}B" if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def plain(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[int] = (),
    bold: int | None = None,
) -> None:
    """Print a table with nothing cut off: columns as wide as their longest cell, headings dim.

    right: columns aligned to the right. bold: a row to stand out. Long tables are quick this way.
    """
    from rich.text import Text

    widths = [max(len(head), *(len(row[i]) for row in rows), 0) for i, head in enumerate(heads)]
    lines = [
        "  "
        + "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (heads, *rows)
    ]
    text = Text("\n".join(lines))
    text.stylize("dim", 0, len(lines[0]))
    if bold is not None:
        start = sum(len(line) + 1 for line in lines[: bold + 1])
        text.stylize("bold", start, start + len(lines[bold + 1]))
    out().print(text, soft_wrap=True)


def narrow() -> bool:
    """Whether the terminal has no room for a table's less important columns."""
    console = out()
    return console.is_terminal and console.width < 110


def _row(card: ModelCard, need: int | None) -> dict[str, Any]:
    row = {
        "id": card.id,
        "family": card.family,
        "kind": card.kind,
        "parameters": card.total,
        "active_parameters": card.parameters.active,
        "context": card.context.native,
        "purposes": list(card.purposes),
        "licence": card.licence,
        "gguf": card.gguf.supported,
        "release_date": card.release_date,
    }
    return row if need is None else {**row, "bytes_needed": need}


def _print_table(cards: list[ModelCard], needs: dict[str, int]) -> None:
    short = narrow()
    heads = ["model", "params", "context", "licence", "GGUF", "released"]
    heads += [] if short else ["kind", "active"]
    heads += ["needs"] if needs else []
    rows: list[list[str]] = []
    for card in cards:
        active = card.parameters.active
        cells = [
            card.id,
            count(card.total),
            "?" if card.context.native is None else f"{card.context.native:,}",
            card.licence,
            {True: "yes", False: "no", None: "?"}[card.gguf.supported],
            card.release_date or "?",
        ]
        if not short:
            cells += [card.kind, count(active) if active else ""]
        if needs:
            cells.append(memory(needs[card.id]))
        rows.append(cells)
    plain(heads, rows, right=[i for i, head in enumerate(heads) if head in NUMBERS])
    out().print(
        f"\n{len(cards)} models; ? means not verified; `luthier models show ID` tells all", style="dim"
    )


def _print_card(card: ModelCard) -> None:
    from luthier.catalog.index import licence
    from luthier.cli import story

    terms = licence(card.licence)
    unknown = "not verified"
    parameters = count(card.total) if card.total else unknown
    if card.parameters.active:
        parameters += f", {count(card.parameters.active)} active"
    if card.parameters.towers:
        parameters += f", {count(card.parameters.towers)} of them for images and sound"
    context = unknown if card.context.native is None else f"{card.context.native:,} tokens"
    if card.context.extended:
        context += f", {card.context.extended:,} with its published extension"
    languages = ", ".join(card.languages or ()) or ""
    if card.language_claim:
        languages += f"{' and ' if languages else ''}{card.language_claim} (its maker's claim)"
    rows: list[tuple[str, str | Text]] = [
        ("Family", f"{card.family} by {card.org}, {card.kind}"),
        ("Released", card.release_date or unknown),
        ("Variants", f"instruct {card.variants.instruct or 'none'}, base {card.variants.base or 'none'}"),
        ("Parameters", parameters),
        ("Context", context),
        ("Reads", ", ".join(card.modalities)),
        ("Purposes", ", ".join(card.purposes)),
        ("Known for", ", ".join(card.tags) or "nothing noted"),
        ("Languages", languages or unknown),
        ("Licence", f"{terms.name}" + (f"; {card.licence_note}" if card.licence_note else "")),
        ("Download", {True: "gated: accept the terms first", False: "open", None: unknown}[card.gated]),
        ("GGUF", _gguf(card)),
        ("Adapters", ", ".join(card.lora.targets) or unknown),
    ]
    if card.embedded is not None:
        rows.append(("Without the Hub", f"{card.embedded.requirement} ({card.embedded.bytes / 1e6:.1f} MB)"))
    out().print(card.id, style="bold")
    out().print(story.grid(rows))
    _print_shape(card)
    if card.benchmarks:
        table = story.columns("benchmark", "score", "weights", "setting", "source", numbers=(1,))
        for score in card.benchmarks:
            table.add_row(score.name, f"{score.value:g}", score.stage, score.setting or "", score.source)
        out().print()
        out().print(table)
    for line in card.caveats:
        out().print(f"  ! {line}", soft_wrap=True)


def _gguf(card: ModelCard) -> str:
    words = {True: "converted by llama.cpp", False: "not converted by llama.cpp", None: "not verified"}
    found = words[card.gguf.supported]
    if card.gguf.architecture:
        found += f" as {card.gguf.architecture}"
    return f"{found}; {card.gguf.note}" if card.gguf.note else found


def _print_shape(card: ModelCard) -> None:
    shape = card.architecture
    if shape is None:
        out().print("  shape not verified: memory cannot be predicted", style="yellow")
        return
    words = (
        f"{shape.layers} layers of {shape.hidden_size}, MLP {shape.intermediate_size}, "
        f"{shape.attention_heads} heads ({shape.kv_heads} for keys and values) of {shape.head_dim}, "
        f"vocabulary {shape.vocab_size:,}{', tied' if shape.tied_embeddings else ''}"
    )
    kinds = {kind: shape.layer_kinds.count(kind) for kind in dict.fromkeys(shape.layer_kinds)}
    if len(kinds) > 1:
        words += "; layers: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    if shape.sliding_window:
        words += f" (window {shape.sliding_window:,})"
    if shape.experts is not None:
        words += f"; {shape.experts.total} experts, {shape.experts.active} for each token"
    out().print(f"  {shape.model_type}: {words}", soft_wrap=True)
