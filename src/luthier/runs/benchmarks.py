"""Public benchmarks on a model, a run, a folder or an endpoint: rows found, asked and scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.data.read import read_rows as read_raw
from luthier.data.splits import choose_places
from luthier.errors import FileProblem, Unsupported, UsageError
from luthier.evaluation.benchmarks.judge import Posed, Read, judge_by_answer, judge_by_likelihood, pose
from luthier.evaluation.benchmarks.judge import read_rows as read_benchmark
from luthier.evaluation.benchmarks.tasks import Benchmark, benchmark
from luthier.hub.cache import room
from luthier.llamacpp.runtime import GgufGenerator
from luthier.runs import registry
from luthier.runs.speaker import Speaker
from luthier.schema.protocols import Generator, Progress, Scorer
from luthier.schema.results import EvalResult
from luthier.serving.endpoint import Endpoint

HUB = "hub"
CODE_WARNING = (
    "code that the model writes is run on this machine: without network, files, processes and time to "
    "speak of, but no sandbox is beyond doubt"
)


def benchmarks_named(names: Sequence[str], *, run_code: bool) -> list[Benchmark]:
    """Benchmarks by name, commas allowed. Errors: UsageError, also where code would run unasked."""
    found = [benchmark(part) for name in names for part in name.split(",") if part.strip()]
    if not found:
        raise UsageError("no benchmark is named", hint="for example --benchmark mmlu,arc")
    code = [task.name for task in found if task.kind == "code"]
    if code and not run_code:
        raise UsageError(
            f"{', '.join(code)} runs code that the model writes",
            hint=f"say --run-code if that is all right: {CODE_WARNING}",
        )
    return found


def prepare(
    task: Benchmark, data: str | None, *, max_rows: int | None, shots: int | None, seed: int = 17
) -> Posed:
    """A benchmark's rows, no more than max_rows (chosen by seed), with their examples.

    data: a folder with the benchmark's folder or files in it, a file, a data set of the Hub as
    ``hub:name[config]/split``, or ``hub`` for the one that is known. shots: examples; the benchmark's
    own number where not given, less where no file holds any. Errors: FileProblem, DataError, UsageError.
    """
    judged, examples = _sources(task, data)
    wanted = task.shots if shots is None else shots
    same = examples == judged
    rows, left_out = read_benchmark(task, _values(judged))
    shown: list[Read] = []
    if wanted and examples is not None:
        shown = list(rows) if same else read_benchmark(task, _values(examples))[0][task.first_example :]
    elif wanted and shots is not None:
        raise UsageError(
            f"there is no file to take examples of {task.name} from",
            hint=f"put one beginning with {' or '.join(task.example_files) or 'dev'} there, or say --shots 0",
        )
    if same and wanted:
        # The first rows serve as examples, whatever is drawn: another --max-rows shows the same ones.
        rows = rows[wanted:]
        shown = shown[:wanted]
    places = choose_places([row.id for row in rows], min(max_rows or len(rows), len(rows)), seed=seed)
    return pose(task, [rows[place] for place in places], shown, wanted if shown else 0, left_out)


def _values(source: str) -> Iterator[tuple[dict[str, Any], str, int]]:
    for row in read_raw((source,), base=Path.cwd()):
        yield row.value, row.file, row.line


def _sources(task: Benchmark, data: str | None) -> tuple[str, str | None]:
    """The source of the rows and of the examples."""
    if data is None:
        raise UsageError(
            f"where are the rows of {task.name}?",
            hint=f"--benchmark-data FOLDER with {task.folders[0]}/ in it, or --benchmark-data hub "
            f"for {task.hub}",
        )
    if data == HUB or data.startswith("hub:"):
        name = task.hub if data == HUB else data
        examples = f"{name.rsplit('/', 1)[0]}/{task.example_files[0]}" if task.example_files else None
        return name, examples
    path = Path(data).expanduser()
    if path.is_file():
        return str(path), _named(path.parent, task.example_files)
    if not path.is_dir():
        raise FileProblem("there is no such folder", file=data, hint="see --benchmark-data")
    for folder in (*(path / name for name in task.folders), path):
        if folder.is_dir() and (found := _named(folder, task.files)) is not None:
            return found, _named(folder, task.example_files)
    raise FileProblem(
        f"holds no rows of {task.name}",
        file=data,
        hint=f"a folder {' or '.join(task.folders)} with a file beginning with {' or '.join(task.files)}",
    )


def _named(folder: Path, beginnings: Sequence[str]) -> str | None:
    for beginning in beginnings:
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name.startswith(beginning):
                return str(path)
    return None


def judge_benchmark(
    model: Generator,
    posed: Posed,
    *,
    max_new_tokens: int | None = None,
    chat: bool = False,
    progress: Progress | None = None,
) -> EvalResult:
    """One model on one benchmark. Errors: Unsupported where it cannot say how likely a text is.

    max_new_tokens: the benchmark's own where not given. chat: numbers and code are asked as chats.
    """
    cache = None if isinstance(model, Endpoint) else room("answers")
    if posed.benchmark.kind != "choice":
        return judge_by_answer(
            model, posed, max_new_tokens=max_new_tokens, chat=chat, progress=progress, cache_dir=cache
        )
    return judge_by_likelihood(scorer_of(model), posed, progress=progress, cache_dir=cache)


def scorer_of(model: Generator) -> Scorer:
    """What scores texts where a model answers. Errors: Unsupported with the reason."""
    if isinstance(model, Speaker | Endpoint):
        return model
    if isinstance(model, GgufGenerator):
        raise Unsupported(
            f"{model.label}: llama.cpp's server tells no log-probabilities of a prompt, which multiple "
            "choice is judged by",
            hint="judge the merged model instead (the run itself, or its folder); gsm8k, humaneval and mbpp "
            "need none",
        )
    raise Unsupported(f"{model.label} tells no log-probabilities of a text", hint="name a model or a run")


def base_of(what: str) -> str | None:
    """The folder of a run's base model, or None where the name means no run. Errors: FileProblem."""
    path = Path(what).expanduser()
    if "://" in what or path.suffix == ".gguf" or (path / "config.json").is_file():
        return None
    try:
        run = registry.resolve(what)
    except UsageError:
        return None
    facts: dict[str, Any] = run.stage_values("model") or {}
    folder = facts.get("path")
    if folder is None or not (Path(folder) / "config.json").is_file():
        raise FileProblem(
            f"the base model of {run.id} is no longer where it was",
            file=folder,
            hint="fetch it again with `luthier get`, or name what to compare with: --against",
        )
    return str(folder)
