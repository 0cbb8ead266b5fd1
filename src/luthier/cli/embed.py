"""``luthier embed``: vectors of texts by a tuned or a base embedder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from luthier.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_SHOWN = 8
"""Texts whose cosines are shown as a table."""


def embed(
    model: str,
    /,
    *texts: str,
    file: Path | None = None,
    out: Annotated[Path | None, Parameter(name=("--out", "-o"))] = None,
    role: Literal["query", "document", "similarity"] | None = None,
    dims: int | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn texts into vectors, and show which are near.

    Parameters
    ----------
    model
        A run (id, beginning of one, path, or latest), a folder with a saved model, or a base model's name.
    texts
        Texts to embed.
    file
        A file of texts: rows of JSONL, CSV or Parquet with a text column, or one text a line (.txt).
    out
        Write the vectors there, one row a text (NumPy's .npy, float32).
    role
        What the texts are, for models that read queries and documents with different prompts.
    dims
        Keep only the first so many numbers (models trained for it: Matryoshka).
    json
        Print one JSON object with all vectors.
    """
    from luthier.cli.console import err
    from luthier.runs.vectors import answering_model, vectors_of

    inputs = texts_of(texts, file, example='luthier embed RUN "a text" "another", or --file FILE')
    if out is not None and out.suffix != ".npy":
        raise UsageError(
            f"vectors are written as .npy, not {out.suffix or out.name}", hint="name it FILE.npy"
        )
    if dims is not None and dims < 1:
        raise UsageError(f"--dims {dims}: a vector has at least one number")
    folder, name = answering_model(model, "embed", say=lambda words: err().print(words, soft_wrap=True))
    vectors = vectors_of(folder, inputs, model_id=name, role=role, dims=dims)
    if dims is not None and dims > vectors.shape[1]:
        raise UsageError(f"--dims {dims}: this model's vectors have {vectors.shape[1]} numbers")
    if out is not None:
        import numpy as np

        np.save(out, vectors)
    if json:
        _json(folder, inputs, vectors, out)
    else:
        _show(inputs, vectors, out)


def texts_of(texts: tuple[str, ...], file: Path | None, *, example: str) -> list[str]:
    """Texts of the command line or of a file. Raises UsageError for none, or an empty one."""
    if file is not None:
        if texts:
            raise UsageError("give texts or --file, not both")
        from luthier.data.texts import read_texts

        return [one if isinstance(one, str) else one[0] for one in read_texts(file)]
    if not texts:
        raise UsageError("there is no text", hint=example)
    if any(not text.strip() for text in texts):
        raise UsageError("a text is empty")
    return list(texts)


def _json(folder: Path, texts: list[str], vectors: NDArray[np.float32], out: Path | None) -> None:
    from luthier.cli.console import print_json

    found: dict[str, Any] = {"model": str(folder), "texts": len(texts), "dims": int(vectors.shape[1])}
    found |= {"out": str(out)} if out is not None else {"vectors": vectors.tolist()}
    print_json(found)


def _show(texts: list[str], vectors: NDArray[np.float32], out: Path | None) -> None:
    import numpy as np

    from luthier.cli.console import out as console
    from luthier.cli.models import plain

    where = f", written to {out}" if out is not None else ""
    console().print(f"{len(texts)} vectors of {vectors.shape[1]} numbers{where}")
    if not 1 < len(texts) <= MOST_SHOWN:
        return
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    rows = [
        [str(i + 1), *(f"{cosines[i, j]:.3f}" for j in range(len(texts))), _short(text)]
        for i, text in enumerate(texts)
    ]
    console().print("cosine of each with each:", style="dim")
    numbers = tuple(str(i + 1) for i in range(len(texts)))
    plain(("", *numbers, "text"), rows, right=tuple(range(1, len(texts) + 1)))


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."
