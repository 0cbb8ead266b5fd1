"""``luthier fit``: what a model needs to be served with a context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.console import memory, out, print_json
from luthier.errors import DoesNotFit, UsageError, did_you_mean

if TYPE_CHECKING:
    from luthier.schema.hardware import Hardware
    from luthier.schema.model import Architecture

Flag = Annotated[bool, Parameter(negative="")]
METADATA = 8_000_000
"""Bytes of tokenizer and header in a GGUF file, where the file is not there: 2 to 16 MB."""
LONGEST = 131_072
"""Longest context that is tried where the model does not say what it can read."""


def fit(
    model: str,
    /,
    *,
    context: int | None = None,
    slots: int = 1,
    quantisation: str | None = None,
    cache_type: str = "f16",
    flash_attention: bool = True,
    hardware: str | None = None,
    json: Flag = False,
) -> int:
    """Say what a model needs to be served, and the longest context that fits, for each quantisation.

    Parameters
    ----------
    model
        A model of the catalogue, or a folder with a saved model.
    context
        Tokens of one slot; 8,192 or what the model can read if not given.
    slots
        Requests that are answered at once, each with its own context.
    quantisation
        Only this type: F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_K_S or Q3_K_M.
    cache_type
        Type of keys and values: f16, q8_0, q4_0...
    flash_attention
        Whether llama.cpp uses it (on by default where the backend has it).
    hardware
        Hardware in words: "rtx 4090", mac:32GB, cpu:16GB; this machine if not given.
    json
        Print one JSON object.
    """
    from luthier.cli.plan import shape_of
    from luthier.planning.audit import audit
    from luthier.planning.hypothetical import parse_hardware
    from luthier.sizing.serving import CACHE_BYTES, USUAL_CONTEXT

    if cache_type not in CACHE_BYTES:
        raise UsageError(
            f"{cache_type} is not a type of cache",
            hint=did_you_mean(cache_type, CACHE_BYTES) or f"use one of {', '.join(CACHE_BYTES)}",
        )
    if slots < 1:
        raise UsageError(f"{slots} slots", hint="use at least 1")
    machine = parse_hardware(hardware) if hardware is not None else audit()
    arch, _ = shape_of(model)
    most = arch.max_positions or LONGEST
    wanted = context or min(USUAL_CONTEXT, most)
    if wanted > most:
        raise UsageError(
            f"a context of {wanted:,} tokens is beyond the model's {most:,}", hint=f"use --context {most}"
        )
    rows = _rows(
        arch,
        machine,
        context=wanted,
        slots=slots,
        only=quantisation,
        cache_type=cache_type,
        flash_attention=flash_attention,
    )
    if json:
        print_json({"model": model, "context": wanted, "slots": slots, "room": _room(machine), "rows": rows})
    else:
        _print(model, wanted, slots, machine, rows)
    if not any(row["fits"] for row in rows):
        longest = max((row["longest_context"] or 0) for row in rows)
        raise DoesNotFit(
            f"{model} with {slots} x {wanted:,} tokens does not fit {memory(_room(machine))}",
            hint=f"--context {longest} fits" if longest else "a smaller model: `luthier recommend`",
        )
    return 0


def _room(machine: Hardware) -> int:
    """Bytes for weights, cache and buffers."""
    from luthier.sizing.serving import SERVER_SHARE

    free = sum(gpu.memory_free for gpu in machine.accelerators) or machine.memory_free
    return int(free * SERVER_SHARE)


def _rows(
    arch: Architecture,
    machine: Hardware,
    *,
    context: int,
    slots: int,
    only: str | None,
    cache_type: Any,
    flash_attention: bool,
) -> list[dict[str, Any]]:
    from luthier.sizing.gguf import FILE_TYPES, gguf_bytes
    from luthier.sizing.serving import largest_context, serving_memory

    if only is not None and only not in FILE_TYPES:
        raise UsageError(
            f"{only} is not a quantisation",
            hint=did_you_mean(only, FILE_TYPES) or f"use one of {', '.join(FILE_TYPES)}",
        )
    rows = []
    for kind in FILE_TYPES if only is None else (only,):
        weights = gguf_bytes(arch, kind, metadata=METADATA)

        def need(tokens: int, weights: int = weights) -> int:
            held = serving_memory(
                arch, weights, tokens, slots=slots, cache_type=cache_type, flash_attention=flash_attention
            )
            return held.total

        held = serving_memory(
            arch, weights, context, slots=slots, cache_type=cache_type, flash_attention=flash_attention
        )
        rows.append(
            {
                "quantisation": kind,
                "file": weights,
                "cache": held.cache,
                "buffers": held.compute + held.output,
                "total": held.total,
                "fits": held.total <= _room(machine),
                "longest_context": largest_context(need, _room(machine), most=arch.max_positions or LONGEST),
            }
        )
    return rows


def _print(model: str, context: int, slots: int, machine: Hardware, rows: list[dict[str, Any]]) -> None:
    from rich.padding import Padding

    from luthier.cli.story import columns

    where = machine.accelerators[0].name if machine.accelerators else machine.processor.name
    room = memory(_room(machine))
    out().print(
        f"{model} in llama.cpp, {slots} x {context:,} tokens, on {where} with room for {room}; in GiB:",
        soft_wrap=True,
    )
    heads = ("file", "weights", "cache", "buffers", "together", "", "longest context")
    table = columns(*heads, numbers=(1, 2, 3, 4, 6))
    for row in rows:
        longest = row["longest_context"]
        table.add_row(
            row["quantisation"],
            *(f"{row[key] / 2**30:.2f}" for key in ("file", "cache", "buffers", "total")),
            "fits" if row["fits"] else "too large",
            f"{longest:,}" if longest else "none",
            style="" if row["fits"] else "dim",
        )
    out().print(Padding(table, (1, 0, 1, 2)))
    said = "A context is one slot's. Buffers as on llama.cpp's CPU backend; a GPU's differ by some MiB."
    out().print(said, style="dim", soft_wrap=True)
