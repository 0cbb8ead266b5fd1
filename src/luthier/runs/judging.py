"""Judge anything that answers chats on rows of a file: a model, a run, a GGUF file, a served endpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from luthier.data.load import read_chats
from luthier.data.splits import choose
from luthier.errors import LuthierError, UsageError
from luthier.evaluation.generation import evaluate, text_of
from luthier.hub.cache import room
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings
from luthier.llamacpp.shape import shape_of_gguf
from luthier.planning.audit import audit
from luthier.runs import registry
from luthier.runs.answer import model_folder
from luthier.runs.model import Say, obtain
from luthier.runs.speaker import Speaker
from luthier.schema.protocols import ChatRow, Generator, Progress
from luthier.schema.recipe import DataChoice, Dtype, ModelChoice
from luthier.schema.results import EvalResult
from luthier.serving.endpoint import Endpoint

SLOTS = 4
LONGEST_PROMPT = 4096
"""Tokens that a prompt may have in a GGUF file, besides the answer, where the model reads more."""


def read_rows(files: Sequence[str], *, most: int | None = None, seed: int = 17) -> list[ChatRow]:
    """Conversations of some files, no more than ``most``, chosen by seed. Errors: DataError."""
    data = DataChoice(train=tuple(files))
    rows, _, _ = read_chats(data, tuple(files), base=Path.cwd())
    return list(choose(rows, min(most or len(rows), len(rows)), seed=seed))


@contextmanager
def answering(
    what: str, *, model: str | None = None, gguf: str | None = None, longest: int, say: Say
) -> Iterator[Generator]:
    """Whatever a name means, ready to answer.

    what: an address (http...), a .gguf file, a folder with a saved model, a run or registered version
    (its tuned model; ``gguf`` picks one of its files), or a model of the catalogue or the Hub. model:
    which of an endpoint's models. longest: new tokens of an answer.
    """
    path = Path(what).expanduser()
    if what.startswith(("http://", "https://")):
        key = os.environ.get("OPENAI_API_KEY")
        with Endpoint(what, text_of=text_of, model=model, api_key=key) as endpoint:
            yield endpoint
        return
    if path.suffix == ".gguf" and path.is_file():
        with _gguf(path, path.stem, longest) as generator:
            yield generator
        return
    if gguf is not None:
        from luthier.runs.shipping import chat_files

        run = registry.resolve(what)
        with _gguf(chat_files(run, gguf)[0], f"{run.id} {gguf}", longest) as generator:
            yield generator
        return
    folder, label = _folder(what, path, say)
    with Speaker(folder, dtype=_dtype(), label=label) as speaker:
        yield speaker


def _folder(what: str, path: Path, say: Say) -> tuple[Path, str]:
    if (path / "config.json").is_file():
        return path.resolve(), path.resolve().name
    try:
        run = registry.resolve(what)
    except UsageError as unknown:
        try:
            local = obtain(ModelChoice(id=what), say=say)
        except LuthierError as error:
            raise UsageError(
                f"{what!r} is no run, file, folder or address, and no model either: {error.message}",
                hint=error.hint or unknown.hint,
            ) from None
        return local.path, local.id
    return model_folder(str(run.path), "chat"), run.id


def _dtype() -> Dtype:
    """bf16 where the device computes it natively, fp32 elsewhere: what a baseline is judged in."""
    machine = audit()
    if machine.accelerators:
        return "bfloat16" if machine.accelerators[0].bf16 else "float32"
    return "float32"


@contextmanager
def _gguf(path: Path, label: str, longest: int) -> Iterator[Generator]:
    most = shape_of_gguf(path).max_positions or LONGEST_PROMPT
    settings = ServerSettings(context=min(most, LONGEST_PROMPT + longest), slots=SLOTS)
    with LlamaServer(path, settings) as server:
        yield GgufGenerator(server, label)


def judge(
    generator: Generator,
    rows: Sequence[ChatRow],
    *,
    split: str,
    metrics: Sequence[str] | None,
    longest: int,
    progress: Progress | None = None,
) -> EvalResult:
    """One model on the rows. Answers are kept unless weights may change behind the name."""
    return evaluate(
        generator,
        rows,
        split=split,
        metrics=metrics,
        max_new_tokens=longest,
        progress=progress,
        cache_dir=None if isinstance(generator, Endpoint) else room("answers"),
    )
