"""A recipe's data, ready for training, with an account of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from luthier.data.messages import RowProblem
from luthier.data.read import read_file
from luthier.data.render import prompt_of, render_rows
from luthier.data.shapes import Shape, map_rows, several
from luthier.data.sources import Resolved, resolve
from luthier.data.splits import choose, cut, prompt_key
from luthier.data.stats import digest, lengths
from luthier.errors import DataError, LuthierError
from luthier.schema.data import DataReport, SplitReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import ChatRow, Splits, TextTokenizer, TokenRow
from luthier.schema.recipe import DataChoice, Recipe

OVER_LENGTH = "longer than the sequence length"
NOTHING_LEFT = "no trained token left after truncation"
NOT_CHOSEN = "not chosen by max_rows"


@dataclass(frozen=True)
class LoadedData:
    """Splits with the account of how they came to be."""

    splits: Splits
    report: DataReport
    lengths: LengthProfile
    """Tokens of all rendered rows before any cut, for the planner."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one split before rendering."""

    name: str
    rows: list[ChatRow]
    files: tuple[str, ...]
    shape: Shape
    cut_from_train: bool = False


def load_splits(
    recipe: Recipe, tokenizer: TextTokenizer, *, base: Path, sequence_length: int | None
) -> LoadedData:
    """Read, map, split, render and account for the rows of a recipe.

    base: folder that paths are relative to. sequence_length: longest row in tokens; the tokenizer's
    own limit when None. Splits not named in the recipe are cut from train by seed and content. Text
    rows longer than the limit are cut into several. Test rows stay conversations.
    Raises DataError (one for all broken rows), FileProblem, RecipeError, and Unsupported where the
    model has no chat template.
    """
    parts, notes = _parts(recipe, base)
    if recipe.task == "text-generation" and not getattr(tokenizer, "has_chat_template", True):
        parts = [replace(part, rows=[_plain(row) for row in part.rows]) for part in parts]
        notes.append("the model has no chat template: prompt and completion are joined as plain text")
    train = next(part for part in parts if part.name == "train")
    limit = sequence_length or getattr(tokenizer, "max_length", None)
    rendered: dict[str, list[TokenRow]] = {}
    uncut: dict[str, list[int]] = {}
    trained = 0
    reports: list[SplitReport] = []
    tests: dict[str, Sequence[ChatRow]] = {}
    for part in parts:
        if part.name in ("train", "validation"):
            rows = _rendered(part, recipe, tokenizer)
            uncut[part.name] = _uncut(rows, limit)
            if part.name == "train":
                trained = sum(int(row.trained.sum()) for row in rows.tokens)
            rendered[part.name], report = _fitted(part, rows, recipe, tokenizer, limit)
        else:
            tests[part.name] = part.rows
            report = _report(part, kept=part.rows, read=len(part.rows))
        reports.append(report)
    leakage, asked = _leakage(train, [part for part in parts if part is not train])
    notes += [
        f"{count} of the {name} rows stand in the training rows too: scores on them prove nothing"
        for name, count in leakage.items()
        if count
    ]
    notes += _end_notes(rendered["train"], tokenizer)
    whole = DataReport(
        format=train.shape.name,
        columns=train.shape.columns,
        splits=tuple(reports),
        leakage=leakage,
        prompt_leakage=asked,
        tokenizer_digest=getattr(tokenizer, "digest", None),
        digest=digest(
            [*(f"{one.name}={one.digest}" for one in reports), *map(_token_digest, rendered.values())]
        ),
        notes=tuple(notes),
    )
    prompts, answers = _asked(tests, tokenizer)
    profile = LengthProfile(
        train=lengths(uncut["train"]),
        trained_tokens=trained,
        validation=lengths(uncut["validation"]) if "validation" in uncut else None,
        prompts=lengths(prompts) if prompts else None,
        answers=lengths(answers) if answers else None,
    )
    splits = Splits(train=rendered["train"], validation=rendered.get("validation", []), tests=tests)
    return LoadedData(splits, whole, profile)


def read_chats(
    data: DataChoice, sources: tuple[str, ...], *, base: Path
) -> tuple[list[ChatRow], Shape, Resolved]:
    """All rows of some files as conversations. Raises one DataError for all broken rows."""
    resolved = resolve(sources, base=base)
    problems: list[LuthierError] = []
    raw = chain.from_iterable(read_file(file, on_problem=problems.append) for file in resolved.files)
    first = next(raw, None)
    if first is None:
        raise several(problems) if problems else _empty(resolved)
    shape, mapped = map_rows(
        chain([first], raw),
        format=data.format,
        columns=data.columns,
        system=data.system,
        on_problem=problems.append,
    )
    rows = list(mapped)
    if problems:
        raise several(problems)
    return rows, shape, resolved


def _empty(resolved: Resolved) -> DataError:
    return DataError(
        "the data set is empty: no row was read",
        file=resolved.files[0].shown,
        hint="give a file with at least a few rows",
    )


def _parts(recipe: Recipe, base: Path) -> tuple[list[_Part], list[str]]:
    data = recipe.data
    rows, shape, resolved = read_chats(data, data.train, base=base)
    notes = list(resolved.notes)
    files = tuple(file.shown for file in resolved.files)
    shares = {} if data.test else {"test": data.test_share}
    if not data.validation:
        shares["validation"] = data.validation_share
    pieces = cut(rows, shares, seed=recipe.seed)
    parts = [_Part("train", pieces.pop("train"), files, shape)]
    parts += [_Part(name, piece, files, shape, cut_from_train=True) for name, piece in pieces.items()]
    given = ({"validation": data.validation} if data.validation else {}) | data.test
    for name, sources in given.items():
        if name in ("train", "validation") and name in data.test:
            raise DataError(f"data.test.{name}: a test split cannot have this name", hint="name it test")
        own, own_shape, own_files = read_chats(data, sources, base=base)
        notes += own_files.notes
        parts.append(_Part(name, own, tuple(file.shown for file in own_files.files), own_shape))
    return parts, notes


def _plain(row: ChatRow) -> ChatRow:
    """A question and its answer for a model that knows no chat: the text of both, the answer trained."""
    if row.messages[0]["role"] == "text" or [m["role"] for m in row.messages] != ["user", "assistant"]:
        return row
    question, answer = row.messages
    return replace(row, messages=[{**question, "role": "text", "weight": 0}, answer])


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a part, chosen and rendered, one to one."""

    chats: list[ChatRow]
    tokens: list[TokenRow]
    not_chosen: int


def _rendered(part: _Part, recipe: Recipe, tokenizer: TextTokenizer) -> _Rows:
    rows = part.rows
    most = recipe.data.max_rows
    if part.name == "train" and most is not None and most < len(rows):
        rows = choose(rows, most, seed=recipe.seed)
    problems: list[LuthierError] = []
    tokens = list(render_rows(rows, tokenizer, recipe.data.train_on, on_problem=problems.append))
    problems += [_untrained(row) for row in tokens if not row.trained.any()]
    if problems:
        raise several(problems)
    return _Rows(rows, tokens, len(part.rows) - len(rows))


def _uncut(rows: _Rows, limit: int | None) -> list[int]:
    """Lengths before any cut; plain texts count in the pieces that they are always cut into."""
    return [
        len(piece.ids)
        for chat, row in zip(rows.chats, rows.tokens, strict=True)
        for piece in (_pieces(row, limit) if _is_text(chat) else [row])
    ]


def _fitted(
    part: _Part, rows: _Rows, recipe: Recipe, tokenizer: TextTokenizer, limit: int | None
) -> tuple[list[TokenRow], SplitReport]:
    """Rows no longer than the limit, by the recipe's rule, with the account of those that were."""
    dropped = {NOT_CHOSEN: rows.not_chosen} if rows.not_chosen else {}
    kept: list[TokenRow] = []
    originals: list[ChatRow] = []
    truncated = 0
    for chat, row in zip(rows.chats, rows.tokens, strict=True):
        pieces = _pieces(row, limit)
        if len(pieces) == 1 or _is_text(chat):
            kept += pieces
        elif recipe.data.over_length == "error":
            raise _over_length(rows.tokens, limit, getattr(tokenizer, "max_length", None))
        elif recipe.data.over_length == "drop":
            dropped[OVER_LENGTH] = dropped.get(OVER_LENGTH, 0) + 1
            continue
        elif not pieces[0].trained.any():
            dropped[NOTHING_LEFT] = dropped.get(NOTHING_LEFT, 0) + 1
            continue
        else:
            truncated += 1
            kept.append(pieces[0])
        originals.append(chat)
    if not kept:
        raise DataError(
            f"no row is left in the split {part.name!r}: " + _reasons(dropped),
            file=part.files[0],
            hint="raise training.sequence_length, or give shorter rows",
        )
    report = _report(
        part, kept=originals, read=len(part.rows), dropped=dropped, truncated=truncated, tokens=kept
    )
    return kept, report


def _is_text(row: ChatRow) -> bool:
    return len(row.messages) == 1 and row.messages[0]["role"] == "text"


def _pieces(row: TokenRow, limit: int | None) -> list[TokenRow]:
    """The row in pieces of at most ``limit`` tokens; a plain text is trained on all of them."""
    if limit is None or len(row.ids) <= limit:
        return [row]
    return [
        replace(row, ids=row.ids[start : start + limit], trained=row.trained[start : start + limit])
        for start in range(0, len(row.ids), limit)
    ]


def _asked(tests: dict[str, Sequence[ChatRow]], tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """Tokens of the prompts and of the expected answers of all test rows. Raises for rows that fail."""
    problems: list[LuthierError] = []
    rows = [row for split in tests.values() for row in split if not _is_text(row)]
    cut_rows = [replace(row, messages=row.messages[: len(prompt_of(row)) + 1]) for row in rows]
    tokens = list(render_rows(cut_rows, tokenizer, "last", on_problem=problems.append))
    if problems:
        raise several(problems)
    answers = [int(row.trained.sum()) for row in tokens]
    return [len(row.ids) - answer for row, answer in zip(tokens, answers, strict=True)], answers


def _token_digest(rows: Sequence[TokenRow]) -> str:
    """Digest of what is really trained on: a template that prints the date changes it."""
    total = hashlib.sha256()
    for row in rows:
        total.update(len(row.ids).to_bytes(8, "little") + row.ids.tobytes() + row.trained.tobytes())
    return total.hexdigest()


def _untrained(row: TokenRow) -> RowProblem:
    return RowProblem(
        "nothing-trained",
        "no token of this row would be trained",
        file=row.file,
        line=row.line,
        hint="give an assistant turn a weight other than 0, or remove the row",
    )


def _over_length(rows: Sequence[TokenRow], limit: int | None, most: int | None) -> DataError:
    limit = limit or 0
    longest = max(rows, key=lambda row: len(row.ids))
    count = sum(len(row.ids) > limit for row in rows)
    need = len(longest.ids)
    ways = "data.over_length: truncate (cuts their ends) or drop"
    if most is None or need <= most:
        ways = f"set training.sequence_length={need}, or {ways}"
    else:
        ways = f"set {ways}; the model itself reads {most:,} tokens"
    return DataError(
        f"{count} of {len(rows)} rows are longer than {limit:,} tokens; the longest has {need:,}",
        file=longest.file,
        line=longest.line,
        hint=ways,
    )


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it has none"


def _report(
    part: _Part,
    *,
    kept: Sequence[ChatRow],
    read: int,
    dropped: dict[str, int] | None = None,
    truncated: int = 0,
    tokens: Sequence[TokenRow] | None = None,
) -> SplitReport:
    return SplitReport(
        name=part.name,
        files=part.files,
        cut_from_train=part.cut_from_train,
        read=read,
        kept=len(kept),
        dropped=dropped or {},
        truncated=truncated,
        duplicates=len(kept) - len({row.id for row in kept}),
        tokens=None if tokens is None else lengths([len(row.ids) for row in tokens]),
        trained_tokens=0 if tokens is None else sum(int(row.trained.sum()) for row in tokens),
        digest=digest(sorted(row.id for row in kept)),
    )


def _leakage(train: _Part, held_out: Sequence[_Part]) -> tuple[dict[str, int], dict[str, int]]:
    """Held-out rows whose content, and whose prompt only, stands in train."""
    ids = {row.id for row in train.rows}
    prompts = {prompt_key(row) for row in train.rows}
    whole = {part.name: sum(row.id in ids for row in part.rows) for part in held_out}
    asked = {
        part.name: sum(row.id not in ids and prompt_key(row) in prompts for row in part.rows)
        for part in held_out
    }
    return whole, asked


def _end_notes(rows: Sequence[TokenRow], tokenizer: TextTokenizer) -> list[str]:
    """Say where no end token is trained: such a model never stops by itself."""
    ends = list(tokenizer.eos_ids)
    if any(index in ends for row in rows[:100] for index in row.ids[row.trained].tolist()):
        return []
    return [
        "no end token of the tokenizer is trained in the first rows: check eos_token_id in "
        "generation_config.json against the chat template's end marker"
    ]
