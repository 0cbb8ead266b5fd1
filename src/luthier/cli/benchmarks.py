"""Public benchmarks of ``luthier evaluate``: words into calls, results into tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.evaluation.benchmarks.judge import Posed
    from luthier.schema.results import Comparison, EvalResult


def judge_benchmarks(
    what: str,
    *,
    names: Sequence[str],
    data: str | None,
    against: str | None,
    model: str | None,
    gguf: str | None,
    shots: int | None,
    run_code: bool,
    max_rows: int | None,
    longest: int | None,
    chat: bool,
    json: bool,
) -> list[Comparison]:
    """Judge one model, or two against each other, on each benchmark, and show what came of it."""
    from luthier.cli import story
    from luthier.cli.console import err, print_json
    from luthier.evaluation.compare import compare
    from luthier.runs.benchmarks import CODE_WARNING, base_of, benchmarks_named, prepare

    tasks = benchmarks_named(names, run_code=run_code)
    posed = [prepare(task, data, max_rows=max_rows, shots=shots) for task in tasks]
    for one in posed:
        err().print(_told(one), style="dim", highlight=False)
    if any(task.kind == "code" for task in tasks):
        from luthier.evaluation.sandbox import how_held

        err().print(f"warning: {CODE_WARNING} ({how_held()})", style="yellow", highlight=False)
    if against is None and model is None and gguf is None:
        against = base_of(what)
    targets = [*([against] if against else []), what]
    results = [
        _judged(
            target,
            posed,
            model=model if target.startswith("http") else None,
            gguf=gguf if target == what else None,
            longest=longest,
            chat=chat,
        )
        for target in targets
    ]
    comparisons = [compare(*pair) for pair in zip(*results, strict=True)] if len(results) == 2 else []
    if json:
        print_json(
            {
                "results": [one.model_dump(mode="json") for part in results for one in part],
                "comparisons": [c.model_dump(mode="json") for c in comparisons],
            }
        )
        return comparisons
    for part in results:
        for result in part:
            story.show_result(result)
    if comparisons:
        story.show_comparisons(comparisons)
    return comparisons


def _told(posed: Posed) -> str:
    task = posed.benchmark
    shown = max((len(found) for found in posed.examples.values()), default=0)
    words = f"{task.title} ({task.source}): {len(posed.rows):,} rows, {shown} examples each"
    if shown < task.shots:
        words += f" (usual: {task.shots})"
    if posed.left_out:
        words += f", {posed.left_out} rows left out that have no choices"
    return words


def _judged(
    what: str,
    posed: Sequence[Posed],
    *,
    model: str | None,
    gguf: str | None,
    longest: int | None,
    chat: bool,
) -> list[EvalResult]:
    from luthier.cli.console import err, row_bar
    from luthier.runs.benchmarks import judge_benchmark
    from luthier.runs.judging import answering

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False)

    found = []
    # A server is started once, with room for the longest answer of all.
    room = longest or max(one.benchmark.longest for one in posed)
    with answering(what, model=model, gguf=gguf, longest=room, say=say) as generator:
        for one in posed:
            with row_bar(f"{generator.label} on {one.benchmark.name}") as progress:
                found.append(
                    judge_benchmark(generator, one, max_new_tokens=longest, chat=chat, progress=progress)
                )
    return found
