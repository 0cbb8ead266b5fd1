"""Typed rows as a model reads them: texts or pairs, their lengths, and the account of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.data.load import OVER_LENGTH, LoadedData
from luthier.data.mine import ByWords, MiningRules, mine
from luthier.data.rows import TaskSplits, load_rows
from luthier.data.stats import digest, lengths
from luthier.data.tokenizer import FileTokenizer
from luthier.errors import DataError, did_you_mean
from luthier.schema.data import DataReport, SplitReport
from luthier.schema.data_profile import LengthProfile
from luthier.schema.protocols import Splits
from luthier.schema.recipe import Purpose, Recipe, RerankingChoice
from luthier.schema.rows import LabelRow, PairRow, RankingRow, Role, TaskRow

Input = str | tuple[str, str]
"""A text, or two that a model reads together."""


def inputs_of(row: TaskRow, purpose: Purpose) -> list[Input]:
    """All that a model reads of one row: a cross-encoder reads query and text together."""
    if purpose == "reranking":
        return [*pairs_of(row)]
    if isinstance(row, LabelRow) and row.pair is not None:
        return [(row.text, row.pair)]
    return [text for text, _ in texts_with_roles(row)]


def texts_with_roles(row: TaskRow) -> list[tuple[str, Role]]:
    """Every text of one row that is read by itself, with what it is, in the row's order."""
    match row:
        case LabelRow():
            return [(row.text, "similarity")]
        case PairRow():
            return [(row.first, "similarity"), (row.second, "similarity")]
        case RankingRow():
            return [(row.query, "query"), *((text, "document") for text in row.documents)]
    raise AssertionError(f"the texts of {type(row).__name__} are not read one by one")


def pairs_of(row: TaskRow) -> list[tuple[str, str]]:
    """A row as queries with one document each, in the row's order."""
    match row:
        case PairRow():
            return [(row.first, row.second)]
        case RankingRow():
            return [(row.query, text) for text in row.documents]
    raise AssertionError(f"{type(row).__name__} has no query")


def load_inputs(
    recipe: Recipe, tokenizer: FileTokenizer, *, base: Path, sequence_length: int | None
) -> LoadedData:
    """Read, split and measure the rows of a recipe that trains no chat.

    sequence_length: longest input in tokens, special tokens counted; the tokenizer's own limit when
    None. Rows that are longer follow ``data.over_length``. Errors as `data.rows.load_rows`.
    """
    rows = load_rows(recipe, base=base)
    if recipe.task == "reranking":
        rows = with_negatives(rows, recipe)
    limit = sequence_length or longest_input(tokenizer, recipe.task)
    parts: dict[str, Sequence[Any]] = {"train": rows.train, "validation": rows.validation, **rows.tests}
    reports = {one.name: one for one in rows.report.splits}
    sizes: dict[str, list[tuple[int, int]]] = {}
    for name, part in parts.items():
        held_out = name in rows.tests
        cuts = held_out or recipe.data.over_length == "truncate"
        measured = _measure(part, recipe.task, tokenizer, truncates=cuts, limit=limit)
        if limit is not None and name in reports:
            part, measured, reports[name] = _fitted(  # noqa: PLW2901
                part, measured, reports[name], recipe, limit, held_out=held_out
            )
        parts[name], sizes[name] = part, measured
        if name in reports:
            longest = lengths([most for most, _ in measured])
            reports[name] = reports[name].model_copy(update={"tokens": longest})
    report = _account(rows.report, [reports[one.name] for one in rows.report.splits], tokenizer)
    train = parts.pop("train")
    validation = parts.pop("validation")
    labels = tuple(name for name in rows.labels if name in _labels_of(train))
    splits = Splits(train, validation, parts, kind=rows.kind, labels=labels, retrieval=rows.retrieval)
    profile = _profile(sizes, parts)
    inputs = sum(len(inputs_of(row, recipe.task)) for row in train) / max(1, len(train))
    return LoadedData(splits, report, profile.model_copy(update={"inputs": max(1.0, inputs)}))


def longest_input(tokenizer: FileTokenizer, purpose: Purpose) -> int | None:
    """Tokens that a model reads at most: an embedder's own word where it says one, else its tokenizer's."""
    if purpose == "similarity" and (file := tokenizer.directory / "sentence_bert_config.json").is_file():
        told = json.loads(file.read_text(encoding="utf-8")).get("max_seq_length")
        if told:
            return int(told)
    return tokenizer.max_length


def with_negatives(rows: TaskSplits, recipe: Recipe) -> TaskSplits:
    """Training and validation rows that have no wrong text get some: those nearest by words (BM25).

    They are looked for among all texts of the split, and in the whole corpus of a retrieval set.
    """
    count = (recipe.reranking or RerankingChoice()).negatives
    found: dict[str, Sequence[TaskRow]] = {}
    notes: list[str] = []
    for name, part in (("train", rows.train), ("validation", rows.validation)):
        bare = [row for row in part if isinstance(row, RankingRow) and not row.negatives]
        if not bare or not count:
            found[name] = part
            continue
        held = rows.retrieval.get("validation") if rows.kind == "beir" else None
        corpus = list(held.corpus.values()) if held is not None else _texts(rows.train)
        rules = MiningRules(count=count, depth=max(50, 5 * count), seed=recipe.seed)
        mined = mine([(row.query, row.positives) for row in bare], corpus, ByWords, rules)
        taken = {id(row): one.negatives for row, one in zip(bare, mined.rows, strict=True)}
        found[name] = [
            replace(row, negatives=taken[id(row)])
            if isinstance(row, RankingRow) and id(row) in taken
            else row
            for row in part
        ]
        given = sum(map(len, taken.values()))
        notes.append(
            f"{given:,} negatives for {len(bare):,} {name} rows that have none were found by words (BM25)"
        )
    report = rows.report.model_copy(update={"notes": (*rows.report.notes, *notes)})
    return replace(rows, train=found["train"], validation=found["validation"], report=report)


def _texts(rows: Sequence[TaskRow]) -> list[str]:
    return [text for row in rows if isinstance(row, RankingRow) for text in row.documents]


def check_labels(recipe: Recipe, splits: Splits, report: DataReport) -> tuple[str, ...]:
    """Labels of the head, in the data's order; the out-of-scope one is none of them.

    Labels that the recipe names are kept in its order. Errors: DataError for a single label, for rows
    without any, and for a label that stands in a named validation or test file and in no training row.
    """
    choice = recipe.classification
    outside = choice.out_of_scope if choice is not None else None
    found = tuple(label for label in splits.labels if label != outside)
    many = recipe.task == "multi-label-classification"
    named = choice.labels if choice is not None else None
    if named is not None:
        _demand_known(splits.train, {*named, outside}, "train", "classification.labels does not name it")
    if not found:
        raise DataError(
            "no training row has a label: all of them are empty",
            file=splits.train[0].file if splits.train else None,
            hint="check data.columns: label columns hold 0 or 1, lists hold names",
        )
    if len(found) == 1 and not many:
        raise DataError(
            f"all training rows have the one label {found[0]!r}: there is nothing to tell apart",
            file=splits.train[0].file,
            hint="give rows of at least two classes, or map another column with data.columns.label",
        )
    known = {*(named or found), outside}
    given = {one.name for one in report.splits if not one.cut_from_train}
    for name, rows in (("validation", splits.validation), *splits.tests.items()):
        if name in given:
            _demand_known(rows, known, name, "it stands in no training row, so the model cannot answer it")
    return named or found


def _demand_known(rows: Sequence[Any], known: set[str | None], split: str, why: str) -> None:
    for row in rows:
        if strange := [label for label in row.labels if label not in known]:
            count = sum(any(label not in known for label in one.labels) for one in rows)
            raise DataError(
                f"{count} rows of {split} have a label that is not known: {strange[0]!r}; {why}",
                file=row.file,
                line=row.line,
                hint=did_you_mean(strange[0], [label for label in known if label])
                or "add training rows with it, take these rows out, or name it as "
                "classification.out_of_scope if it means none of the classes",
            )


def _labels_of(rows: Sequence[TaskRow]) -> set[str]:
    return {label for row in rows if isinstance(row, LabelRow) for label in row.labels}


def _measure(
    rows: Sequence[TaskRow],
    purpose: Purpose,
    tokenizer: FileTokenizer,
    *,
    truncates: bool,
    limit: int | None,
) -> list[tuple[int, int]]:
    """For each row: tokens of its longest input, and of all of its inputs."""
    inputs = [inputs_of(row, purpose) for row in rows]
    flat = tokenizer.encode_inputs([one for part in inputs for one in part])
    # What the model cannot read is cut whatever the sequence length, so it counts for no plan.
    most = min(limit or 2**31, tokenizer.max_length or 2**31)
    counts = iter([min(len(ids), most) if truncates else len(ids) for ids, _ in flat])
    found = []
    for part in inputs:
        own = [next(counts) for _ in part]
        found.append((max(own), sum(own)))
    return found


def _fitted(
    rows: Sequence[Any],
    sizes: list[tuple[int, int]],
    report: SplitReport,
    recipe: Recipe,
    limit: int,
    *,
    held_out: bool,
) -> tuple[Sequence[Any], list[tuple[int, int]], SplitReport]:
    """Rows by the recipe's rule for those that are too long; held-out ones are always kept and cut."""
    over = [index for index, (most, _) in enumerate(sizes) if most > limit]
    if not over:
        return rows, sizes, report
    rule = recipe.data.over_length
    if rule == "error" and not held_out:
        worst = max(over, key=lambda index: sizes[index][0])
        raise DataError(
            f"{len(over)} of {len(rows)} rows of {report.name} are longer than {limit:,} tokens; the longest "
            f"has {sizes[worst][0]:,}",
            file=rows[worst].file,
            line=rows[worst].line,
            hint="set data.over_length: truncate (cuts their ends, as is usual for encoders) or drop, or "
            "take a model with a longer context",
        )
    if rule == "drop" and not held_out:
        gone = set(over)
        kept = [row for index, row in enumerate(rows) if index not in gone]
        if not kept:
            raise DataError(
                f"no row of {report.name} is left: all are longer than {limit:,} tokens",
                hint="set data.over_length: truncate, or raise training.sequence_length",
            )
        left = [size for index, size in enumerate(sizes) if index not in gone]
        return (
            kept,
            left,
            report.model_copy(
                update={
                    "kept": len(kept),
                    "dropped": {**report.dropped, OVER_LENGTH: len(over)},
                    "digest": digest(sorted(row.id for row in kept)),
                }
            ),
        )
    return rows, sizes, report.model_copy(update={"truncated": len(over)})


def _account(report: DataReport, splits: Sequence[SplitReport], tokenizer: FileTokenizer) -> DataReport:
    return report.model_copy(
        update={
            "splits": tuple(splits),
            "tokenizer_digest": tokenizer.digest,
            "digest": digest([*(f"{one.name}={one.digest}" for one in splits), tokenizer.digest]),
        }
    )


def _profile(sizes: dict[str, list[tuple[int, int]]], tests: dict[str, Sequence[Any]]) -> LengthProfile:
    """Lengths of the longest input a row; the total counts every input."""

    def profile(name: str) -> Any:
        found = lengths([most for most, _ in sizes[name]])
        return found.model_copy(update={"total": sum(whole for _, whole in sizes[name])})

    train = profile("train")
    asked = [size for name in tests for size in sizes[name]]
    return LengthProfile(
        train=train,
        trained_tokens=train.total,
        validation=profile("validation") if sizes["validation"] else None,
        prompts=lengths([most for most, _ in asked]) if asked else None,
    )
