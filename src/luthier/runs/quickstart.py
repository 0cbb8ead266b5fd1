"""The quickstart: a request answered for this machine, its data written, its recipe ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.data.quickstart import write_quickstart
from luthier.errors import DoesNotFit
from luthier.files import write_text
from luthier.planning.audit import audit
from luthier.planning.recommend import recommend
from luthier.runs.directory import runs_root
from luthier.runs.model import embedded_revision
from luthier.schema.hardware import Hardware
from luthier.schema.load import dump_recipe
from luthier.schema.plan import Plan
from luthier.schema.recipe import (
    DataChoice,
    EvaluationChoice,
    ExportChoice,
    Lora,
    ModelChoice,
    Recipe,
    TrainingChoice,
)
from luthier.schema.request import Request

QUICKSTART_ID = "quickstart"
"""The run's name: one run that is gone on with, not a new one each time."""

REQUEST = Request(
    purpose="chat",
    goal="behaviour",
    stage="first-run",
    licence=("apache-2.0",),
    features=("json",),
    languages=("en",),
    rows=560,
    epochs=1,
    sequence_length=128,
    gguf=True,
    offline=True,
)
"""Orders in free text to strict JSON, under Apache-2.0, with weights that come without the Hub."""


@dataclass(frozen=True)
class Advice:
    """What this machine has and what is recommended for it."""

    hardware: Hardware
    plan: Plan
    """Among the models whose weights come without the Hub."""
    wider: Plan
    """Among all models: what the same request would get where the Hub is there."""

    @property
    def allows(self) -> str:
        """One sentence on what can be trained here."""
        if self.hardware.accelerators:
            gpu = max(self.hardware.accelerators, key=lambda g: g.memory_free)
            where = f"on {gpu.name} with {gpu.memory_free / 2**30:.0f} GiB free"
        else:
            where = f"on {self.hardware.processor.cores} CPU cores: small models, no GPU needed"
        return f"training {where}"


def advise() -> Advice:
    """Audit this machine and recommend from what comes without the Hub."""
    hardware = audit(runs_root())
    wider = REQUEST.model_copy(update={"offline": False})
    return Advice(hardware, recommend(REQUEST, hardware, most=3), recommend(wider, hardware, most=3))


def write_recipe(folder: Path, advice: Advice) -> Path:
    """Write the data and the recipe of the recommended pair, to be read, changed and run again.

    Errors: DoesNotFit where nothing that comes without the Hub fits this machine.
    """
    if not advice.plan.candidates:
        why = "; ".join(r.reason for r in advice.plan.rejected[:3])
        raise DoesNotFit(
            f"no model that comes without the Hub fits this machine: {why}",
            hint="see `luthier recommend` for what would, and on which hardware",
        )
    best = advice.plan.candidates[0]
    assert best.card.embedded is not None, "only such models were asked for"
    paths = write_quickstart(folder / "data")
    recipe = Recipe(
        name=QUICKSTART_ID,
        task="chat",
        model=ModelChoice(id=best.weights, revision=embedded_revision(best.card.embedded)),
        method=Lora(rank=16, alpha=32),
        data=DataChoice(
            train=(str(paths["train"].resolve()),),
            validation=(str(paths["validation"].resolve()),),
            test={name: (str(paths[name].resolve()),) for name in ("test", "test_rephrased")},
            max_rows=560,
        ),
        training=TrainingChoice(
            epochs=1, learning_rate=2e-3, batch_size=8, sequence_length=128, evaluate_every=14
        ),
        evaluation=EvaluationChoice(max_new_tokens=64, floor_rows=32),
        export=ExportChoice(gguf=("F16", "Q8_0", "Q4_K_M"), quality_rows=32),
    )
    path = folder / "recipe.yaml"
    write_text(path, dump_recipe(recipe))
    return path
