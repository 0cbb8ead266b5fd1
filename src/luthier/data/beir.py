"""BEIR folders: corpus, queries and qrels into ranking rows and a set to judge retrieval on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.messages import RowProblem, content_digest, half_letter
from luthier.data.read import RawRow, Report, read_file
from luthier.data.sources import COMPRESSIONS, Source, source_of
from luthier.errors import DataError, did_you_mean
from luthier.schema.rows import RankingRow, RetrievalSet, TaskRows

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "dev"),
}
_QUERY = ("query-id", "query_id", "qid", "query")
_DOCUMENT = ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "pid", "document")
_GRADE = ("score", "relevance", "label", "rel")


@dataclass(frozen=True, slots=True)
class Beir:
    """The files of one folder."""

    folder: Path
    shown: str
    corpus: Path
    queries: tuple[Path, ...]
    qrels: dict[str, Path]
    """Split as its file is named -> file."""
    asked: str | None = None
    """The split that the source names by itself (a qrels file was given)."""


def beir_of(source: str, base: Path) -> Beir | None:
    """The BEIR folder that a source is or stands in (as one of its qrels files); None for anything else."""
    path = Path(source).expanduser()
    path = path if path.is_absolute() else base / path
    if path.is_dir():
        return _folder(path, source, None)
    if path.is_file() and (path.parent.name == "qrels" or path.name.startswith("qrels")):
        folder = path.parent.parent if path.parent.name == "qrels" else path.parent
        return _folder(folder, source, _split_name(path))
    return None


def _stem(path: Path) -> str:
    name = path.name
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return name.rsplit(".", 1)[0]


def _split_name(path: Path) -> str:
    return re.sub(r"^qrels[_.-]?", "", _stem(path)) or "all"


def _folder(folder: Path, shown: str, asked: str | None) -> Beir | None:
    if not folder.is_dir():
        return None
    files = sorted(member for member in folder.iterdir() if member.is_file())
    corpus = next((file for file in files if _stem(file) == "corpus"), None)
    queries = tuple(file for file in files if re.fullmatch(r"queries([_.-].+)?", _stem(file)))
    inner = sorted((folder / "qrels").iterdir()) if (folder / "qrels").is_dir() else []
    judged = [file for file in files if re.fullmatch(r"qrels([_.-].+)?", _stem(file))]
    qrels = {_split_name(file): file for file in (*inner, *judged) if file.is_file()}
    if corpus is None or not queries or not qrels:
        return None
    return Beir(folder, shown, corpus, queries, qrels, asked)


def judgement_files(beir: Beir) -> tuple[str, ...]:
    """The files of judgements as rows name them."""
    return tuple(_source(file=file, beir=beir).shown for file in beir.qrels.values())


def read_beir(beir: Beir, split: str, broken: Report) -> TaskRows:
    """Ranking rows of one split and its retrieval set.

    broken is told of judgements whose query or document is missing, and of rows that cannot be read.
    Judgements of grade 0 or below give negatives. Raises DataError where the split is not there.
    """
    name, notes = _choose(beir, split)
    file = beir.qrels[name]
    texts = dict(_texts(_source(file=beir.corpus, beir=beir), broken))
    asked = {
        key: value for one in beir.queries for key, value in _texts(_source(file=one, beir=beir), broken)
    }
    grades: dict[str, dict[str, int]] = {}
    lines: dict[str, int] = {}
    kept = 0
    shown = _source(file=file, beir=beir).shown
    for row in read_file(_source(file=file, beir=beir), on_problem=broken):
        try:
            query, document, grade = _judgement(row)
            for key, known, what in ((query, asked, "query"), (document, texts, "document")):
                if key not in known:
                    hint = did_you_mean(key, list(known)[:10_000])
                    raise RowProblem(
                        f"unknown-{what}",
                        f"there is no {what} {key!r}",
                        file=row.file,
                        line=row.line,
                        hint=hint,
                    )
        except RowProblem as problem:
            broken(problem)
            continue
        kept += 1
        grades.setdefault(query, {})[document] = grade
        lines.setdefault(query, row.line)
    rows = []
    for query, judged in grades.items():
        positives = tuple(dict.fromkeys(texts[key] for key, grade in judged.items() if grade > 0))
        if positives:
            negatives = tuple(texts[key] for key, grade in judged.items() if grade <= 0)
            rows.append(_row(asked[query], positives, negatives, shown, lines[query]))
    without = len(grades) - len(rows)
    if without:
        notes += (
            f"{shown}: {without} queries have no relevant document; they are judged on, not trained on",
        )
    used = RetrievalSet({key: asked[key] for key in grades}, texts, grades)
    names = tuple(_source(file=one, beir=beir).shown for one in (beir.corpus, *beir.queries, file))
    columns = {"corpus": names[0], "queries": ", ".join(names[1:-1]), "qrels": names[-1]}
    return TaskRows("beir", rows, columns, retrieval=used, files=names, kept=kept, notes=notes)


def _row(
    query: str, positives: tuple[str, ...], negatives: tuple[str, ...], file: str, line: int
) -> RankingRow:
    whole = content_digest([query, sorted(positives), sorted(negatives)])
    return RankingRow(query, positives, negatives, file, line, whole, content_digest(query))


def _choose(beir: Beir, split: str) -> tuple[str, tuple[str, ...]]:
    if beir.asked is not None:
        return beir.asked, ()
    for name in _SPLITS.get(split, (split,)):
        if name in beir.qrels:
            left = [other for other in beir.qrels if other != name]
            note = f"{beir.shown}: judgements of {name} are read, {', '.join(left)} left aside"
            return name, (note,) if left else ()
    if len(beir.qrels) == 1 and split == "train":
        (name,) = beir.qrels
        return name, (f"{beir.shown}: its only judgements ({name}) are read",)
    raise DataError(
        f"has no judgements for {split}; it has {', '.join(beir.qrels)}",
        file=beir.shown,
        hint="name one: " + " or ".join(str(file.relative_to(beir.folder)) for file in beir.qrels.values()),
    )


def _source(*, file: Path, beir: Beir) -> Source:
    root = Path(beir.shown)
    if beir.asked is not None:
        root = root.parent.parent if root.parent.name == "qrels" else root.parent
    return source_of(file, str(root / file.relative_to(beir.folder)))


def _texts(source: Source, broken: Report) -> Iterator[tuple[str, str]]:
    for row in read_file(source, on_problem=broken):
        key = _pick(row.value, ("_id", "id", "docid", "doc_id", "query_id"))
        parts = [row.value.get("title"), row.value.get("text")]
        text = " ".join(part.strip() for part in parts if isinstance(part, str) and part.strip())
        if key is None or not text:
            what = "id" if key is None else "text"
            broken(RowProblem("missing-field", f"there is no {what}", file=row.file, line=row.line))
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            broken(half_letter(row.file, row.line))
            continue
        yield key, text


def _pick(value: dict[str, Any], names: tuple[str, ...]) -> str | None:
    found = next((value[name] for name in names if value.get(name) is not None), None)
    return None if found is None else str(found)


def _judgement(row: RawRow) -> tuple[str, str, int]:
    values = list(row.value.values())
    query = _pick(row.value, _QUERY)
    document = _pick(row.value, _DOCUMENT)
    grade = _pick(row.value, _GRADE) or "1"
    if query is None or document is None:
        names = ", ".join(row.value)
        raise RowProblem(
            "bad-judgement",
            f"is no judgement: its columns are {names}" if values else "is empty",
            file=row.file,
            line=row.line,
            hint="the first line of qrels names query-id, corpus-id and score, parted by tabs",
        )
    try:
        return query, document, int(float(grade))
    except ValueError:
        raise RowProblem(
            "bad-judgement", f"the score is no number: {grade!r}", file=row.file, line=row.line
        ) from None
