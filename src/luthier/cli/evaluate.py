"""``luthier evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from luthier.cli.judge import NOBODY, Judging
from luthier.errors import LuthierError, UsageError

if TYPE_CHECKING:
    from luthier.evaluation.own import OwnMetric
    from luthier.runs.directory import RunDirectory
    from luthier.schema.judgement import Judgement
    from luthier.schema.protocols import ChatRow
    from luthier.schema.results import Comparison, EvalResult

Flag = Annotated[bool, Parameter(negative="")]
LONGEST = 256
"""New tokens of an answer where nobody says how many."""


def evaluate(
    what: str,
    /,
    *,
    data: tuple[Path, ...] = (),
    against: str | None = None,
    beside: tuple[str, ...] = (),
    name: str | None = None,
    model: str | None = None,
    gguf: str | None = None,
    metrics: tuple[str, ...] = (),
    benchmark: tuple[str, ...] = (),
    benchmark_data: str | None = None,
    shots: int | None = None,
    run_code: Flag = False,
    max_rows: int | None = None,
    max_new_tokens: int | None = None,
    as_chat: Flag = False,
    min_delta: float | None = None,
    no_regression: Flag = False,
    judging: Judging = NOBODY,
    json: Flag = False,
) -> int:
    """Judge models on the same rows: scores, difference with interval, verdict.

    A run alone: its base against its tuned model, on its own test splits or on --data. Anything else
    that answers chats (a model of the catalogue or the Hub, a folder, a .gguf file, an address such as
    http://localhost:8000/v1) is judged on --data, and compared with --against.

    Parameters
    ----------
    what
        A run (id, beginning of one, path, latest), a registered version, a model, a folder, a .gguf
        file, or the address of an OpenAI-compatible endpoint (its key in OPENAI_API_KEY).
    data
        Rows to judge on (one or more files).
    against
        What it is compared with, named in the same way: the baseline of the comparison.
    beside
        For a run on its own splits: something more that answers the same rows and is kept for the report,
        named as above; may be given again.
    name
        What the split of --data is called; the first file's name when not given.
    model
        Which model of an endpoint answers; the only one when not given.
    gguf
        Which of a run's GGUF files answers, instead of the trained model.
    metrics
        Metrics by name, the first one primary; chosen from the rows when not given. FILE.py:FUNCTION is a
        metric of your own, run here: function(expected, answer) gives a row's score, more is better.
    benchmark
        Public benchmarks in place of --data: mmlu, arc, arc_easy, hellaswag, truthfulqa, boolq, gsm8k,
        humaneval, mbpp, bfcl (several with commas). A run is judged against its base model.
    benchmark_data
        Folder with the benchmarks' files, a file, hub:NAME[CONFIG]/SPLIT, or hub for the usual data set.
    shots
        Examples before each question of a benchmark; each has its usual number.
    run_code
        Let benchmarks run the code that the model writes, in a sandbox.
    max_rows
        Judge no more rows than this, chosen by seed.
    max_new_tokens
        Longest answer in tokens: 256, and what is usual for a benchmark.
    as_chat
        Ask gsm8k, humaneval and mbpp through the chat template, not as plain text.
    min_delta
        Leave with exit code 5 unless the primary metric of every split gains at least this much, and
        the gain is beyond doubt, for use in CI.
    no_regression
        Leave with exit code 5 where any metric of any split is worse beyond doubt; for a run on its own
        splits also where the tuning broke something beside its task.
    judging
        With --judge: a model also reads both sides' answers, in both orders.
    json
        Print one JSON object.
    """
    if judging.judge is not None and benchmark:
        raise UsageError("benchmarks have their own answers", hint="use --judge with rows of your own")
    if benchmark:
        from luthier.cli.benchmarks import judge_benchmarks

        found = judge_benchmarks(
            what,
            names=benchmark,
            data=benchmark_data,
            against=against,
            model=model,
            gguf=gguf,
            shots=shots,
            run_code=run_code,
            max_rows=max_rows,
            longest=max_new_tokens,
            chat=as_chat,
            json=json,
        )
        return _gated(found, min_delta, no_regression=no_regression)
    from luthier.evaluation.own import is_own, load_own, with_own

    own = [load_own(words) for words in metrics if is_own(words)]
    known = tuple(words for words in metrics if not is_own(words))
    alone = not (against or gguf or _no_run(what)) and (model is None or bool(beside))
    run = _run(what) if alone else None
    if beside and run is None:
        raise UsageError("--beside goes with a run", hint="compare two things: --against WHAT --data FILE")
    if run is not None:
        if known:
            raise UsageError(
                f"{run.id} keeps the metrics that its recipe names",
                hint="set evaluation.metrics there, or name one of your own: --metrics FILE.py:FUNCTION",
            )
        if beside and data:
            raise UsageError(
                "--beside answers the run's own rows", hint="name it alone: --against WHAT --data F"
            )
        code, comparisons = _run_comparisons(run, data, name, judging, own, json=json)
        if code != 0:
            return code
        for other in beside:
            _column(run, other, model=model if other.startswith("http") else None, json=json)
    else:
        if not data:
            raise UsageError("no rows to judge on", hint="name a file: --data rows.jsonl")
        if judging.judge is not None and against is None:
            raise UsageError("a judge compares two", hint="name the other one: --against MODEL")
        label = name or data[0].name.split(".")[0]
        files = [str(path.expanduser()) for path in data]
        from luthier.runs.judging import read_rows

        rows = read_rows(files, most=max_rows)
        results: list[EvalResult] = []
        for target in [*([against] if against else []), what]:
            first = results[0] if results else None
            results.append(
                _judged(
                    target,
                    rows,
                    split=label,
                    model=model if target.startswith("http") else None,
                    gguf=gguf if target == what else None,
                    metrics=tuple(first.metrics) if first else known,
                    longest=max_new_tokens or LONGEST,
                )
            )
        judgement = None if judging.judge is None else _judge_pair(judging, rows, results)
        results = [with_own(result, own) for result in results]
        comparisons = _shown(results, judgement, json=json)
    whole = None if data else run
    return _gated(comparisons, min_delta, no_regression=no_regression, run=whole)


def _column(run: RunDirectory, what: str, *, model: str | None, json: bool) -> None:
    """Something more on a run's own rows, shown beside the tuned model and kept for the report."""
    from luthier.cli import story
    from luthier.cli.console import err, out, row_bar
    from luthier.runs.columns import add_column

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False)

    with row_bar(what) as progress:
        found = add_column(run, what, model=model, say=say, progress=progress)
    if not json:
        out().print(f"the tuned model against {what}", highlight=False, soft_wrap=True)
        story.show_comparisons([found])


def _gated(
    comparisons: Sequence[Comparison],
    min_delta: float | None,
    *,
    no_regression: bool,
    run: RunDirectory | None = None,
) -> int:
    """Errors: GateMissed. run: whose losses beside the task count as regressions too."""
    if min_delta is not None or no_regression:
        from luthier.evaluation.floors import check_gate
        from luthier.evaluation.probe import broken
        from luthier.runs.abilities import load_abilities

        lost = [] if run is None else broken(load_abilities(run))
        check_gate(comparisons, min_delta=min_delta, no_regression=no_regression, lost=lost)
    return 0


def _no_run(what: str) -> bool:
    """Whether a name can only mean something else than a run."""
    path = Path(what).expanduser()
    return "://" in what or path.suffix == ".gguf" or (path / "config.json").is_file()


def _run(what: str) -> RunDirectory | None:
    from luthier.runs.registry import resolve

    try:
        return resolve(what)
    except UsageError:
        if "/" in what:  # a model of the Hub
            return None
        from luthier.catalog.index import model_card

        try:
            model_card(what)
        except LuthierError:
            pass
        else:
            return None
        raise


def _run_comparisons(
    run: RunDirectory,
    data: Sequence[Path],
    name: str | None,
    judging: Judging,
    own: Sequence[OwnMetric],
    *,
    json: bool,
) -> tuple[int, Sequence[Comparison]]:
    """Base against tuned model of a run, on its own splits or on other rows."""
    from luthier.cli import story
    from luthier.cli.attend import attend
    from luthier.cli.console import print_json
    from luthier.cli.judge import show_judgement
    from luthier.runs.stages import load_comparisons, load_extra, load_floors
    from luthier.schema.run import Job

    comparisons: Sequence[Comparison]
    if data:
        label = name or data[0].name.split(".")[0]
        files = tuple(str(path.expanduser().resolve()) for path in data)
        code = attend(run, Job(kind="evaluate", data=files, name=label), quiet=True)
        if code != 0:
            return code, ()
        comparisons = [load_extra(run, label)]
    else:
        comparisons = load_comparisons(run)
        code = 0 if comparisons else attend(run, quiet=True)
        comparisons = comparisons or load_comparisons(run)
    if code == 0:
        if own:
            comparisons = _by_own(run, [c.split for c in comparisons], own, kept=bool(data))
        judgement = None
        if judging.judge is not None and comparisons:
            judgement = _judge_run(judging, run, comparisons[0].split, data)
        if json:
            told = {"run": run.id, "comparisons": [c.model_dump(mode="json") for c in comparisons]}
            print_json(told | _values(judgement))
        else:
            story.show_comparisons(comparisons, () if data else load_floors(run))
            if judgement is not None:
                show_judgement(judgement, json=False)
    return code, comparisons


def _by_own(
    run: RunDirectory, splits: Sequence[str], own: Sequence[OwnMetric], *, kept: bool
) -> list[Comparison]:
    """The answers that a run has kept, compared by metrics of a person's own. kept: those to --data."""
    from luthier.evaluation.compare import compare
    from luthier.evaluation.own import with_own
    from luthier.runs.judgements import demand_answers

    demand_answers(run)
    pairs = [_answers(run, split, kept=kept) for split in splits]
    return [compare(with_own(before, own), with_own(after, own)) for before, after in pairs]


def _answers(run: RunDirectory, split: str, *, kept: bool) -> tuple[EvalResult, EvalResult]:
    """What base and tuned model of a run answered. kept: to the rows of --data, not to its own splits."""
    from luthier.runs.stages import load_results
    from luthier.schema.results import EvalResult

    if not kept:
        return load_results(run, "baseline")[split], load_results(run, "tuned")[split]
    found = run.stage_values(f"evaluations/{split}") or {}
    before, after = (EvalResult.model_validate(found[side]) for side in ("baseline", "tuned"))
    return before, after


def _values(judgement: Judgement | None) -> dict[str, Any]:
    return {} if judgement is None else {"judgement": judgement.model_dump(mode="json")}


def _judge_run(judging: Judging, run: RunDirectory, split: str, data: Sequence[Path]) -> Judgement:
    """A judge reads base and tuned answers of a run."""
    from luthier.cli.judge import run_judge
    from luthier.runs.judgements import chats_of_rows, demand_answers
    from luthier.runs.prepare import read_tests

    demand_answers(run)
    chats = None
    first, second = _answers(run, split, kept=bool(data))
    if data:
        files = tuple(str(path.expanduser().resolve()) for path in data)
        chats = chats_of_rows(read_tests({split: files}, run.recipe)[split])
    return run_judge(judging, first, second, names=("base", run.id), run=run, split=split, chats=chats)


def _judge_pair(judging: Judging, rows: Sequence[ChatRow], results: Sequence[EvalResult]) -> Judgement:
    """A judge reads the answers of two models to a file's rows."""
    from luthier.cli.judge import run_judge
    from luthier.runs.judgements import chats_of_rows

    first, second = results
    names, chats = (first.model, second.model), chats_of_rows(rows)
    return run_judge(judging, first, second, names=names, chats=chats, split=first.split)


def _judged(
    what: str,
    rows: Sequence[ChatRow],
    *,
    split: str,
    model: str | None,
    gguf: str | None,
    metrics: tuple[str, ...],
    longest: int,
) -> EvalResult:
    from luthier.cli.console import err, row_bar
    from luthier.runs.judging import answering, judge

    def say(words: str) -> None:
        err().print(words, style="dim", highlight=False)

    with (
        answering(what, model=model, gguf=gguf, longest=longest, say=say) as generator,
        row_bar(f"{generator.label} on {split}") as progress,
    ):
        return judge(
            generator, rows, split=split, metrics=metrics or None, longest=longest, progress=progress
        )


def _shown(results: Sequence[EvalResult], judgement: Judgement | None, *, json: bool) -> list[Comparison]:
    """Scores of one model, or two compared."""
    from luthier.cli import story
    from luthier.cli.console import print_json
    from luthier.cli.judge import show_judgement
    from luthier.evaluation.compare import compare

    comparisons = [compare(results[0], results[1])] if len(results) == 2 else []
    if json:
        print_json(
            {
                "results": [result.model_dump(mode="json") for result in results],
                "comparisons": [c.model_dump(mode="json") for c in comparisons],
                **_values(judgement),
            }
        )
        return comparisons
    for result in results:
        story.show_result(result)
    if comparisons:
        story.show_comparisons(comparisons)
    if judgement is not None:
        show_judgement(judgement, json=False)
    return comparisons
