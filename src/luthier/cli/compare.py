"""``luthier compare``: several runs judged on the same rows, ranked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from luthier.cli.judge import NOBODY, Judging
from luthier.errors import UsageError

if TYPE_CHECKING:
    from luthier.evaluation.ranking import Ranked
    from luthier.evaluation.seeds import Seeded
    from luthier.runs.directory import RunDirectory
    from luthier.schema.results import EvalResult

Flag = Annotated[bool, Parameter(negative="")]


def compare(
    *runs: str, split: str | None = None, base: Flag = False, judging: Judging = NOBODY, json: Flag = False
) -> None:
    """Rank runs that were judged on the same held-out rows: score, distance to the best, time, memory.

    Runs of one recipe that differ in their seed alone count as one, whose interval holds the noise of seeds
    too.

    Parameters
    ----------
    runs
        Two or more runs (id, beginning of one, path) or registered versions.
    split
        Held-out split; the first that all have when not given.
    base
        Rank the untouched base model of the first run among them.
    judging
        With --judge: a model reads the answers of two runs instead.
    json
        Print one JSON object.
    """
    from luthier.cli.console import print_json
    from luthier.evaluation.ranking import rank
    from luthier.evaluation.seeds import rank_seeds
    from luthier.runs.registry import resolve
    from luthier.runs.seeds import by_recipe
    from luthier.runs.stages import load_results

    if len(runs) < 2:
        raise UsageError("one run alone cannot be ranked", hint="name two or more: luthier compare RUN RUN")
    found = {run.id: run for run in map(resolve, runs)}
    results = {name: load_results(run, "tuned") for name, run in found.items()}
    for name, judged in results.items():
        if not judged:
            raise UsageError(f"{name} was not judged on held-out rows", hint=f"luthier evaluate {name}")
    common = [s for s in next(iter(results.values())) if all(s in judged for judged in results.values())]
    if split is not None and split not in common:
        raise UsageError(f"not all of them have a split {split!r}", hint=f"they share: {', '.join(common)}")
    if not common:
        raise UsageError("the runs share no held-out split", hint="judge them on one file: --data")
    chosen = split or common[0]
    columns = {name: judged[chosen] for name, judged in results.items()}
    if base:
        first = next(iter(found.values()))
        columns = {f"base of {first.id}": load_results(first, "baseline")[chosen], **columns}
    if judging.judge is not None:
        _judged(judging, chosen, columns, list(found.values()), json=json)
        return
    groups = by_recipe(found)
    if any(len(names) > 1 for names in groups.values()):
        told = {name: [columns[one] for one in names] for name, names in groups.items()}
        if base or len(groups) == 1:
            first = next(iter(found.values()))
            told = {f"base of {first.id}": [load_results(first, "baseline")[chosen]], **told}
        placed = rank_seeds(told)
        if json:
            ranking = [one.model_dump(mode="json") for one in placed]
            print_json({"split": chosen, "seeds": groups, "ranking": ranking})
        else:
            _print_seeds(chosen, placed, groups)
        return
    ranked = rank(columns)
    if json:
        print_json({"split": chosen, "ranking": [one.model_dump(mode="json") for one in ranked]})
    else:
        _print(chosen, ranked, found)


def _judged(
    judging: Judging, split: str, columns: dict[str, EvalResult], runs: list[RunDirectory], *, json: bool
) -> None:
    """Two columns read by a judge; what it said is kept in the last run's folder."""
    from luthier.cli.judge import run_judge, show_judgement
    from luthier.runs.judgements import demand_answers

    if len(columns) != 2:
        raise UsageError(f"a judge compares two, and {len(columns)} are named", hint="name two runs")
    for run in runs:
        demand_answers(run)
    (first, one), (second, other) = columns.items()
    found = run_judge(judging, one, other, names=(first, second), run=runs[-1], split=split)
    show_judgement(found, json=json)


def _print(split: str, ranked: list[Ranked], runs: dict[str, RunDirectory]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from luthier.cli.console import duration, memory, out
    from luthier.cli.story import VERDICTS, columns, delta_words, score_words
    from luthier.schema.results import TrainResult

    metric = ranked[0].metric
    out().print(f"{metric} on {ranked[0].score.n} rows of {split}, best first", highlight=False)
    table = columns("", "score", "to the best [95 % interval]", "", "training", "memory", numbers=(1, 4, 5))
    for one in ranked:
        trained = runs[one.name].stage("train", TrainResult) if one.name in runs else None
        gap, verdict = "", Text("best", style="green")
        if one.difference is not None:
            words, _ = VERDICTS[one.difference.verdict]
            gap, verdict = delta_words(one.difference), Text(words)
        table.add_row(
            one.name,
            score_words(one.score),
            gap,
            verdict,
            duration(trained.seconds) if trained else "",
            memory(trained.peak_memory) if trained else "",
        )
    out().print(Padding(table, (0, 0, 0, 2)))
    tied = [one.name for one in ranked if one.difference and one.difference.verdict == "inconclusive"]
    if tied:
        out().print(f"  cannot be told from the best on these rows: {', '.join(tied)}", highlight=False)


def _print_seeds(split: str, placed: list[Seeded], groups: dict[str, list[str]]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from luthier.cli.console import out
    from luthier.cli.story import VERDICTS, columns, delta_words, score_words

    def share(value: float, one: Seeded) -> str:
        return score_words(one.score.model_copy(update={"value": value}))

    first = placed[0]
    what = f"{first.metric} on {first.score.n} rows of {split}, mean over seeds, best first"
    out().print(what, highlight=False)
    table = columns("", "seeds", "mean", "worst, best seed", "to the best", "", numbers=(1, 2, 3), gap=1)
    for one in placed:
        verdict = Text("best", style="green")
        if one.difference is not None:
            verdict = Text(VERDICTS[one.difference.verdict][0])
        table.add_row(
            one.name,
            str(one.seeds),
            score_words(one.score),
            "" if one.seeds == 1 else f"{share(one.lowest, one)}, {share(one.highest, one)}",
            "" if one.difference is None else delta_words(one.difference, unit=""),
            verdict,
        )
    out().print(Padding(table, (0, 0, 0, 2)))
    for name, runs in groups.items():
        if len(runs) > 1:
            out().print(f"  {name}: {', '.join(runs)}", style="dim", highlight=False, soft_wrap=True)
    alone = [one.name for one in placed if one.seeds == 1 and one.name in groups]
    if alone:
        out().print(
            f"  one seed alone, so that noise is in no interval: {', '.join(alone)}",
            highlight=False,
            soft_wrap=True,
        )
    if any(one.seeds == 2 for one in placed):
        out().print("  two seeds say little of their spread: three or more narrow the interval")
