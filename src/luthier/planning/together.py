"""What several devices can train together, decided before anything loads."""

from __future__ import annotations

from luthier.errors import Unsupported, UsageError
from luthier.planning.division import ALONG, ELEMENTWISE
from luthier.planning.estimate import Device
from luthier.schema.hardware import Hardware
from luthier.schema.recipe import Full, Lora, Recipe


def check_devices(recipe: Recipe, hardware: Hardware, device: Device) -> None:
    """Refuse devices that are not there, or that cannot share this training, with the reason.

    Errors: UsageError, Unsupported.
    """
    asked, sizes = recipe.training.devices, recipe.training.parallel
    if sizes is not None and sizes.reshard is not None:
        along = any(getattr(sizes, name) > 1 for name in ALONG)
        if along or sizes.shard == 1 or asked == (sizes.replicate or 1):
            raise Unsupported(
                "training.parallel.reshard: only weights that shard divides are gathered",
                hint="leave reshard out, or say how many devices hold one model (training.parallel.shard)",
            )
    if asked == 1:
        return
    alone = "leave training.devices at 1"
    if sizes is not None:
        divides = sizes.sizes(asked)["shard"] > 1 or sizes.reshard is not None
        why = why_not_divided(recipe) if divides else None
        if why is not None:
            raise Unsupported(
                f"training.parallel.shard: {why}",
                hint="leave training.parallel out: each device then holds the whole model",
            )
    if recipe.task == "similarity":
        raise Unsupported(
            "similarity compares all texts of a batch with each other: they are on one device",
            hint=f"{alone}; training.micro_batch_size holds large batches there with the same loss",
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


def why_whole_for(task: str) -> str | None:
    """Why a task's weights cannot be divided over devices whatever the recipe, or None."""
    if task in ("chat", "text-generation"):
        return None
    return f"{task} is decided with the whole model once it is trained"


def why_not_divided(recipe: Recipe) -> str | None:
    """Why the weights of this training cannot be divided over devices, or None."""
    training, method = recipe.training, recipe.method
    if (why := why_whole_for(recipe.task)) is not None:
        return why
    if recipe.preference is not None:
        return "pairs of answers are weighed against a model that one device holds"
    if recipe.model.new_tokens:
        return "rows of new tokens are not divided over devices"
    if recipe.vision is not None:
        return "a model that sees is trained with the whole of it on each device"
    if isinstance(method, Lora) and method.base == "float8":
        return "weights in float8 lie by columns too, which cannot be divided (method.name: qlora can)"
    if isinstance(method, Full) and method.products is not None:
        return "products in eight bits are done with whole weights (leave method.products out)"
    if training.optimizer not in ELEMENTWISE:
        return f"{training.optimizer} looks at whole weights ({', '.join(ELEMENTWISE)} do not)"
    if training.update_in_backward:
        return "an update in the backward pass comes before the gradients of all devices are added up"
    if training.ema is not None:
        return "an average of the weights is kept where one device holds them all"
    return None
