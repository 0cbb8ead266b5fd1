"""What a finished training adds to the store of measurements, from the run's own files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError
from luthier.planning.estimate import kernels_for
from luthier.planning.measured import add_measurement, machine_of
from luthier.runs.directory import RunDirectory
from luthier.runs.stages import load_estimate
from luthier.schema.hardware import Hardware
from luthier.schema.measurement import Measurement, Prediction, Shortage
from luthier.schema.results import TrainResult
from luthier.schema.run import Planned
from luthier.sizing.model_config import architecture_of

KEPT = ("luthier", "torch", "transformers", "peft", "python")


def steps_of(run: RunDirectory) -> dict[int, dict[str, Any]]:
    """Step -> what was written of it; of a step that was done again after a kill, the last."""
    return {line["step"]: line for line, _ in run.lines("metrics") if line.get("kind") == "step"}


def shortages_of(run: RunDirectory) -> Iterator[Shortage]:
    """Steps that ran out of memory."""
    for line, _ in run.lines("metrics"):
        if line.get("kind") == "out_of_memory":
            yield Shortage(**{name: line[name] for name in Shortage.model_fields})


def measurement_of(run: RunDirectory, result: TrainResult) -> Measurement | None:
    """Predicted beside measured, or None where no shape was kept or several devices trained."""
    estimate, hardware = load_estimate(run), run.stage("hardware", Hardware)
    planned = run.stage("planned", Planned)
    facts: dict[str, Any] = run.stage_values("model") or {}
    env: dict[str, Any] = run.stage_values("env") or {}
    if estimate is None or hardware is None or planned is None or "path" not in facts:
        return None
    try:
        architecture = architecture_of(Path(facts["path"]))
    except LuthierError:
        return None  # the base model has gone from the disk since
    recipe = run.recipe
    if recipe.training.devices > 1:
        return None  # what the formula is corrected by is one device's time and memory
    dtype = str(recipe.model.dtype)
    steps = steps_of(run)
    shortages = tuple(shortages_of(run))
    shape = planned.shape
    if rows := [shortage.now for shortage in shortages if shortage.unit == "rows"]:
        shape = shape.model_copy(update={"micro_batch_size": rows[-1]})
    machine = machine_of(hardware)
    return Measurement(
        time=time.time(),
        run=run.id,
        model=recipe.model.id,
        architecture=architecture,
        method=recipe.method,
        shape=shape,
        dtype=dtype,
        machine=machine,
        gpu=hardware.accelerators[0].model_copy(update={"holders": ()}) if machine.device == "cuda" else None,
        matrix_rate=env.get("probe", {}).get(dtype),
        kernels=kernel_words(machine.device, dtype),
        versions={k: v for k, v in {**hardware.versions, **env.get("versions", {})}.items() if k in KEPT},
        steps=len(steps),
        tokens=sum(line["tokens"] for line in steps.values()),
        predicted=Prediction(
            phases={phase.name: phase.total for phase in estimate.phases},
            process=estimate.process,
            tensors=estimate.tensors,
            seconds=estimate.seconds,
            basis=estimate.basis,
        ),
        peak=result.training_peak or result.peak_memory,
        phases={**result.phase_memory, **_judging(run)},
        seconds=sum(line["seconds"] for line in steps.values()),
        validation_seconds=sum(
            line["seconds"] for line, _ in run.lines("metrics") if line.get("kind") == "validation"
        ),
        shortages=shortages,
    )


def _judging(run: RunDirectory) -> dict[str, int]:
    """Largest process while the untouched model answered, where it did."""
    peak = run.status.peak_memory.get("baseline")
    return {} if peak is None else {"evaluate": peak}


def kernel_words(device: str, dtype: str) -> str:
    """The kernels that a plan takes for granted, in words."""
    kernels = kernels_for("cuda" if device == "cuda" else "cpu", dtype)
    documents = "one document at a time" if kernels.joins_documents else "variable length"
    return f"attention {kernels.attention}, {documents}; loss {kernels.loss}; adapters {kernels.adapters}"


def keep_measurement(run: RunDirectory, result: TrainResult) -> Measurement | None:
    """Write what the training came to into the run and append it to the store.

    A store that cannot be written costs the next plan its correction, never the run its end.
    """
    found = measurement_of(run, result)
    if found is None:
        return None
    run.save_stage("measurement", "", found)
    try:
        add_measurement(found)
    except OSError as error:
        run.append("events", {"event": "note", "text": f"the measurement was not kept for later: {error}"})
    return found
