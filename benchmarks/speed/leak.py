"""What still holds a model that was trained and let go of: its memory, and who refers to it.

    python benchmarks/speed/leak.py ROW [ROW ...]     (rows as `step.py` takes them)

Each row's model is trained, let go of and looked for: bytes that stay allocated, which of its parts are alive,
and for the first of them the chain of whoever refers to it, up to a module, a thread's frame or a C++ owner.
"""

from __future__ import annotations

import gc
import os
import sys
import types
import weakref
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from step import DEFAULTS, adapted, matrix_peak, measure

from luthier.training.world import ALONE

DEEPEST, WIDEST = 14, 400


def named(thing: Any) -> str:
    """One line about an object."""
    if isinstance(thing, types.FrameType):
        return f"frame {thing.f_code.co_qualname} {thing.f_code.co_filename}:{thing.f_lineno}"
    if isinstance(thing, types.ModuleType):
        return f"module {thing.__name__}"
    if isinstance(thing, types.FunctionType | types.MethodType):
        return f"{type(thing).__name__} {thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, types.CodeType):
        return f"code {thing.co_qualname}"
    if isinstance(thing, dict):
        words = [f"{key!r}"[:40] for key in list(thing)[:6]]
        return f"dict of {len(thing)}: {', '.join(words)}"
    if isinstance(thing, BaseException):
        return f"exception {type(thing).__name__}: {thing}"[:200]
    if isinstance(thing, list | tuple | set):
        return f"{type(thing).__name__} of {len(thing)}: {[type(one).__name__ for one in list(thing)[:6]]}"
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def place_in(owner: Any, thing: Any) -> str:
    """Under which key an owner has it."""
    if isinstance(owner, dict):
        return next((f"[{key!r}]"[:60] for key, value in owner.items() if value is thing), "")
    if isinstance(owner, types.FrameType):
        return next((f".{key}" for key, value in owner.f_locals.items() if value is thing), "")
    return ""


def chains(thing: Any) -> None:
    """Print who refers to a thing, level by level, each object once."""
    level, met = [thing], {id(thing)}
    ignored = {id(sys._getframe())}
    for depth in range(DEEPEST):
        found: list[Any] = []
        for one in level:
            owners = gc.get_referrers(one)
            ignored |= {id(owners), id(level), id(found)}
            for owner in owners:
                ours = isinstance(owner, types.FrameType) and owner.f_code.co_filename == __file__
                if ours or id(owner) in met or id(owner) in ignored:
                    continue
                met.add(id(owner))
                found.append(owner)
                if len(found) <= 12:
                    print(f"  {'  ' * depth}{named(one)[:70]}  <-  {named(owner)}{place_in(owner, one)}")
        if not found:
            print(f"  {'  ' * depth}(nobody in Python beyond this; references {sys.getrefcount(level[0])})")
            return
        if len(found) > WIDEST:
            print(f"  ... {len(found)} at depth {depth}")
            return
        level = [one for one in found if not isinstance(one, types.ModuleType)]


def trained(text: str, device: str) -> dict[str, weakref.ref[Any]]:
    """Train a row's model and keep only weak references to its parts."""
    row = DEFAULTS | dict(part.split("=", 1) for part in text.split(","))
    model = adapted(row, device)
    head = model.get_output_embeddings()
    parts = {
        "model": model,
        "base": model.base_model,
        "layer": model.base_model.layers[0],
        "embedding": model.get_input_embeddings().weight,
        "head": head.weight,
        "trained": next(one for one in model.parameters() if one.requires_grad),
        "norm": model.base_model.norm.weight,
        "last": model.base_model.layers[-1].mlp.up_proj.weight,
    }
    kept = {name: weakref.ref(part) for name, part in parts.items()}
    found = measure(model, row, device, ALONE)
    print(text, "loss", found["loss"], "allocated", found["allocated_gb"], flush=True)
    return kept


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        matrix_peak()
    kept: dict[str, dict[str, weakref.ref[Any]]] = {}
    for number, text in enumerate(sys.argv[1:]):
        kept[f"{number}: {text}"] = trained(text, device)
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            print("allocated after", torch.cuda.memory_allocated() / 1e6, "MB", flush=True)
        for of, parts in kept.items():
            print("alive of", of, [name for name, part in parts.items() if part() is not None], flush=True)
    for of, parts in kept.items():
        for name, part in parts.items():
            if part() is not None:
                print("\n#", of, name, "references", sys.getrefcount(part()))
                chains(part())
                break


if __name__ == "__main__":
    main()
