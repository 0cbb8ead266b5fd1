"""``luthier data split`` and ``luthier data mine``: commands that write data files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.padding import Padding

from luthier.cli.console import err, out, print_json
from luthier.cli.story import columns, grid
from luthier.errors import UsageError
from luthier.schema.data import FileSplitReport, MiningReport

if TYPE_CHECKING:
    from luthier.data.mine import MakeSearch

Flag = Annotated[bool, Parameter(negative="")]


def split(
    *files: Path,
    to: Annotated[Path | None, Parameter(name=("--to", "-o"))] = None,
    test: float = 0.1,
    validation: float = 0.0,
    seed: int = 17,
    stratify: str | None = None,
    group: str | None = None,
    near: bool = True,
    dry_run: Flag = False,
    overwrite: Flag = False,
    json: Flag = False,
) -> None:
    """Part files into train, validation and test: seeded, by label shares, nothing on two sides.

    Parameters
    ----------
    files
        Files, folders or globs.
    to
        Folder for train.jsonl, test.jsonl, validation.jsonl and split.json.
    test
        Share of the rows for test; 0 for none.
    validation
        Share of the rows for validation; 0 for none.
    seed
        Another seed gives another split.
    stratify
        Column whose shares every part keeps. Labels are found where rows have some.
    group
        Column of what has to stay together: a person, a document, a shop.
    near
        Keep nearly equal rows together too.
    dry_run
        Say how the rows would be parted and write nothing.
    overwrite
        Replace files that are there already.
    json
        Print one JSON object.
    """
    from luthier.data.partition import Parting, split_files

    if not files:
        raise UsageError("name at least one file", hint="luthier data split data.jsonl --to splits")
    if to is None and not dry_run:
        raise UsageError("where to?", hint="add --to FOLDER, or --dry-run to see the shares only")
    shares = {name: share for name, share in (("test", test), ("validation", validation)) if share}
    if not shares:
        raise UsageError("every row would stay in train", hint="give --test or --validation a share")
    parting = Parting(shares, seed=seed, stratify=stratify, group=group, near=near)
    found = split_files(
        tuple(map(str, files)), None if dry_run else to, parting, base=Path.cwd(), overwrite=overwrite
    )
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _show_split(found)


def _show_split(found: FileSplitReport) -> None:
    table = columns("part", "rows", "share", "file", numbers=(1, 2))
    for part in found.parts:
        table.add_row(
            part.name, f"{part.rows:,}", f"{part.rows / found.read:.1%}", part.path or "not written"
        )
    out().print(Padding(table, (1, 0, 1, 2)))
    together = ", ".join(f"{count:,} {reason}" for reason, count in found.together.items())
    labels = {name for part in found.parts for name in part.labels}
    facts = [
        (
            "rows",
            f"{found.read:,} read = " + " + ".join(f"{part.rows:,} {part.name}" for part in found.parts),
        ),
        ("seed", str(found.seed)),
        ("stay together", f"with an earlier row: {together}" if together else "no row needs to"),
        (
            "shares kept",
            f"of {found.stratified_by} ({len(labels)} values)" if found.stratified_by else "of nothing",
        ),
        *(("note", note) for note in found.notes),
    ]
    out().print(grid(facts))


def mine(
    *files: Path,
    to: Annotated[Path, Parameter(name=("--to", "-o"))],
    corpus: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    negatives: int = 5,
    depth: int = 100,
    skip: int = 0,
    most_of_positive: float = 0.95,
    margin: float | None = None,
    choose: Literal["top", "random"] = "top",
    seed: int = 17,
    by: str | None = None,
    json: Flag = False,
) -> None:
    """Find hard negatives for pairs: texts that look like the answer and are not.

    Parameters
    ----------
    files
        Pairs (query and positive), or queries, corpus and qrels of a retrieval set.
    to
        JSONL file to write: one row for each query and positive, with its negatives.
    corpus
        Further texts to choose from; the positives of the other queries always are.
    negatives
        How many for each query.
    depth
        How many of the nearest texts are looked at.
    skip
        How many of the nearest are passed over.
    most_of_positive
        A negative's score is at most this share of its positive's: what is nearer may be right too.
    margin
        A negative's score is at least this much below its positive's.
    choose
        The hardest, or any of those looked at.
    seed
        Of the random choice.
    by
        An embedder that tells what is near: a run, a folder or a model's name; by words (BM25) without.
    json
        Print one JSON object.
    """
    from luthier.data.mine import ByWords, MiningRules
    from luthier.data.mine_files import mine_files

    if not files:
        raise UsageError("name at least one file", hint="luthier data mine pairs.jsonl --to mined.jsonl")
    rules = MiningRules(
        count=negatives,
        depth=depth,
        skip=skip,
        most_of_positive=most_of_positive,
        margin=margin,
        choose=choose,
        seed=seed,
    )
    found = mine_files(
        tuple(map(str, files)),
        to,
        base=Path.cwd(),
        corpus=tuple(map(str, corpus)),
        make_search=ByWords if by is None else _by_model(by),
        by="words (BM25)" if by is None else f"vectors of {by}",
        rules=rules,
    )
    if json:
        print_json(found.model_dump(mode="json"))
    else:
        _show_mined(found)


def _by_model(name: str) -> MakeSearch:
    """Compare by the vectors of an embedder, its queries and documents each with their own prompt."""
    from luthier.data.mine import by_vectors
    from luthier.runs.vectors import answering_model, vectors_of

    folder, model_id = answering_model(name, "embed", say=lambda words: err().print(words, soft_wrap=True))
    return by_vectors(
        lambda texts: vectors_of(folder, texts, model_id=model_id, role="query"),
        lambda texts: vectors_of(folder, texts, model_id=model_id, role="document"),
    )


def _show_mined(found: MiningReport) -> None:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out.items())
    facts = [
        ("wrote", found.out or ""),
        ("queries", f"{found.queries:,}, compared with {found.corpus:,} texts by {found.by}"),
        ("negatives", f"{found.negatives:,}"),
        ("left out", left_out or "nothing"),
        *([("short", f"{found.short:,} queries have fewer than asked for")] if found.short else []),
        *(("note", note) for note in found.notes),
    ]
    out().print(grid(facts))
