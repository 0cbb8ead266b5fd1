"""A recipe's data, ready for training, with an account of every row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from shutil import disk_usage

from luthier.data.again import KINDS
from luthier.data.fit import (
    NO_END,
    NOT_CHOSEN,
    UNWEIGHTED,
    Longest,
    fit,
    is_text,
    over_length_error,
    repeated,
    times_seen,
    uncut_sizes,
    weighed,
)
from luthier.data.fit import OVER_LENGTH as OVER_LENGTH  # noqa: PLC0414 - named from here too
from luthier.data.infill import infill_of
from luthier.data.large import load_large, needed_bytes
from luthier.data.passes import joins_texts, plain_chat, untrained
from luthier.data.read import read_file
from luthier.data.render import prompt_of, render_rows
from luthier.data.scan import Sources, source_bytes
from luthier.data.shapes import Shape, map_rows, several
from luthier.data.sources import Resolved, resolve, resolve_weighted
from luthier.data.splits import choose, cut, prompt_key
from luthier.data.stats import digest, lengths
from luthier.data.vision import demand_words_alone
from luthier.errors import DataError, LuthierError
from luthier.files import cache_dir
from luthier.schema.data import DataReport, SplitReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import ChatRow, Splits, TextTokenizer, TokenRow
from luthier.schema.recipe import DataChoice, Recipe

IN_MEMORY = 100 << 20
"""Bytes of data files up to which rows are kept in memory; they take several times as much there."""
_JOINED = "the model has no chat template: prompt and completion are joined as plain text"


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
    weights: dict[str, float] = field(default_factory=dict)
    """File -> weight, where that is not 1."""


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
    sources = _sources(recipe.data, base)
    version = version_of(recipe, sources)
    convert = seeing_from(base) if recipe.vision is not None else None
    limit = sequence_length or getattr(tokenizer, "max_length", None)
    plain = joins_texts(recipe.task, tokenizer)
    notes = [note for part in (sources.train, *sources.given.values()) for note in part.notes]
    storage, why = ("memory", list[str]()) if convert else _storage(recipe.data, sources)
    notes += [*why, _JOINED] if plain else why
    if storage != "memory":
        found = load_large(
            recipe, tokenizer, sources, limit=limit, stream=storage == "stream", plain=plain, notes=notes
        )
        account = found[1].model_copy(update={"version": version})
        return LoadedData(found[0], account, found[2])
    parts = _parts(recipe, sources, convert)
    if plain:
        parts = [replace(part, rows=[plain_chat(row) for row in part.rows]) for part in parts]
    train = next(part for part in parts if part.name == "train")
    rendered: dict[str, list[TokenRow]] = {}
    uncut: dict[str, list[int]] = {}
    token_digests: list[str] = []
    trained = 0
    reports: list[SplitReport] = []
    tests: dict[str, Sequence[ChatRow]] = {}
    for part in parts:
        if part.name in ("train", "validation"):
            rows = _rendered(part, recipe, tokenizer, limit)
            sizes = [uncut_sizes(chat, row, limit) for chat, row in zip(rows.chats, rows.tokens, strict=True)]
            uncut[part.name] = list(chain.from_iterable(repeated(sizes, rows.times)))
            if part.name == "train":
                trained = sum(
                    int(row.trained.sum()) * count for row, count in zip(rows.tokens, rows.times, strict=True)
                )
            kept, times, report = _fitted(part, rows, recipe, tokenizer, limit)
            token_digests.append(_token_digest(kept))
            rendered[part.name] = repeated(kept, times)
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
        version=version,
        columns=train.shape.columns,
        splits=tuple(reports),
        leakage=leakage,
        prompt_leakage=asked,
        tokenizer_digest=getattr(tokenizer, "digest", None),
        digest=digest(
            [*(f"{one.name}={one.digest}" for one in reports), *token_digests, *weighed(train.weights)]
        ),
        notes=tuple(notes),
    )
    prompts, answers = _asked(tests, tokenizer)
    seen = [getattr(tokenizer, "patches")(row.messages) for row in train.rows] if convert else []  # noqa: B009
    profile = LengthProfile(
        patches=max(seen, default=0),
        patches_total=sum(seen),
        train=lengths(uncut["train"]),
        trained_tokens=trained,
        validation=lengths(uncut["validation"]) if "validation" in uncut else None,
        prompts=lengths(prompts) if prompts else None,
        answers=lengths(answers) if answers else None,
    )
    splits = Splits(train=rendered["train"], validation=rendered.get("validation", []), tests=tests)
    return LoadedData(splits, whole, profile)


def version_of(recipe: Recipe, sources: Sources) -> str:
    """``name@version`` of a recipe's data, the recipe or its first file giving the name where none does."""
    from luthier.data.versions import describe

    name = recipe.data.name or recipe.name or sources.train.files[0].path.name.split(".")[0]
    return describe(recipe, sources, name=name).id


def read_chats(
    data: DataChoice, sources: tuple[str, ...], *, base: Path, images: bool = False
) -> tuple[list[ChatRow], Shape, Resolved]:
    """All rows of some files as conversations, with their images where asked for.

    Raises one DataError for all broken rows.
    """
    resolved = resolve(sources, base=base)
    rows, shape = _chats(data, resolved, seeing_from(base) if images else None)
    return rows, shape, resolved


Convert = Callable[..., ChatRow]


def seeing_from(base: Path) -> Convert:
    """What makes conversations with images of rows, whose files start from base."""
    from luthier.data.seeing import seen_chat

    return partial(seen_chat, base=base)


def _chats(
    data: DataChoice, resolved: Resolved, convert: Convert | None = None
) -> tuple[list[ChatRow], Shape]:
    problems: list[LuthierError] = []
    raw = chain.from_iterable(read_file(file, on_problem=problems.append) for file in resolved.files)
    first = next(raw, None)
    if first is None:
        raise several(problems) if problems else _empty(resolved)
    if convert is None:
        demand_words_alone([first], data.columns)
    shape, mapped = map_rows(
        chain([first], raw),
        format=data.format,
        columns=data.columns,
        system=data.system,
        on_problem=problems.append,
        convert=convert,
    )
    rows = list(mapped)
    if problems:
        raise several(problems)
    return rows, shape


def _empty(resolved: Resolved) -> DataError:
    return DataError(
        "the data set is empty: no row was read",
        file=resolved.files[0].shown,
        hint="give a file with at least a few rows",
    )


def _sources(data: DataChoice, base: Path) -> Sources:
    """All files of a recipe. Raises DataError for a test split with a taken name."""
    taken = next((name for name in data.test if name in ("train", "validation")), None)
    if taken:
        raise DataError(f"data.test.{taken}: a test split cannot have this name", hint="name it test")
    given = ({"validation": data.validation} if data.validation else {}) | data.test
    train, weights = resolve_weighted(data.train, data.weights, base=base)
    return Sources(train, {name: resolve(named, base=base) for name, named in given.items()}, weights)


def _storage(data: DataChoice, sources: Sources) -> tuple[str, list[str]]:
    """Where rendered rows are kept, and what a person should know of it."""
    if data.storage is not None:
        return data.storage, []
    files = [file for part in (sources.train, *sources.given.values()) for file in part.files]
    if source_bytes(files) <= IN_MEMORY:
        return "memory", []
    if find_spec("pyarrow") is None:
        return "memory", ["large files are read into memory: pip install 'luthier[data]' keeps them on disk"]
    folder = next(parent for parent in (cache_dir(), *cache_dir().parents) if parent.is_dir())
    if all(file.kind in KINDS for file in files) and needed_bytes(files) > disk_usage(folder).free:
        return "stream", [f"{folder} has no room for rendered rows: each is rendered when it is needed"]
    return "cache", []


def _parts(recipe: Recipe, sources: Sources, convert: Convert | None = None) -> list[_Part]:
    data = recipe.data
    rows, shape = _chats(data, sources.train, convert)
    files = tuple(file.shown for file in sources.train.files)
    shares = {} if data.test else {"test": data.test_share}
    if not data.validation:
        shares["validation"] = data.validation_share
    pieces = cut(rows, shares, seed=recipe.seed)
    parts = [_Part("train", pieces.pop("train"), files, shape, weights=sources.weights)]
    parts += [_Part(name, piece, files, shape, cut_from_train=True) for name, piece in pieces.items()]
    for name, given in sources.given.items():
        own, own_shape = _chats(data, given, convert)
        parts.append(_Part(name, own, tuple(file.shown for file in given.files), own_shape))
    return parts


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a part, chosen and rendered, one to one."""

    chats: list[ChatRow]
    tokens: list[TokenRow]
    times: list[int]
    """How often each row is seen in an epoch."""
    dropped: dict[str, int]


def _rendered(part: _Part, recipe: Recipe, tokenizer: TextTokenizer, limit: int | None) -> _Rows:
    rows, dropped = part.rows, {}
    most = recipe.data.max_rows
    if part.name == "train" and most is not None and most < len(rows):
        dropped[NOT_CHOSEN] = len(rows) - most
        rows = choose(rows, most, seed=recipe.seed)
    times = times_seen([row.file for row in rows], [row.id for row in rows], part.weights, seed=recipe.seed)
    if 0 in times:
        dropped[UNWEIGHTED] = times.count(0)
        rows = [row for row, count in zip(rows, times, strict=True) if count]
        times = [count for count in times if count]
    problems: list[LuthierError] = []
    infill = infill_of(recipe.data.fim_rate, recipe.seed, tokenizer, limit)
    turned = rows if infill is None else [infill(row, tokenizer) for row in rows]
    tokens = list(render_rows(turned, tokenizer, recipe.data.train_on, on_problem=problems.append))
    problems += [untrained(row) for row in tokens if not row.trained.any()]
    if problems:
        raise several(problems)
    return _Rows(rows, tokens, times, dropped)


def _fitted(
    part: _Part, rows: _Rows, recipe: Recipe, tokenizer: TextTokenizer, limit: int | None
) -> tuple[list[TokenRow], list[int], SplitReport]:
    """Rows no longer than the limit, by the recipe's rule, with the account of those that were."""
    dropped = dict(rows.dropped)
    kept: list[TokenRow] = []
    times: list[int] = []
    originals: list[ChatRow] = []
    truncated = copies = 0
    for chat, row, count in zip(rows.chats, rows.tokens, rows.times, strict=True):
        found = fit(chat, row, limit, recipe.data.over_length)
        if found.dropped is not None:
            if recipe.data.over_length == "error":
                raise _over_length(rows, limit, getattr(tokenizer, "max_length", None))
            dropped[found.dropped] = dropped.get(found.dropped, 0) + 1
            continue
        truncated += found.truncated
        copies += count - 1
        kept += found.pieces
        times += [count] * len(found.pieces)
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
    if part.weights:
        report = report.model_copy(update={"weights": part.weights, "copies": copies})
    return kept, times, report


def _asked(tests: dict[str, Sequence[ChatRow]], tokenizer: TextTokenizer) -> tuple[list[int], list[int]]:
    """Tokens of the prompts and of the expected answers of all test rows. Raises for rows that fail."""
    problems: list[LuthierError] = []
    rows = [row for split in tests.values() for row in split if not is_text(row)]
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


def _over_length(rows: _Rows, limit: int | None, most: int | None) -> DataError:
    chats = [row for chat, row in zip(rows.chats, rows.tokens, strict=True) if not is_text(chat)]
    longest = max(chats, key=lambda row: len(row.ids))
    count = sum(len(row.ids) > (limit or 0) for row in chats)
    named = Longest(len(longest.ids), longest.file, longest.line)
    return over_length_error(count, len(rows.tokens), named, limit, most)


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
    return [NO_END]
