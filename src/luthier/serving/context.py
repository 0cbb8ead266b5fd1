"""The context window of a deployment: as long as memory, the model and the training allow."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import DoesNotFit, UsageError
from luthier.files import readable
from luthier.llamacpp.shape import shape_of_gguf
from luthier.schema.deployment import ContextPlan
from luthier.sizing.serving import (
    SERVER_SHARE,
    USUAL_CONTEXT,
    CacheType,
    largest_context,
    serving_memory,
)


def plan_context(
    gguf: Path,
    *,
    free: int,
    where: str,
    context: int | None = None,
    slots: int = 1,
    cache_type: CacheType = "f16",
    trained: int | None = None,
) -> ContextPlan:
    """Choose the tokens of one slot, and say what they and longer ones cost.

    free: bytes that are free on ``where``. context: what was asked for; else the longest of 8,192 and
    the length trained on, within what the model can read and the memory holds. Errors: UsageError
    beyond the model's own context, DoesNotFit with what would fit.
    """
    arch = shape_of_gguf(gguf)
    weights = gguf.stat().st_size
    most = arch.max_positions or USUAL_CONTEXT
    budget = int(free * SERVER_SHARE)

    def need(tokens: int) -> int:
        return serving_memory(arch, weights, tokens, slots=slots, cache_type=cache_type).total

    longest = largest_context(need, budget, most=most)
    if context is not None and context > most:
        raise UsageError(
            f"a context of {context:,} tokens is beyond the model's {most:,}", hint=f"use --context {most}"
        )
    if longest is None or (context is not None and context > longest):
        asked = context or min(USUAL_CONTEXT, most)
        raise DoesNotFit(
            f"{gguf.name} with {slots} x {asked:,} tokens needs {readable(need(asked))} and "
            f"{readable(budget)} of {where} may be used",
            hint=f"--context {longest} fits" if longest else "fewer --slots, a smaller quantisation or model",
        )
    chosen, why = _choose(context, longest, most, trained)
    held = serving_memory(arch, weights, chosen, slots=slots, cache_type=cache_type)
    longer = [tokens for tokens in (chosen * 2, chosen * 4, longest) if chosen < tokens <= longest]
    return ContextPlan(
        context=chosen,
        slots=slots,
        cache_type=cache_type,
        weights=held.weights,
        cache=held.cache,
        buffers=held.compute + held.output,
        free=free,
        where=where,
        longest=longest,
        model_context=most,
        why=why,
        longer={tokens: need(tokens) for tokens in sorted(set(longer))},
    )


def _choose(context: int | None, longest: int, most: int, trained: int | None) -> tuple[int, str]:
    if context is not None:
        return context, "asked for"
    wanted, why = (
        min(USUAL_CONTEXT, most),
        f"the usual {USUAL_CONTEXT:,}" if most >= USUAL_CONTEXT else "all that the model can read",
    )
    if trained is not None and trained > wanted:
        wanted, why = min(trained, most), f"the {trained:,} tokens that it was trained on"
    if wanted > longest:
        return longest, f"the longest that fits; {why} would not"
    return wanted, why
