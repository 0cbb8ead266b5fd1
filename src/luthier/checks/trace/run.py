"""Ask for a trace: in a child process with a time limit, remembered by content."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.checks.trace.result import TraceResult
from luthier.errors import ToolchainError, Unsupported
from luthier.files import cache_dir, write_text
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate, Phase, TrainingShape
from luthier.schema.recipe import Method

TIME_LIMIT = 600
"""Seconds after which a trace is given up."""
BAND = 0.02
"""Half-width of a trace's band for tensors: the kernels it follows are checked within one per cent."""
_LIBRARIES = ("torch", "transformers", "peft", "luthier")


def trace_training(
    config: Mapping[str, Any],
    method: Method,
    shape: TrainingShape,
    *,
    dtype: str = "bfloat16",
    hopper: bool = False,
    whole: bool = True,
    expandable: bool = True,
    cache: Path | None = None,
) -> TraceResult:
    """Trace one step of our trainer on CUDA for the model of that config.json.

    whole: every layer, with reserved memory and the least capacity; else two shallow depths, in
    seconds. expandable: whether the allocator grows its segments. cache: folder of remembered
    results, the user's cache folder by default. Errors: Unsupported for what the trace does not
    follow, ToolchainError when the process fails.
    """
    if "vision_config" in config:
        raise Unsupported(
            "models that see are not traced: a vision tower's kernels are not followed",
            hint="leave out --exact: the formula counts tower and images",
        )
    layers = int(config["num_hidden_layers"])
    depths = None if whole else shallow_depths(config)
    if depths is not None and (depths[1] >= layers or shape.recomputed_layers is not None):
        depths = None  # some layers unlike the others are not to be foretold from few
    request = {
        "step": {
            "config": dict(config),
            "method": method.model_dump(),
            "shape": shape.model_dump(),
            "dtype": dtype,
            "hopper": hopper,
        },
        "depths": depths,
        "expandable": expandable,
        "layers": layers,
    }
    text = json.dumps(request, sort_keys=True)
    key = hashlib.sha256("\n".join((text, *map(_version, _LIBRARIES), _code())).encode()).hexdigest()
    path = (cache or cache_dir() / "trace") / f"{key[:32]}.json"
    if path.exists():
        return TraceResult.model_validate_json(path.read_bytes())
    found = _ask(text)
    write_text(path, found.model_dump_json())
    return found


def shallow_depths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Two depths whose difference holds each kind of layer as often as the whole does."""
    kinds = config.get("layer_types")
    if not kinds or len(set(kinds)) == 1:
        return 2, 4

    def repeats(size: int) -> bool:
        return all(kind == kinds[index % size] for index, kind in enumerate(kinds))

    period = next((size for size in range(1, len(kinds)) if repeats(size)), len(kinds))
    return period, 2 * period


def _ask(text: str) -> TraceResult:
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "luthier.checks.trace.child"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"the trace took longer than {TIME_LIMIT} seconds") from None
    if done.returncode == 2 and done.stdout.startswith("{"):
        said = json.loads(done.stdout)
        raise Unsupported(said["error"], hint=said["hint"])
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise ToolchainError(f"the trace failed:\n{last}", hint="the formula's estimate stands without it")
    return TraceResult.model_validate_json(done.stdout)


def traced_estimate(estimate: Estimate, found: TraceResult) -> Estimate:
    """The estimate with the trace's memory in place of the formula's."""
    runtime = estimate.peak.parts.get("runtime", 0)
    phases = tuple(
        Phase.model_validate({"name": name, "parts": {**_known(parts), "runtime": runtime}})
        for name, parts in found.phases.items()
    )
    kept = tuple(phase for phase in estimate.phases if phase.name not in found.phases)
    tensors = max(found.allocated, *(phase.total - phase.parts.get("runtime", 0) for phase in kept))
    # A step runs through with little more than its tensors, and takes more where there is more.
    least = (found.needed or tensors) + runtime
    most = max(found.reserved or 0, round(tensors * 1.08)) + runtime
    return estimate.model_copy(
        update={
            "phases": (*kept, *phases),
            "tensors": Range(low=tensors * (1 - BAND), expected=tensors, high=tensors * (1 + BAND)),
            "process": Range(low=least, expected=max(least, tensors * 1.04 + runtime), high=max(least, most)),
            "basis": "trace",
        }
    )


def _known(parts: dict[str, int]) -> dict[str, int]:
    """Parts under the estimate's names."""
    names: dict[str, str] = {"load": "buffers"}
    found: dict[str, int] = {}
    for tag, size in parts.items():
        found[names.get(tag, tag)] = found.get(names.get(tag, tag), 0) + size
    return found


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} absent"


def _code() -> str:
    """Digest of the code that a trace runs through: adapters, loss, optimiser and the trace itself."""
    root = Path(__file__).parents[2]
    followed = (
        "models/attention.py",
        "models/experts.py",
        "models/lora.py",
        "sizing/loss_chunks.py",
        "sizing/padding.py",
        "sizing/reductions.py",
        "sizing/resident.py",
        "sizing/states.py",
        "training/contrastive.py",
        "training/gradients.py",
        "training/losses.py",
        "training/optimizer.py",
    )
    files = [*Path(__file__).parent.glob("*.py"), *(root / name for name in followed)]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
