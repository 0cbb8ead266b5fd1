"""The store of measurements: one JSON line a run, in the cache. Runs write it, plans read it."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from luthier.errors import LuthierError
from luthier.files import cache_dir
from luthier.planning.correction import MOST_OFF, Corrections, Ratio
from luthier.planning.estimate import Device, device_of, estimate_training
from luthier.schema.estimate import peak_on
from luthier.schema.hardware import Hardware, Processor
from luthier.schema.measurement import Machine, Measurement
from luthier.sizing.parameters import count_parameters

LATEST = 200
"""So many of the newest lines are looked at."""
DEPENDS_ON = ("torch",)
"""Packages of which another minor version may need other memory and time."""


def store() -> Path:
    """Where measurements are kept."""
    return cache_dir() / "measurements" / "training.jsonl"


def add_measurement(found: Measurement) -> None:
    """Append one line in a single write, so that two runs that end together never mix theirs."""
    path = store()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        file.write(found.model_dump_json().encode() + b"\n")


def read_measurements(path: Path | None = None) -> list[Measurement]:
    """The newest measurements, oldest first. A torn line or one of another version is left out."""
    try:
        lines = (path or store()).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines[-LATEST:]:
        try:
            found.append(Measurement.model_validate_json(line))
        except ValidationError:
            continue  # torn by a full disk, or written by a later version
    return found


def machine_of(hardware: Hardware) -> Machine:
    """What a measurement on this hardware holds for."""
    device = device_of(hardware)
    gpu = hardware.accelerators[0].name if device == "cuda" else None
    processor = hardware.processor
    return Machine(device=device, processor=processor.name, cores=processor.cores, accelerator=gpu)


def corrections_for(hardware: Hardware, path: Path | None = None) -> Corrections:
    """What earlier runs on this very hardware teach, each predicted anew by today's formula.

    Hypothetical hardware has no history. Rows of another minor version of torch are left out, and
    those that are off by so much that something else must have been going on.
    """
    if hardware.hypothetical:
        return Corrections()
    here = machine_of(hardware)
    now = {name: _minor(hardware.versions.get(name)) for name in DEPENDS_ON}
    ratios = []
    for row in read_measurements(path):
        if row.machine != here or any(_minor(row.versions.get(k)) != v for k, v in now.items()):
            continue
        if (ratio := ratio_of(row)) is not None:
            ratios.append(ratio)
    return Corrections(tuple(ratios))


def ratio_of(row: Measurement) -> Ratio | None:
    """Measured over predicted, or None where today's formula does not know such a run."""
    device: Device = row.machine.device
    try:
        formula = estimate_training(
            row.architecture,
            row.method,
            row.shape,
            _hardware(row),
            tokens=row.tokens,
            device=device,
            dtype=row.dtype,
            matrix_rate=row.matrix_rate,
        )
    except LuthierError:
        return None
    memory = row.peak / peak_on(formula, device).expected
    seconds = None
    # How fast weights come from the host depends on the link, which a row does not name.
    if formula.seconds is not None and not row.shape.offload_parameters:
        seconds = row.seconds / formula.seconds.expected
    if seconds is not None and not 1 / MOST_OFF <= seconds <= MOST_OFF:
        seconds = None
    if not 1 / MOST_OFF <= memory <= MOST_OFF:
        return None
    return Ratio(
        model_type=row.architecture.model_type,
        parameters=count_parameters(row.architecture).total,
        method=row.method.name,
        dtype=row.dtype,
        checkpointing=row.shape.activation_checkpointing,
        tokens=row.shape.tokens,
        memory=memory,
        seconds=seconds,
        offloaded=row.shape.offload_parameters,
    )


def _hardware(row: Measurement) -> Hardware:
    """Enough of the machine for the formula; the rate of matrix products comes with the row."""
    processor = Processor(
        name=row.machine.processor, cores=row.machine.cores, instruction_sets=(), bf16=row.dtype == "bfloat16"
    )
    return Hardware(
        processor=processor,
        memory_total=0,
        memory_free=0,
        disk_free=None,
        accelerators=() if row.gpu is None else (row.gpu,),
    )


def _minor(version: str | None) -> tuple[str, ...]:
    return tuple((version or "").split("+")[0].split(".")[:2])
