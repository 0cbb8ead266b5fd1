"""A recipe for one machine while its open values are derived: what is given, what is derived, and why."""

from __future__ import annotations

from typing import Any

from luthier.catalog.purposes import spec_of
from luthier.planning.correction import Corrections
from luthier.planning.estimate import Device, device_of
from luthier.planning.solver import Question
from luthier.schema.data_profile import LengthProfile
from luthier.schema.hardware import Hardware
from luthier.schema.model import Architecture
from luthier.schema.recipe import Parallel, Recipe
from luthier.sizing.vision import with_tower


class Case:
    """Derived values and their sources; each step of `planning.resolve` reads what the ones before it set."""

    def __init__(
        self,
        recipe: Recipe,
        arch: Architecture,
        hardware: Hardware,
        profile: LengthProfile,
        rates: dict[str, float],
        *,
        corrections: Corrections | None,
    ) -> None:
        self.spec = spec_of(recipe.task)
        if self.spec.answers != "chat":
            # A head over labels or scores stands in for the one over the vocabulary.
            arch = arch.model_copy(update={"head": False, "tied_embeddings": False})
        if recipe.vision is not None:
            arch = with_tower(arch, recipe.vision)
        self.given, self.arch, self.hardware, self.profile = recipe, arch, hardware, profile
        self.rates, self.corrections = rates, corrections
        self.device: Device = device_of(hardware)
        self.devices = recipe.training.devices
        apart = recipe.training.parallel or Parallel()
        self.shares = self.devices // (apart.tensor * apart.context * apart.pipeline * apart.expert)
        """Into how many parts the rows of a step are shared out."""
        self.sources = dict(recipe.sources)
        self.values: dict[str, Any] = {}
        self.warnings: list[str] = []

    def value(self, key: str) -> Any:
        """The recipe's own value, or the derived one."""
        if key in self.values:
            return self.values[key]
        found: Any = self.given
        for part in key.split("."):
            found = getattr(found, part)
        return found

    def derive(self, key: str, value: Any, source: str) -> Any:
        """Set a value that the recipe leaves open; one that it gives stays."""
        if self.value(key) is None:
            self.values[key] = value
            self.sources[key] = source
        return self.value(key)

    def question(self, tokens: int) -> Question:
        """What is asked of the solver. tokens: of the whole run."""
        dtype = str(self.value("model.dtype"))
        return Question(
            self.arch,
            self.given.method,
            self.hardware,
            self.device,
            dtype,
            tokens=tokens,
            matrix_rate=self.rates.get(dtype),
            corrections=self.corrections,
            processes=self.devices // self.given.training.nodes,
        )
