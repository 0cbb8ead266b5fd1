"""What a run broke: the general-ability probe on the untouched model and on the tuned one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.catalog.purposes import spec_of
from luthier.evaluation.compare import compare
from luthier.evaluation.conduct import judge_conduct
from luthier.evaluation.probe import judge_probe
from luthier.hub.cache import room
from luthier.runs.directory import RunDirectory
from luthier.schema.results import Comparison, EvalResult
from luthier.schema.run import Stage

if TYPE_CHECKING:
    from luthier.runs.workflow import Work

BASELINE, TUNED, COMPARED = "probe_baseline", "probe_tuned", "probe"
"""Stage files of a run."""
SHORTEST = 512
"""Tokens of context below which a model is not asked everyday requests."""


def probed(work: Work) -> bool:
    """Whether the run's purpose is one of models that write text, and the recipe asks for the probe."""
    if work.recipe.vision is not None:
        return False  # its questions are of text, and its scorer is one of models of text
    return work.recipe.evaluation.probe_rows > 0 and spec_of(work.recipe.task).rows == "chats"


def probe_base(work: Work) -> None:
    """The untouched model on the probe, before training."""
    _judge(work, tuned=False)


def probe_tuned(work: Work, inputs: str) -> list[Comparison]:
    """The tuned model on the probe, and what changed. Nothing where the base was not probed."""
    before = load_probe(work.run, BASELINE, work.judged)
    if not before:
        return []
    after = _judge(work, tuned=True)
    found = [compare(before[name], after[name]) for name in before]
    work.run.save_stage(COMPARED, inputs, [one.model_dump(mode="json") for one in found])
    return found


def _judge(work: Work, *, tuned: bool) -> dict[str, EvalResult]:
    from luthier.models.score import scorer_of
    from luthier.tasks.chat import ChatTask

    task = work.task
    assert isinstance(task, ChatTask)
    generator = task.tuned_generator(work.run.path) if tuned else task.base_generator()
    stage: Stage = "prove" if tuned else "baseline"
    found = judge_probe(
        scorer_of(generator, work.tokenizer),
        work.recipe.evaluation.probe_rows,
        progress=work.board.progress(stage, f"{generator.label} on general ability"),
        cache_dir=room("answers"),
    )
    # A model without a chat template was never asked anything, and a very short context holds no answer.
    if work.tokenizer.has_chat_template and (generator.context or SHORTEST) >= SHORTEST:
        found |= judge_conduct(
            generator,
            progress=work.board.progress(stage, f"{generator.label} on everyday requests"),
            cache_dir=room("answers"),
        )
    values = {name: result.model_dump(mode="json") for name, result in found.items()}
    work.run.save_stage(TUNED if tuned else BASELINE, work.judged, values)
    return found


def load_probe(run: RunDirectory, name: str, inputs: str | None = None) -> dict[str, EvalResult]:
    """One model's results on the probe by split; empty where it was not asked."""
    values = run.stage_values(name, inputs) or {}
    return {split: EvalResult.model_validate(result) for split, result in values.items()}


def load_abilities(run: RunDirectory) -> list[Comparison]:
    """The probe before and after; empty where it was not asked."""
    return [Comparison.model_validate(one) for one in run.stage_values(COMPARED) or []]
