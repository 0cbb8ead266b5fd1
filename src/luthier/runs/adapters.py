"""Adapters of runs as files that llama.cpp puts on one base."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from luthier.errors import Unsupported, UsageError
from luthier.files import readable
from luthier.hub.cache import need_space, room
from luthier.llamacpp.convert import convert, convert_adapter
from luthier.runs.directory import RunDirectory
from luthier.runs.model import obtain
from luthier.schema.recipe import Full, ModelChoice

Say = Callable[[str], None]


def adapter_file(run: RunDirectory, *, say: Say) -> Path:
    """The run's adapter as a GGUF file beside its adapter folder, written when first asked for.

    Errors: UsageError where the run has no adapter, Unsupported for DoRA and new tokens, ToolchainError.
    """
    if isinstance(run.recipe.method, Full):
        raise UsageError(f"{run.id} is a full fine-tuning: it has no adapter", hint="serve its own GGUF")
    if run.recipe.model.new_tokens:
        raise Unsupported(
            f"the adapter of {run.id} holds embeddings of new tokens, which llama.cpp puts on no base",
            hint=f"serve its own file: luthier export {run.id} --gguf Q4_K_M",
        )
    folder = run.path / "artifacts" / "adapter"
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UsageError(f"{run.id} has not written its adapter", hint=f"luthier export {run.id} --adapter")
    out = run.path / "artifacts" / f"{run.recipe.name or run.id}-adapter-F16.gguf"
    if not out.is_file() or out.stat().st_mtime < weights.stat().st_mtime:
        say(f"writing {out.name}")
        convert_adapter(folder, _base_folder(run), out)
    return out


def _base_folder(run: RunDirectory) -> Path:
    base = Path((run.stage_values("model") or {}).get("path", ""))
    if (base / "config.json").is_file():
        return base
    merged = run.path / "artifacts" / "merged"  # of the same shape, with the same tokenizer
    if (merged / "config.json").is_file():
        return merged
    raise UsageError(
        f"the base model of {run.id} is no longer here", hint=f"luthier get {run.recipe.model.id}"
    )


def one_base(runs: Sequence[RunDirectory]) -> ModelChoice:
    """The base that all runs were tuned from. Errors: UsageError where they differ."""
    bases = {(run.recipe.model.id, run.recipe.model.revision): run for run in runs}
    if len(bases) > 1:
        told = "; ".join(f"{run.id}: {model}" for (model, _), run in bases.items())
        raise UsageError(f"the adapters belong to different bases ({told})", hint="serve them apart")
    return next(iter(bases.values())).recipe.model


def base_file(choice: ModelChoice, *, say: Say) -> Path:
    """The base model as an F16 GGUF file, converted once and kept in the cache."""
    local = obtain(choice, say=say)
    name = hashlib.sha256(f"{local.path.resolve()}\n{local.revision}".encode()).hexdigest()[:12]
    out = room("gguf") / f"{local.path.name}-{name}-F16.gguf"
    if not out.is_file():
        size = sum(path.stat().st_size for path in local.path.glob("*.safetensors"))
        need_space(out.parent, size, f"{local.id} as GGUF")
        say(f"converting {local.id} to GGUF ({readable(size)}), once")
        convert(local.path, out)
    return out
