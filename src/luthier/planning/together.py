"""What several devices can train together, decided before anything loads."""

from __future__ import annotations

from luthier.errors import Unsupported, UsageError
from luthier.planning.estimate import Device
from luthier.schema.hardware import Hardware
from luthier.schema.recipe import Lora, Recipe


def check_devices(recipe: Recipe, hardware: Hardware, device: Device) -> None:
    """Refuse devices that are not there, or that cannot share this training, with the reason.

    Errors: UsageError, Unsupported.
    """
    asked, sizes = recipe.training.devices, recipe.training.parallel
    if asked == 1:
        return
    alone = "leave training.devices at 1"
    if sizes is not None:
        _refuse_sizes(sizes.sizes(asked))
    if recipe.task == "similarity":
        raise Unsupported(
            "similarity compares all texts of a batch with each other: they are on one device",
            hint=f"{alone}; similarity.loss in chunks holds large batches there",
        )
    method = recipe.method
    if recipe.preference is not None and (not isinstance(method, Lora) or method.init_from is not None):
        raise Unsupported(
            "the reference of a preference tuning that changes its own base is weighed on one device",
            hint=f"method.name: lora, or {alone}",
        )
    here = ""
    if (nodes := recipe.training.nodes) > 1:
        asked, here = asked // nodes, f" on each of {nodes} machines"
    if device == "cuda":
        names = [one.name for one in hardware.accelerators]
        if asked > len(names):
            raise UsageError(
                f"training.devices {asked}{here}: this machine has {len(names)} ({', '.join(names)})",
                hint=f"use --gpus {len(names)}, or the machine that has {asked}",
            )
        if len(set(names[:asked])) > 1:
            raise Unsupported(
                f"GPUs of different kinds wait for the slowest one: {', '.join(names[:asked])}",
                hint="CUDA_VISIBLE_DEVICES picks those of one kind",
            )
    elif device == "cpu":
        cores = hardware.processor.cores
        if asked > cores:
            raise UsageError(
                f"training.devices {asked}{here}: this machine has {cores} cores",
                hint=f"use at most {cores}",
            )
    else:
        raise Unsupported(f"several processes share no {device} device", hint=alone)


def _refuse_sizes(sizes: dict[str, int]) -> None:
    for name in ("shard", "tensor", "context", "pipeline", "expert"):
        if sizes[name] > 1:
            raise Unsupported(
                f"training.parallel.{name} {sizes[name]}: devices share a training by replicate alone",
                hint=f"leave training.parallel.{name} at 1",
            )
