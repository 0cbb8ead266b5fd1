"""Preference rows as the loop and the judge take them: both answers rendered after their prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from luthier.data.columns import first_names
from luthier.data.fit import (
    NO_END,
    NOTHING_LEFT,
    OVER_LENGTH,
    Longest,
    over_length_error,
)
from luthier.data.load import LoadedData, read_chats
from luthier.data.read import read_file
from luthier.data.render import prompt_ids, prompt_of, render_rows
from luthier.data.rows import load_rows, rows_for
from luthier.data.shapes import several
from luthier.data.sources import resolve
from luthier.data.stats import digest, lengths
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import DataError, LuthierError
from luthier.schema.data import DataReport, Lengths, SplitReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import ChatRow, Message, Splits, TokenRow
from luthier.schema.recipe import DataChoice, Recipe
from luthier.schema.rows import PairTokens, PreferenceChat, PreferenceRow, TaskRow

KIND = "preference"


def load_preferences(
    recipe: Recipe, tokenizer: FileTokenizer, *, base: Path, sequence_length: int | None
) -> LoadedData:
    """Read, split, render and measure the pairs of a recipe with a ``preference`` section.

    Named test files may hold pairs or conversations; pairs come as `PreferenceChat`. sequence_length:
    longest prompt with one answer, in tokens; the model's own limit when None. Longer rows follow
    ``data.over_length``. Errors as `data.rows.load_rows`, and DataError for a pair whose answers the
    template writes alike.
    """
    data = recipe.data
    given = {name: _holds_pairs(data, files, base) for name, files in data.test.items()}
    changes: dict[str, object] = {"test": {name: data.test[name] for name, pairs in given.items() if pairs}}
    if "test" in given and not given["test"]:
        changes["test_share"] = 0.0  # pairs cut from train would take its name
    asked = recipe.model_copy(update={"data": data.model_copy(update=changes)})
    rows = load_rows(asked, base=base, purpose="preference")
    reports = {one.name: one for one in rows.report.splits}
    limit, most = sequence_length or tokenizer.max_length, tokenizer.max_length
    pairs: dict[str, list[PairTokens]] = {}
    sizes: dict[str, list[tuple[int, int]]] = {}
    for name, part in (("train", rows.train), ("validation", rows.validation)):
        rendered = render_pairs(_chats(part), tokenizer)
        sizes[name], pairs[name] = [_size(pair) for pair in rendered], rendered
        if name in reports:
            kept, reports[name] = _fitted(rendered, reports[name], data.over_length, limit, most)
            pairs[name] = list(kept.values())
    tests: dict[str, Sequence[ChatRow]] = {}
    for name, part in rows.tests.items():
        # Judged whole: only the model's own context can be too short for them.
        held = _chats(part)
        kept, reports[name] = _fitted(
            render_pairs(held, tokenizer), reports[name], data.over_length, most, most
        )
        tests[name] = [held[place] for place in kept]
    for name in (name for name, held_pairs in given.items() if not held_pairs):
        tests[name], files = _conversations(data, data.test[name], base)
        reports[name] = _chat_report(name, tests[name], files)
    account = _account(rows.report, list(reports.values()), pairs, tokenizer)
    splits = Splits(pairs["train"], pairs["validation"], tests, kind=KIND)
    return LoadedData(splits, account, _profile(sizes, _trained(pairs["train"]), tests, tokenizer))


def read_held_out(data: DataChoice, files: tuple[str, ...], *, base: Path, name: str) -> Sequence[ChatRow]:
    """Rows of files that are only judged: pairs as `PreferenceChat`, or conversations."""
    if _holds_pairs(data, files, base):
        return _chats(rows_for("preference", data, files, base=base, split=name).rows)
    return _conversations(data, files, base)[0]


def _conversations(
    data: DataChoice, files: tuple[str, ...], base: Path
) -> tuple[Sequence[ChatRow], tuple[str, ...]]:
    """Rows that are no pairs, and the names of their files; the recipe's columns name those of pairs."""
    rows, _, resolved = read_chats(data.model_copy(update={"columns": {}}), files, base=base)
    return rows, tuple(file.shown for file in resolved.files)


def _chats(rows: Sequence[TaskRow]) -> list[PreferenceChat]:
    return [as_chat(row) for row in rows if isinstance(row, PreferenceRow)]


def as_chat(row: PreferenceRow) -> PreferenceChat:
    """A held-out pair as a conversation whose expected answer is the better one."""
    return PreferenceChat(
        [*row.prompt, *row.chosen],
        row.file,
        row.line,
        row.id,
        row.tools,
        row.group,
        rejected=row.rejected,
        asked=len(row.prompt),
    )


def render_pairs(rows: Sequence[PreferenceChat], tokenizer: FileTokenizer) -> list[PairTokens]:
    """Both answers of each row after the prompt, in order.

    Raises DataError (one for all such rows) where the template refuses a row or writes both answers
    alike.
    """
    problems: list[LuthierError] = []
    prompts = [_silent(row.messages[: row.asked]) for row in rows]
    better = [
        _plain(row, [*prompt, *row.messages[row.asked :]]) for row, prompt in zip(rows, prompts, strict=True)
    ]
    worse = [_plain(row, [*prompt, *row.rejected]) for row, prompt in zip(rows, prompts, strict=True)]
    first = list(render_rows(better, tokenizer, "assistant", on_problem=problems.append))
    second = list(render_rows(worse, tokenizer, "assistant", on_problem=problems.append))
    if problems:
        raise several(problems)
    found = [PairTokens(a, b) for a, b in zip(first, second, strict=True)]
    alike = [pair.chosen for pair in found if np.array_equal(pair.chosen.ids, pair.rejected.ids)]
    if alike:
        raise several([_alike(row) for row in alike])
    return found


def _alike(row: TokenRow) -> DataError:
    return DataError(
        "the model's chat template writes the chosen and the rejected answer alike",
        file=row.file,
        line=row.line,
        hint="the answers differ only in what the template leaves out (such as thinking); remove the row",
    )


def _plain(row: PreferenceChat, messages: list[Message]) -> ChatRow:
    """A plain conversation in the row's place."""
    return ChatRow(messages, row.file, row.line, row.id, row.tools, row.group)


def _silent(messages: Sequence[Message]) -> list[Message]:
    """The prompt's own answers carry no loss."""
    return [{**one, "train": False} if one["role"] == "assistant" else one for one in messages]


def _size(pair: PairTokens) -> tuple[int, int]:
    """Tokens of the longer side, and of both."""
    one, two = len(pair.chosen.ids), len(pair.rejected.ids)
    return max(one, two), one + two


def _holds_pairs(data: DataChoice, files: tuple[str, ...], base: Path) -> bool:
    """Whether the first row of some files has a rejected answer; where none can be read, yes."""
    for file in resolve(files, base=base).files:
        for row in islice(read_file(file, on_problem=lambda _: None), 1):
            if (mapped := data.columns.get("rejected")) is not None and first_names(mapped, row.value):
                return bool(set(first_names(mapped, row.value)) & set(row.value))
            return any(str(name).lower() in ("rejected", "dispreferred", "worse") for name in row.value)
    return True


def _fitted(
    pairs: list[PairTokens], report: SplitReport, over_length: str, limit: int | None, most: int | None
) -> tuple[dict[int, PairTokens], SplitReport]:
    """Pairs by the recipe's rule for rows that are too long: place -> pair, and the account."""
    over = {place for place, pair in enumerate(pairs) if limit is not None and _size(pair)[0] > limit}
    if over and over_length == "error":
        worst = pairs[max(over, key=lambda place: _size(pairs[place])[0])]
        named = Longest(_size(worst)[0], worst.chosen.file, worst.chosen.line)
        raise over_length_error(len(over), len(pairs), named, limit, most)
    kept: dict[int, PairTokens] = {}
    dropped: Counter[str] = Counter()
    for place, pair in enumerate(pairs):
        if place not in over:
            kept[place] = pair
        elif over_length == "drop":
            dropped[OVER_LENGTH] += 1
        elif (short := _cut(pair, limit)) is None:
            dropped[NOTHING_LEFT] += 1
        else:
            kept[place] = short
    if pairs and not kept:
        raise DataError(
            f"no row of {report.name} is left: all are longer than {limit:,} tokens",
            hint="raise training.sequence_length, or shorten the rows",
        )
    changes: dict[str, object] = {
        "kept": len(kept),
        "dropped": {**report.dropped, **dropped},
        "truncated": len(over) - dropped.total(),
        "tokens": lengths([_size(pair)[0] for pair in kept.values()]),
        "trained_tokens": _trained(kept.values()),
    }
    if dropped:
        changes["digest"] = digest(sorted(pair.chosen.id for pair in kept.values()))
    return kept, report.model_copy(update=changes)


def _trained(pairs: Iterable[PairTokens]) -> int:
    return sum(int(one.trained.sum()) for pair in pairs for one in (pair.chosen, pair.rejected))


def _cut(pair: PairTokens, limit: int | None) -> PairTokens | None:
    """Both sides cut; None where nothing of an answer, or no difference, is left."""
    sides = [
        replace(one, ids=one.ids[:limit], trained=one.trained[:limit]) for one in (pair.chosen, pair.rejected)
    ]
    if not all(one.trained[1:].any() for one in sides) or np.array_equal(sides[0].ids, sides[1].ids):
        return None
    return PairTokens(*sides)


def _chat_report(name: str, rows: Sequence[ChatRow], files: tuple[str, ...]) -> SplitReport:
    return SplitReport(
        name=name,
        files=files,
        read=len(rows),
        kept=len(rows),
        duplicates=len(rows) - len({row.id for row in rows}),
        digest=digest(sorted(row.id for row in rows)),
    )


def _account(
    report: DataReport,
    splits: Sequence[SplitReport],
    pairs: dict[str, list[PairTokens]],
    tokenizer: FileTokenizer,
) -> DataReport:
    notes = list(report.notes)
    if not _ends([pair.chosen for pair in pairs["train"][:100]], tokenizer):
        notes.append(NO_END)
    sides = (
        one
        for name in ("train", "validation")
        for pair in pairs[name]
        for one in (pair.chosen, pair.rejected)
    )
    tokens = digest(one.ids.tobytes().hex() + one.trained.tobytes().hex() for one in sides)
    return report.model_copy(
        update={
            "splits": tuple(splits),
            "tokenizer_digest": tokenizer.digest,
            "digest": digest([report.digest, *(f"{one.name}={one.digest}" for one in splits), tokens]),
            "notes": tuple(notes),
        }
    )


def _ends(rows: Sequence[TokenRow], tokenizer: FileTokenizer) -> bool:
    ends = tokenizer.eos_ids
    return any(index in ends for row in rows for index in row.ids[row.trained].tolist())


def _profile(
    sizes: dict[str, list[tuple[int, int]]],
    trained: int,
    tests: dict[str, Sequence[ChatRow]],
    tokenizer: FileTokenizer,
) -> LengthProfile:
    """Lengths of the longer side of a pair; the total counts both."""

    def profile(name: str) -> Lengths:
        found = lengths([most for most, _ in sizes[name]])
        return found.model_copy(update={"total": sum(both for _, both in sizes[name])})

    asked = [row for rows in tests.values() for row in rows]
    prompts = [len(prompt_ids(prompt_of(row), tokenizer, row.tools)) for row in asked]
    return LengthProfile(
        train=profile("train"),
        trained_tokens=trained,
        validation=profile("validation") if sizes["validation"] else None,
        inputs=2.0,
        prompts=lengths(prompts) if prompts else None,
    )
