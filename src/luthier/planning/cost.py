"""What a training costs: the price of the hardware in words, or the one that was given."""

from __future__ import annotations

from luthier.catalog.index import gpu, sources
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate
from luthier.schema.hardware import Hardware


def priced(estimate: Estimate, machine: Hardware, price: float | None) -> tuple[Estimate, str]:
    """The estimate with its cost, and where the price is from; without where none is known.

    price: US dollars an hour for each GPU (for the machine, where it has none). One that stands here has
    no price but the one given: nobody rents it.
    """
    said = "as given"
    if price is None and machine.hypothetical and machine.accelerators:
        spec = gpu(machine.accelerators[0].name)
        if spec is not None and spec.price_per_hour is not None:
            price, said = spec.price_per_hour, sources()[spec.priced]
    if price is None or estimate.seconds is None:
        return estimate, ""
    count = max(1, len(machine.accelerators))
    band = {name: value * count * price / 3600 for name, value in estimate.seconds.model_dump().items()}
    words = f"${price:.2f} an hour, {said}"
    if count > 1:
        words = f"${count * price:.2f} an hour (${price:.2f} a GPU, {said})"
    return estimate.model_copy(update={"cost": Range(**band)}), words
