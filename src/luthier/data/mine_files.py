"""Files of pairs, or of queries, corpus and judgements, into rows with mined negatives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from luthier.data.columns import as_text
from luthier.data.kinds import Kind, detect_kind
from luthier.data.mine import ByWords, MakeSearch, Mined, MiningRules, mine
from luthier.data.read import RawRow, read_file
from luthier.data.sources import Source, resolve
from luthier.errors import DataError, UsageError
from luthier.schema.data import MiningReport

_LOOKED_AT = 50
_WITH_POSITIVE = ("pair", "triplet")
_EXAMPLE = "pairs have the columns query and positive (or anchor and positive, sentence1 and sentence2)"


@dataclass(slots=True)
class _Read:
    """What files give for mining."""

    pairs: dict[str, list[str]] = field(default_factory=dict)
    """Query -> its positives, in order."""
    corpus: list[str] = field(default_factory=list)
    by_id: dict[str, str] = field(default_factory=dict)
    queries: dict[str, str] = field(default_factory=dict)
    judged: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def mine_files(
    sources: tuple[str, ...],
    out: Path,
    *,
    base: Path,
    corpus: tuple[str, ...] = (),
    make_search: MakeSearch = ByWords,
    by: str = "words (BM25)",
    rules: MiningRules | None = None,
) -> MiningReport:
    """Write ``{"query", "positive", "negatives"}`` rows to out, one for each query and positive.

    sources: files of pairs or triplets, or a BEIR set (corpus, queries and qrels). corpus: further texts
    to choose from. Raises DataError where there are no pairs, and what reading raises.
    """
    read = _Read()
    resolved = resolve(sources, base=base)
    if out.resolve() in [file.path.resolve() for file in resolved.files]:
        raise UsageError("the mined file cannot replace its source", file=out, hint="name another file")
    for file in resolved.files:
        _take(file, read)
    _judge(read)
    for file in resolve(corpus, base=base).files if corpus else ():
        read.corpus += [text for row in read_file(file) if (text := _document(row.value))]
    if not read.pairs:
        raise DataError("no pair was read", file=resolved.files[0].shown, hint=_EXAMPLE)
    mined = mine(list(read.pairs.items()), read.corpus, make_search, rules)
    _write(mined, out)
    return MiningReport(
        files=tuple(file.shown for file in resolved.files),
        queries=len(read.pairs),
        corpus=len({*read.corpus, *chain.from_iterable(read.pairs.values())}),
        negatives=sum(len(row.negatives) for row in mined.rows),
        short=mined.short,
        left_out=mined.left_out,
        notes=tuple(read.notes),
        by=by,
        out=str(out),
    )


def _take(file: Source, read: _Read) -> None:
    rows = read_file(file)
    first = list(islice(rows, _LOOKED_AT))
    if not first:
        return
    kind = detect_kind(list(dict.fromkeys(chain.from_iterable(row.value for row in first))), first[0].value)
    name = kind.name if kind else "unknown"
    every = chain(first, rows)
    if kind is not None and name in _WITH_POSITIVE:
        for row in every:
            query, positive = _cell(row, kind.texts[0]), _cell(row, kind.texts[1])
            _add(read, query, positive)
        if name == "triplet":
            read.notes.append(f"{file.shown}: its own negatives are not among the mined ones")
    elif name == "qrels" and kind is not None:
        read.judged += _judgements(every, kind)
    elif name in ("corpus", "queries"):
        held = read.by_id if name == "corpus" else read.queries
        for row in every:
            held[str(row.value.get("_id"))] = _document(row.value)
    else:
        raise DataError(
            f"negatives are mined for pairs, and these rows are {name}", file=file.shown, hint=_EXAMPLE
        )


def _add(read: _Read, query: str, positive: str) -> None:
    positives = read.pairs.setdefault(query, [])
    if positive not in positives:
        positives.append(positive)


def _judgements(rows: Iterable[RawRow], kind: Kind) -> list[tuple[str, str]]:
    """Pairs of ids that are judged relevant."""
    found = []
    for row in rows:
        score = row.value.get(kind.label) if kind.label else 1
        if float(score or 0) > 0:
            found.append((str(row.value[kind.texts[0]]), str(row.value[kind.texts[1]])))
    return found


def _judge(read: _Read) -> None:
    """Join judgements with the texts of their ids."""
    lost = 0
    for query, document in read.judged:
        if query in read.queries and document in read.by_id:
            _add(read, read.queries[query], read.by_id[document])
        else:
            lost += 1
    if lost:
        read.notes.append(f"{lost} judgements name a query or text that no file holds")
    read.corpus += read.by_id.values()


def _cell(row: RawRow, column: str) -> str:
    value = row.value.get(column)
    text = "" if value is None else as_text(value)
    if not text.strip():
        raise DataError(
            f"the column {column} is empty",
            file=row.file,
            line=row.line,
            hint="fill it in, or write a cleaned file with `luthier data check FILE --fix OUT`",
        )
    return text


def _document(value: dict[str, Any]) -> str:
    """Title and text of a row of a corpus, or its only text."""
    title = str(value.get("title") or "").strip()
    text = next(
        (str(value[name]) for name in ("text", "content", "passage", "document") if value.get(name)), ""
    )
    if not text:
        texts = [
            one for name, one in value.items() if isinstance(one, str) and name not in ("_id", "id", "title")
        ]
        text = texts[0] if len(texts) == 1 else ""
    return f"{title}\n{text}".strip() if title and title not in text else text


def _write(mined: Mined, out: Path) -> None:
    unfinished = out.with_name(out.name + ".part")
    with unfinished.open("w", encoding="utf-8") as stream:
        for row in mined.rows:
            for positive in row.positives:
                line = {"query": row.query, "positive": positive, "negatives": list(row.negatives)}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
    unfinished.replace(out)
