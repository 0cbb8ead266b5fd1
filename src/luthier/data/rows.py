"""Files into typed rows for classification, similarity, reranking and preferences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from luthier.data.beir import beir_of, judgement_files, read_beir
from luthier.data.fit import NOT_CHOSEN, UNWEIGHTED, repeated, times_seen, weighed
from luthier.data.layouts import Layout, parts_of, tell
from luthier.data.messages import (
    RowProblem,
    half_letter,
)
from luthier.data.read import RawRow, Report, read_file
from luthier.data.shapes import several
from luthier.data.sources import resolve
from luthier.data.splits import choose, cut
from luthier.data.stats import digest
from luthier.data.typed import row_maker
from luthier.data.vision import demand_words_alone
from luthier.errors import DataError, LuthierError
from luthier.schema.data import DataReport, SplitReport
from luthier.schema.recipe import DataChoice, Recipe
from luthier.schema.rows import (
    LabelRow,
    RankingRow,
    RetrievalSet,
    RowPurpose,
    TaskRow,
    TaskRows,
)

_LOOKED_AT = 50


@dataclass(frozen=True)
class TaskSplits:
    """Rows of a recipe for training, validation and proof, with the account of them."""

    kind: str
    train: Sequence[TaskRow]
    validation: Sequence[TaskRow]
    tests: dict[str, Sequence[TaskRow]]
    labels: tuple[str, ...]
    """All labels that training, validation or test rows have, in a stable order."""
    retrieval: dict[str, RetrievalSet]
    """Split -> its corpus and judgements: BEIR's own, else made of the split's queries and texts."""
    report: DataReport


def rows_for(
    purpose: RowPurpose,
    data: DataChoice,
    sources: tuple[str, ...],
    *,
    base: Path,
    split: str = "train",
    on_problem: Report | None = None,
) -> TaskRows:
    """Read files, folders, globs and BEIR folders (relative to base) as rows of a purpose.

    split: which judgements of a BEIR folder are wanted. on_problem is told of each row that cannot be
    used, which is then left out and counted; without it one DataError names the first several.
    Raises RecipeError for wrong column roles, FileProblem, and DataError where no layout fits.
    """
    problems: list[LuthierError] = []
    dropped: Counter[str] = Counter()

    def broken(problem: LuthierError) -> None:
        dropped[getattr(problem, "code", "broken-row")] += 1
        (on_problem or problems.append)(problem)

    folders = {source: beir_of(source, base) for source in sources} if ranks(purpose) else {}
    plain = tuple(source for source in sources if not folders.get(source))
    parts = [
        read_beir(folder, split, broken) for source in sources if (folder := folders.get(source)) is not None
    ]
    if plain:
        parts += _files(purpose, data, plain, base, broken)
    if problems:
        raise several(problems)
    kinds = list(dict.fromkeys(part.kind for part in parts))
    rows = [row for part in parts for row in part.rows]
    if not rows:
        raise DataError(
            "the data set is empty: no row can be used",
            file=next((file for part in parts for file in part.files), sources[0]),
            hint="give a file with at least a few rows",
        )
    alone = next((kind for kind in ("scored-pairs", "labelled") if kind in kinds), None)
    if alone is not None and len(kinds) > 1:
        raise DataError(
            f"{alone.replace('-', ' ')} rows stand beside {', '.join(k for k in kinds if k != alone)}",
            file=sources[0],
            hint="train on one kind, or map all of them to one with data.columns",
        )
    return TaskRows(
        kind=kinds[0] if len(kinds) == 1 else "query-positives-negatives",
        rows=rows,
        columns=parts[0].columns,
        labels=_ordered(parts),
        retrieval=_joined([part.retrieval for part in parts if part.retrieval is not None]),
        files=tuple(file for part in parts for file in part.files),
        read=sum(part.kept for part in parts) + sum(dropped.values()),
        kept=sum(part.kept for part in parts),
        dropped=dict(dropped),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def ranks(purpose: RowPurpose) -> bool:
    """Whether a purpose reads rankings and pairs, BEIR folders among them."""
    return purpose in ("similarity", "reranking")


def _files(
    purpose: RowPurpose, data: DataChoice, sources: tuple[str, ...], base: Path, broken: Report
) -> Iterator[TaskRows]:
    """Rows of each file with its own layout."""
    resolved = resolve(sources, base=base)
    notes = resolved.notes
    for file in resolved.files:
        raw = read_file(file, on_problem=broken)
        first = list(islice(raw, _LOOKED_AT))
        if not first:
            continue
        demand_words_alone(first, data.columns)
        layout = tell(purpose, first, columns=data.columns, delimiter=data.label_delimiter)
        rows = list(_mapped(chain(first, raw), layout, data, broken))
        yield TaskRows(
            kind=layout.kind,
            rows=rows,
            columns=layout.columns,
            labels=_labels(rows, layout, first),
            files=(file.shown,),
            kept=len(rows),
            notes=(*notes, *layout.notes),
        )
        notes = ()


def _mapped(rows: Iterable[RawRow], layout: Layout, data: DataChoice, broken: Report) -> Iterator[TaskRow]:
    make = row_maker(layout, data.system)
    for row in rows:
        try:
            made = make(row)
        except RowProblem as problem:
            broken(problem)
        except UnicodeEncodeError:
            broken(half_letter(row.file, row.line))
        else:
            yield made


def _labels(rows: Sequence[TaskRow], layout: Layout, first: Sequence[RawRow]) -> tuple[str, ...]:
    expression = layout.columns.get("labels")
    columns = parts_of(expression, list(first[0].value)) if expression else []
    if len(columns) > 1:
        return tuple(columns)
    return label_order(label for row in rows if isinstance(row, LabelRow) for label in row.labels)


def label_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: whole numbers by size, then texts by letters."""
    return tuple(sorted(set(labels), key=lambda name: (0, int(name), name) if _whole(name) else (1, 0, name)))


def _whole(name: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", name) is not None


def _ordered(parts: Sequence[TaskRows]) -> tuple[str, ...]:
    orders = list(dict.fromkeys(part.labels for part in parts))
    return orders[0] if len(orders) == 1 else label_order(chain.from_iterable(orders))


def _joined(sets: Sequence[RetrievalSet]) -> RetrievalSet | None:
    if len(sets) < 2:
        return sets[0] if sets else None
    queries: dict[str, str] = {}
    corpus: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for number, one in enumerate(sets):  # ids are only unique within their folder
        queries |= {f"{number}/{key}": text for key, text in one.queries.items()}
        corpus |= {f"{number}/{key}": text for key, text in one.corpus.items()}
        relevance |= {
            f"{number}/{query}": {f"{number}/{key}": grade for key, grade in grades.items()}
            for query, grades in one.relevance.items()
        }
    return RetrievalSet(queries, corpus, relevance)


def retrieval_of(rows: Sequence[TaskRow]) -> RetrievalSet | None:
    """Queries of ranking rows to be answered from all texts of those rows; None for other rows."""
    ranked = [row for row in rows if isinstance(row, RankingRow)]
    if not ranked:
        return None
    corpus: dict[str, str] = {}
    places: dict[str, str] = {}
    for text in dict.fromkeys(text for row in ranked for text in row.documents):
        places[text] = f"d{len(corpus)}"
        corpus[places[text]] = text
    queries: dict[str, str] = {}
    names: dict[str, str] = {}
    relevance: dict[str, dict[str, int]] = {}
    for row in ranked:
        name = names.setdefault(row.query, f"q{len(names)}")
        queries[name] = row.query
        grades = relevance.setdefault(name, {})
        grades.update({places[text]: 0 for text in row.negatives if places[text] not in grades})
        grades.update({places[text]: 1 for text in row.positives})
    return RetrievalSet(queries, corpus, relevance)


class _Others(Mapping[str, int]):
    """All documents of a class but one, each relevant, without a copy of them."""

    def __init__(self, members: Mapping[str, int], without: str) -> None:
        self._members, self._without = members, without

    def __getitem__(self, name: str) -> int:
        if name == self._without:
            raise KeyError(name)
        return self._members[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._members if name != self._without)

    def __len__(self) -> int:
        return len(self._members) - 1


def alike_of(rows: Sequence[TaskRow]) -> RetrievalSet | None:
    """Texts of a class each, to be answered by the other texts of it; None where no two are of one class."""
    found = {(row.text, row.labels[0]): row for row in rows if isinstance(row, LabelRow)}
    corpus: dict[str, str] = {}
    members: dict[str, dict[str, int]] = {}
    for place, (text, label) in enumerate(found):
        corpus[f"d{place}"] = text
        members.setdefault(label, {})[f"d{place}"] = 1
    relevance = {name: _Others(alike, name) for alike in members.values() if len(alike) > 1 for name in alike}
    queries = {name: corpus[name] for name in relevance}
    return RetrievalSet(queries, corpus, relevance, among=True) if queries else None


def load_rows(recipe: Recipe, *, base: Path, purpose: RowPurpose | None = None) -> TaskSplits:
    """All splits of a recipe that trains no chat; purpose: the recipe's own where not given.

    Splits that the recipe does not name are cut from train by seed and content; equal texts, queries,
    prompts and groups stay on one side. Errors as rows_for, and DataError where rows are too few.
    """
    data, wanted = recipe.data, purpose or recipe.task
    whole = rows_for(wanted, data, data.train, base=base)
    shares = {} if data.test else {"test": data.test_share}
    if not data.validation:
        shares["validation"] = data.validation_share
    pieces = cut(whole.rows, shares, seed=recipe.seed, key=lambda row: row.key)
    train = pieces.pop("train")
    read = {"train": whole}
    given = ({"validation": data.validation} if data.validation else {}) | data.test
    for name, sources in given.items():
        if name in ("train", "validation") and name in data.test:
            raise DataError(f"data.test.{name}: a test split cannot have this name", hint="name it test")
        read[name] = rows_for(wanted, data, sources, base=base, split=name)
        pieces[name] = list(read[name].rows)
    notes = [note for part in read.values() for note in part.notes]
    if data.max_rows is not None and data.max_rows < len(train):
        chosen = choose(train, data.max_rows, seed=recipe.seed)
    else:
        chosen = train
    unchosen = len(train) - len(chosen)
    weights = _weights(data, base)
    times = times_seen([row.file for row in chosen], [row.id for row in chosen], weights, seed=recipe.seed)
    once = [row for row, count in zip(chosen, times, strict=True) if count]
    dropped = {NOT_CHOSEN: unchosen} if unchosen else {}
    if len(once) < len(chosen):
        dropped[UNWEIGHTED] = len(chosen) - len(once)
    labels = _ordered(list(read.values())) if whole.labels else ()
    new = [name for name in labels if name not in set(whole.labels)]
    if new and whole.kind != "labelled":
        notes.append(
            f"{len(new)} labels stand in no training row and can never be right: {', '.join(new[:5])}"
        )
    keys, ids = {row.key for row in train}, {row.id for row in train}
    leakage = {name: sum(row.id in ids for row in rows) for name, rows in pieces.items()}
    asked = {
        name: sum(row.id not in ids and row.key in keys for row in rows) for name, rows in pieces.items()
    }
    notes += [
        f"{count} of the {name} rows stand in the training rows too: scores on them prove nothing"
        for name, count in leakage.items()
        if count
    ]
    echoes = [row for row in train if isinstance(row, RankingRow) and row.echoes]
    if echoes:
        notes.append(
            f"the query of {len(echoes)} training rows is its own positive (first: {echoes[0].file}:"
            f"{echoes[0].line}): such a pair only teaches what the text is unlike"
        )
    account = _report("train", whole, once, dropped, cut=False)
    if weights:
        copies = sum(times) - len(once)
        account = account.model_copy(update={"weights": weights, "copies": copies})
    reports = [account]
    reports += [
        _report(name, read.get(name, whole), rows, {}, cut=name not in read) for name, rows in pieces.items()
    ]
    validation = pieces.pop("validation", [])
    held = {"validation": validation, **pieces}
    made = alike_of if whole.kind == "labelled" else retrieval_of
    sets = {
        name: found
        for name, rows in held.items()
        if (found := (read[name].retrieval if name in read else None) or made(rows)) is not None
    }
    if whole.retrieval is not None:  # cut from a BEIR folder: the corpus is still all of it
        sets |= {
            name: _part_of(whole.retrieval, rows) for name, rows in held.items() if name not in read and rows
        }
    report = DataReport(
        format=whole.kind,
        version=_version(recipe, base),
        columns=whole.columns,
        splits=tuple(reports),
        leakage=leakage,
        prompt_leakage=asked,
        digest=digest([*(f"{one.name}={one.digest}" for one in reports), *weighed(weights)]),
        notes=tuple(dict.fromkeys(notes)),
    )
    return TaskSplits(whole.kind, repeated(chosen, times), validation, dict(pieces), labels, sets, report)


def _weights(data: DataChoice, base: Path) -> dict[str, float]:
    """File -> weight, where that is not 1; a BEIR folder's rows stand in its judgements."""
    found: dict[str, float] = {}
    for source, weight in zip(data.train, data.weights, strict=False):
        folder = beir_of(source, base)
        if folder is not None:
            found |= dict.fromkeys(judgement_files(folder), weight)
        else:
            found |= {file.shown: weight for file in resolve((source,), base=base).files}
    return {file: weight for file, weight in found.items() if weight != 1}


def _version(recipe: Recipe, base: Path) -> str | None:
    from luthier.data.load import version_of
    from luthier.data.versions import sources_of

    return version_of(recipe, sources_of(recipe, base=base))


def _part_of(whole: RetrievalSet, rows: Sequence[TaskRow]) -> RetrievalSet:
    texts = {row.query for row in rows if isinstance(row, RankingRow)}
    queries = {key: text for key, text in whole.queries.items() if text in texts}
    return replace(whole, queries=queries, relevance={key: whole.relevance[key] for key in queries})


def _report(
    name: str, source: TaskRows, kept: Sequence[TaskRow], dropped: dict[str, int], *, cut: bool
) -> SplitReport:
    return SplitReport(
        name=name,
        files=source.files,
        cut_from_train=cut,
        read=len(kept) + sum(dropped.values()),
        kept=len(kept),
        dropped=dropped,
        duplicates=len(kept) - len({row.id for row in kept}),
        digest=digest(sorted(row.id for row in kept)),
    )
