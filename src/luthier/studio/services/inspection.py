"""What a child process finds in a data set: checks, lengths, tokens by mask. ``python -m`` runs it.

Tokenizers and whole files stay out of the server: its memory does not grow with anybody's data. What was
found is kept beside the data set, one file for each way of reading and each model, and asked for again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import Field

from luthier.errors import LuthierError
from luthier.files import write_text
from luthier.schema.base import Record
from luthier.schema.data import CheckReport, DataProfile
from luthier.schema.data_profile import LengthProfile
from luthier.schema.recipe import ModelChoice
from luthier.studio.services import children
from luthier.studio.services.datasets import Dataset, dataset, source

if TYPE_CHECKING:
    from luthier.data.tokenizer import FileTokenizer
    from luthier.schema.protocols import ChatRow, TokenRow

MEASURED = 20_000
"""Rows whose lengths are counted, from the first on; sums are scaled to all rows."""
SHOWN = 5
SHOWN_TOKENS = 800
BARS = 24
TEST_SHARE = 0.1


class SeenRow(Record):
    """One row as a model sees it."""

    line: int
    tokens: int
    trained: int
    pieces: tuple[tuple[str, bool], ...]
    """(text of one token, whether it carries loss), the first 800."""


class Inspection(Record):
    """All that was found."""

    key: str
    model: str | None = None
    """Whose tokenizer and template; None where lengths are estimated."""
    made: float
    check: CheckReport | None = None
    profile: DataProfile | None = None
    lengths: LengthProfile | None = None
    histogram: tuple[tuple[int, int, int], ...] = ()
    """(from, to, rows): tokens of a row, both ends counted in."""
    basis: str = ""
    """How tokens were counted, and over how many rows."""
    over: dict[str, int] = Field(default_factory=dict)
    """Sequence length -> rows that are longer."""
    sample: tuple[SeenRow, ...] = ()
    untemplated: str | None = None
    """Why the rows cannot be shown as this model sees them."""
    problem: str | None = None
    fix: str | None = None
    seconds: float = 0.0


# -- asked by the server -------------------------------------------------------------------------

_guard = threading.Lock()


def key_of(known: Dataset, model: str | None, held_out: Dataset | None) -> str:
    """Names one way of looking at a data set."""
    told = known.model_dump(mode="json", include={"sha256", "purpose", "format", "columns", "system",
                                                  "label_delimiter", "train_on"})  # fmt: skip
    words = json.dumps([told, model, held_out.sha256 if held_out else None], sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def held_out_of(folder: Path, known: Dataset) -> Dataset | None:
    """The data set that is judged on, where one is named and still there."""
    if known.held_out is None or known.held_out == known.id:
        return None
    try:
        return dataset(folder, known.held_out)
    except LuthierError:
        return None


def found(folder: Path, known: Dataset, model: str | None = None) -> Inspection | None:
    """What is known of a data set as it is read now; None where nobody looked yet."""
    return _read(folder / known.id / f"seen-{key_of(known, model, held_out_of(folder, known))}.json")


def any_found(folder: Path, known: Dataset, model: str | None = None) -> Inspection | None:
    """What is known by that model's tokenizer, else by another's, else estimated."""
    held_out = held_out_of(folder, known)
    if model is not None and (exact := found(folder, known, model)) is not None and exact.lengths is not None:
        return exact
    seen = [one for path in (folder / known.id).glob("seen-*.json") if (one := _read(path)) is not None]
    fitting = [
        one for one in seen if one.lengths is not None and one.key == key_of(known, one.model, held_out)
    ]
    return max(fitting, key=lambda one: (one.model is not None, one.made), default=None)


def start(folder: Path, known: Dataset, model: str | None = None, revision: str | None = None) -> None:
    """Look at a data set in a child process, unless one is at it."""
    with _guard:
        if running(folder, known, model):
            return
        key = key_of(known, model, held_out_of(folder, known))
        children.start(
            f"{folder}/{known.id}/{key}",
            "luthier.studio.services.inspection",
            [str(folder), known.id, key, model or "", revision or ""],
            out=folder / known.id / "inspection.log",
            env={"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )


def running(folder: Path, known: Dataset, model: str | None = None) -> bool:
    """Whether a child looks at it now, this server's or an earlier one's."""
    key = key_of(known, model, held_out_of(folder, known))
    return children.running(f"{folder}/{known.id}/{key}", folder / known.id / f"seen-{key}.lock")


def ensure(
    folder: Path, known: Dataset, model: str | None = None, revision: str | None = None
) -> Inspection | None:
    """What is known; a child is started where nothing is."""
    seen = found(folder, known, model)
    if seen is None:
        start(folder, known, model, revision)
    return seen


def _read(path: Path) -> Inspection | None:
    try:
        return Inspection.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


# -- in the child --------------------------------------------------------------------------------


def inspect(folder: Path, known: Dataset, key: str, model: str | None, revision: str | None) -> Inspection:
    """Check, profile and measure a data set. What is wrong with it is part of the answer."""
    from luthier.data.check import check
    from luthier.data.profile import profile

    started = time.monotonic()
    values: dict[str, Any] = {"key": key, "model": model, "made": time.time()}
    tokenizer: FileTokenizer | None = None
    try:
        if model is not None:
            from luthier.data.tokenizer import load_tokenizer
            from luthier.runs.model import obtain

            place = obtain(ModelChoice(id=model, revision=revision), say=lambda _: None, offline=True)
            tokenizer = load_tokenizer(place.path)
        file = source(known)
        base = file.path.parent
        held_out = held_out_of(folder, known)
        templated = tokenizer is not None and tokenizer.has_chat_template
        values["check"] = _named(
            check(
                (str(file.path),), base=base, held_out=(held_out.file,) if held_out else (),
                tokenizer=tokenizer if templated and not known.typed else None, train_on=known.train_on,
                format=known.format, columns=known.columns, system=known.system, purpose=known.purpose,
                label_delimiter=known.label_delimiter,
            ),
            known, held_out,
        )  # fmt: skip
        values |= _measured(known, tokenizer)
        with contextlib.suppress(
            LuthierError
        ):  # rows of a kind that has no profile: the check says what they are
            values["profile"] = profile((str(file.path),), base=base, tokenizer=None)
    except LuthierError as error:
        values |= {"problem": error.message, "fix": error.hint}
    return Inspection.model_validate({**values, "seconds": round(time.monotonic() - started, 3)})


def _named(report: CheckReport, known: Dataset, held_out: Dataset | None) -> CheckReport:
    """The report with the files' own names in place of where they lie."""
    text = report.model_dump_json()
    for one in (known, held_out):
        if one is not None:
            path = Path(one.file)
            for shown in (str(path), str(path.resolve()), path.name if one.own else str(path)):
                text = text.replace(json.dumps(shown)[1:-1], json.dumps(one.name)[1:-1])
    return CheckReport.model_validate_json(text)


def _measured(known: Dataset, tokenizer: FileTokenizer | None) -> dict[str, Any]:
    """Lengths, histogram and the first rows as the model sees them."""
    from luthier.data.stats import lengths

    sizes, rows, sample, untemplated = _sizes(known, tokenizer)
    if not sizes:
        return {"untemplated": untemplated}
    # Rows that the template refuses stop a training; of longer files only the first rows are measured.
    rows = rows if rows > MEASURED else len(sizes)
    scale = rows / len(sizes)
    longest = [one[0] for one in sizes]
    train = lengths(longest)
    total, trained = round(sum(one[1] for one in sizes) * scale), round(sum(one[2] for one in sizes) * scale)
    held = max(1, round(rows * TEST_SHARE))
    prompts = lengths([max(1, one[1] - one[2]) for one in sizes]).model_copy(update={"count": held})
    answers = lengths([one[2] for one in sizes]).model_copy(update={"count": held})
    texts = sum(one[3] for one in sizes) / len(sizes)
    profile = LengthProfile(
        train=train.model_copy(update={"count": rows, "total": total}), trained_tokens=trained, inputs=texts,
        prompts=lengths(longest).model_copy(update={"count": held}) if known.typed else prompts,
        answers=None if known.typed else answers,
    )  # fmt: skip
    limits = (512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
    over = {str(limit): round(sum(size > limit for size in longest) * scale) for limit in limits}
    words = "counted with the model's own tokenizer"
    if tokenizer is None:
        words = "estimated at 3.5 characters a token"
    elif not known.typed:
        words += " and chat template" if tokenizer.has_chat_template else ", without a chat template"
    if scale > 1:
        words += f"; from the first {len(sizes):,} of {rows:,} rows"
    return {
        "lengths": profile, "histogram": bars(longest, scale), "basis": words, "sample": sample, "over": over,
        "untemplated": untemplated,
    }  # fmt: skip


Sizes = list[tuple[int, int, int, int]]
"""For each row: tokens of its longest input, of all, of those that carry loss, and how many inputs."""


def _sizes(
    known: Dataset, tokenizer: FileTokenizer | None
) -> tuple[Sizes, int, tuple[SeenRow, ...], str | None]:
    """Sizes of the first rows, how many rows there are, the first ones shown, and why not."""
    rows = _rows(known)
    looked = list(islice(rows, MEASURED))
    count = len(looked) + sum(1 for _ in rows)
    if known.typed and known.purpose != "preference":
        return _sizes_of_inputs(known, looked, tokenizer), count, (), None
    if tokenizer is not None and tokenizer.has_chat_template:
        try:
            sizes, sample = _sizes_of_chats(known, looked, tokenizer)
        except LuthierError as error:
            return [_estimated(known, row) for row in looked], count, (), error.message
        return sizes, count, sample, None
    why = None if tokenizer is None else "this model has no chat template"
    return [_estimated(known, row) for row in looked], count, (), why


def _rows(known: Dataset) -> Iterator[Any]:
    """Usable rows: conversations, or rows with labels, pairs and preferences."""
    from luthier.data.read import read_file

    raw = read_file(source(known), on_problem=lambda _: None)
    if known.typed:
        from luthier.data.layouts import tell
        from luthier.data.typed import row_maker

        first = list(islice(raw, 50))
        layout = tell(known.purpose, first, columns=known.columns, delimiter=known.label_delimiter)
        make = row_maker(layout, known.system)
        for part in (first, raw):
            for row in part:
                try:
                    yield make(row)
                except (LuthierError, UnicodeEncodeError):
                    continue
        return
    from luthier.data.shapes import by_file
    from luthier.data.vision import chat_or_view

    for shape, row in by_file(raw, format=known.format, columns=known.columns):
        try:
            yield chat_or_view(row, shape, system=known.system)[0]
        except (LuthierError, UnicodeEncodeError):
            continue


def _sizes_of_inputs(known: Dataset, rows: Sequence[Any], tokenizer: FileTokenizer | None) -> Sizes:
    from luthier.data.inputs import inputs_of
    from luthier.data.profile import estimate_tokens

    inputs = [inputs_of(row, known.task) for row in rows]
    if tokenizer is None:
        counts = [
            [estimate_tokens(one if isinstance(one, str) else " ".join(one)) + 2 for one in part]
            for part in inputs
        ]
    else:
        ids = iter(
            [len(found) for found, _ in tokenizer.encode_inputs([one for part in inputs for one in part])]
        )
        counts = [[next(ids) for _ in part] for part in inputs]
    return [(max(part), sum(part), sum(part), len(part)) for part in counts]


def _sizes_of_chats(
    known: Dataset, rows: Sequence[Any], tokenizer: FileTokenizer
) -> tuple[Sizes, tuple[SeenRow, ...]]:
    from luthier.data.preferences import as_chat, render_pairs
    from luthier.data.render import render_rows

    if known.purpose == "preference":
        pairs = render_pairs([as_chat(row) for row in rows], tokenizer)
        sizes = [
            (
                max(len(pair.chosen.ids), len(pair.rejected.ids)),
                len(pair.chosen.ids) + len(pair.rejected.ids),
                int(pair.chosen.trained.sum() + pair.rejected.trained.sum()),
                2,
            )
            for pair in pairs
        ]
        return sizes, tuple(
            _seen(side, tokenizer) for pair in pairs[:3] for side in (pair.chosen, pair.rejected)
        )
    rendered = list(render_rows(rows, tokenizer, known.train_on, on_problem=lambda _: None))
    sizes = [(len(row.ids), len(row.ids), int(row.trained.sum()), 1) for row in rendered]
    return sizes, tuple(_seen(row, tokenizer) for row in rendered[:SHOWN])


def _seen(row: TokenRow, tokenizer: FileTokenizer) -> SeenRow:
    from dataclasses import replace

    from luthier.data.show import show_tokens

    cut = replace(row, ids=row.ids[:SHOWN_TOKENS], trained=row.trained[:SHOWN_TOKENS])
    pieces = tuple((text, trained) for text, _, trained in show_tokens(cut, tokenizer))
    return SeenRow(line=row.line, tokens=len(row.ids), trained=int(row.trained.sum()), pieces=pieces)


def _estimated(known: Dataset, row: Any) -> tuple[int, int, int, int]:
    """A conversation's tokens by its letters: (longest, all, trained, inputs)."""
    from luthier.data.preferences import as_chat

    if known.purpose == "preference":
        chat = as_chat(row)
        asked = sum(_tokens(one) for one in chat.messages[: chat.asked])
        sides = [sum(_tokens(one) for one in part) for part in (chat.messages[chat.asked :], chat.rejected)]
        return asked + max(sides), 2 * asked + sum(sides), sum(sides), 2
    chat_row: ChatRow = row
    counts = [(one["role"], _tokens(one)) for one in chat_row.messages]
    whole = sum(size for _, size in counts) + (_letters(json.dumps(chat_row.tools)) if chat_row.tools else 0)
    trained = whole if known.train_on == "all" else sum(
        size for role, size in counts if role in ("assistant", "text")
    )  # fmt: skip
    return whole, whole, trained, 1


def _tokens(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls")
    text = str(message.get("content") or "") + str(message.get("reasoning_content") or "")
    return _letters(text + (json.dumps(calls, ensure_ascii=False) if calls else "")) + 5


def _letters(text: str) -> int:
    from luthier.data.profile import estimate_tokens

    return estimate_tokens(text)


def bars(sizes: Sequence[int], scale: float = 1.0, *, most: int = BARS) -> tuple[tuple[int, int, int], ...]:
    """Rows by length in bars of one round width, the last of which holds all that is longer than 99.5 %."""
    if not sizes:
        return ()
    ordered = sorted(sizes)
    usual = ordered[min(len(ordered) - 1, int(len(ordered) * 0.995))]
    width = next(
        step * 10**power for power in range(9) for step in (1, 2, 5) if step * 10**power * most >= usual
    )
    counts = Counter(min(max(0, size - 1) // width, (usual - 1) // width) for size in sizes)
    last = max(counts)
    return tuple(
        (at * width + 1, ordered[-1] if at == last else (at + 1) * width, round(counts[at] * scale))
        for at in range(last + 1)
    )


def main(words: Sequence[str]) -> int:
    """``FOLDER DATASET KEY MODEL REVISION``: look, and write what was found."""
    folder, name, key, model, revision = Path(words[0]), *words[1:5]
    known = dataset(folder, name)
    place = folder / name / f"seen-{key}.json"
    try:
        with FileLock(place.with_suffix(".lock"), timeout=0):
            try:
                os.nice(5)
                found_ = inspect(folder, known, key, model or None, revision or None)
            except Exception as error:
                failed = {"problem": f"the check itself failed: {type(error).__name__}: {error}",
                          "fix": f"see {folder / name / 'inspection.log'}"}  # fmt: skip
                write_text(
                    place,
                    Inspection(key=key, model=model or None, made=time.time(), **failed).model_dump_json(),
                )
                raise
            write_text(place, found_.model_dump_json())
    except Timeout:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
