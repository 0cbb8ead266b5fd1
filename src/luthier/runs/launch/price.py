"""What a job will cost: price per hour by its source, hours by prediction, said before anything is sent."""

from __future__ import annotations

from luthier.catalog.index import gpu, gpus, sources
from luthier.errors import Unsupported, UsageError, did_you_mean
from luthier.hub.snapshot import LocalModel
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.resolve import Resolved
from luthier.runs.prepare import check_asked, settle
from luthier.runs.scratch import bring_model
from luthier.schema.base import Range
from luthier.schema.hardware import GpuSpec
from luthier.schema.launch import Cost, LaunchChoice
from luthier.schema.recipe import Recipe


def spec_of(choice: LaunchChoice) -> GpuSpec | None:
    """The catalogue's entry of the job's GPU. Errors: UsageError with the nearest name."""
    if choice.gpu_type is None:
        return None
    found = gpu(choice.gpu_type)
    if found is None:
        known = [alias for one in gpus() for alias in (one.id, *one.aliases)]
        raise UsageError(
            f"--gpu-type {choice.gpu_type} is not in the catalogue",
            hint=did_you_mean(choice.gpu_type, known) or "leave it out, and give --price-per-gpu",
        )
    return found


def cost_of(choice: LaunchChoice, recipe: Recipe, *, price: float | None, hours: float | None) -> Cost:
    """Price an hour and in all. price: US dollars for one GPU and hour; hours: in place of the prediction.

    Errors: UsageError for figures that are none; DoesNotFit where the training would not fit there.
    """
    for name, value in (("--price-per-gpu", price), ("--hours", hours)):
        if value is not None and not 0 <= value < float("inf"):
            raise UsageError(f"{name} {value:g}", hint="use 0 or more")
    spec, said = spec_of(choice), "as given"
    if price is None and spec is not None and spec.price_per_hour is not None:
        price, said = spec.price_per_hour, sources()[spec.priced]
    band, unknown = _hours(choice, recipe, spec)
    if hours is not None:
        band, unknown = Range(low=hours, expected=hours, high=hours), ""
    if price is None:
        lacks = "no price: give --price-per-gpu" + ("" if spec else ", or --gpu-type for a dated list price")
        return Cost(hours=band, unknown="; ".join(filter(None, (lacks, unknown))))
    hourly = price * choice.nodes * max(1, choice.gpus)
    total = None if band is None else _times(band, hourly)
    return Cost(price=price, source=said, hourly=hourly, hours=band, total=total, unknown=unknown)


def _hours(choice: LaunchChoice, recipe: Recipe, spec: GpuSpec | None) -> tuple[Range | None, str]:
    """Hours of training, or why nobody can say."""
    if choice.gpus and spec is None:
        return None, "no prediction of hours: give --gpu-type, or --hours"
    try:
        model = bring_model(recipe, say=lambda _: None, offline=True)
    except (UsageError, Unsupported) as error:
        return None, f"no prediction of hours or memory: {error.message} (luthier get {recipe.model.id})"
    found = _resolved(choice, recipe, spec, model)
    if (seconds := found.estimate.seconds) is None:
        return None, "no prediction of hours for this hardware: give --hours"
    return _times(seconds, 1 / 3600), ""


def _resolved(choice: LaunchChoice, recipe: Recipe, spec: GpuSpec | None, model: LocalModel) -> Resolved:
    words = f"{choice.gpus}x{spec.id}" if spec is not None and choice.gpus else "server"
    if spec is None and choice.memory_gb:
        words = f"server:{choice.memory_gb}GB"
    check_asked(recipe)
    return settle(recipe, model, parse_hardware(words), say=lambda _: None).resolved


def _times(band: Range, factor: float) -> Range:
    return Range(low=band.low * factor, expected=band.expected * factor, high=band.high * factor)
