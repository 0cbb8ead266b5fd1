"""Answers of a saved model that writes no chat: ``python -m luthier.tasks.answer KIND FOLDER``.

Reads one JSON array of inputs from standard input and writes one JSON array of answers, in a process of
its own, so that whoever asks never loads torch. A failure is one JSON object with message and hint.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from luthier.errors import LuthierError, UsageError


def answers(kind: str, folder: Path, inputs: list[Any], settings: dict[str, Any]) -> list[Any]:
    """Answers to inputs in their order, from a model in this process.

    settings: what a kind takes besides. Errors: as the kind's own.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    match kind:
        case "classify":
            from luthier.tasks.labels import SavedClassifier

            found = SavedClassifier(folder, device=device)
            return found.classify([tuple(one) if isinstance(one, list) else one for one in inputs])
        case "generate":
            from luthier.tasks.generation import continue_texts

            return continue_texts(folder, inputs, device=device, **settings)
        case "embed":
            return _embed(folder, inputs, settings, device)
        case "rerank":
            from luthier.data.tokenizer import load_tokenizer
            from luthier.tasks.reranking import load_saved_reranker

            scorer = load_saved_reranker(folder, load_tokenizer(folder), device=device)
            return [float(score) for score in scorer.score([(query, text) for query, text in inputs])]
        case _:
            raise UsageError(f"{kind} is not a kind of answer", hint="classify, generate, embed or rerank")


def _embed(folder: Path, texts: list[str], settings: dict[str, Any], device: str) -> list[Any]:
    """Vectors into the file ``settings["out"]`` (NumPy's own format); the answer is their shape."""
    import numpy as np

    from luthier.data.tokenizer import load_tokenizer
    from luthier.tasks.vectors import load_embedder

    embedder = load_embedder(
        folder,
        load_tokenizer(folder),
        model_id=settings["model_id"],
        device=device,
        role=settings.get("role"),
        dims=settings.get("dims"),
    )
    vectors = embedder.encode(texts)
    np.save(settings["out"], vectors)
    return list(vectors.shape)


def main() -> int:
    """Entry of the process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    asked = json.load(sys.stdin)
    # Libraries print where they please; the answer alone goes to standard output.
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        found: Any = answers(sys.argv[1], Path(sys.argv[2]), asked["inputs"], asked.get("settings", {}))
    except LuthierError as error:
        json.dump({"message": str(error), "hint": error.hint, "exit_code": error.exit_code}, out)
        return error.exit_code
    json.dump(found, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
