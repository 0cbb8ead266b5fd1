"""``luthier rerank``: documents in the order of their relevance for a query."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.errors import UsageError


def rerank(
    model: str,
    /,
    *documents: str,
    query: Annotated[str, Parameter(name=("--query", "-q"))],
    file: Path | None = None,
    top: int | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Order documents by how well they answer a query, the best first.

    Parameters
    ----------
    model
        A run (id, beginning of one, path, or latest), a folder with a saved reranker, or a model's name.
    documents
        Texts to order.
    query
        What is asked.
    file
        A file of documents: rows of JSONL, CSV or Parquet with a text column, or one a line (.txt).
    top
        Show only so many.
    json
        Print one JSON object.
    """
    from luthier.cli.console import err, out, print_json
    from luthier.cli.embed import texts_of
    from luthier.runs.vectors import answering_model, scores_of

    if not query.strip():
        raise UsageError("the query is empty")
    if top is not None and top < 1:
        raise UsageError(f"--top {top}: show at least one")
    texts = texts_of(documents, file, example='luthier rerank RUN --query "..." "a document" "another"')
    folder, _ = answering_model(model, "rerank", say=lambda words: err().print(words, soft_wrap=True))
    scores = scores_of(folder, query, texts)
    order = sorted(range(len(texts)), key=lambda i: -scores[i])[:top]
    if json:
        ranking = [{"document": i, "score": scores[i], "text": texts[i]} for i in order]
        print_json({"model": str(folder), "query": query, "ranking": ranking})
        return
    for place, i in enumerate(order, 1):
        line = " ".join(texts[i].split())
        out().print(f"{place:>3}  {scores[i]:>8.4f}  {line[:200]}", markup=False, soft_wrap=True)
