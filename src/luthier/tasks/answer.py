"""Answers of a saved model that writes no chat: ``python -m luthier.tasks.answer KIND FOLDER``.

JSON lines, in a process of its own, so that whoever asks never loads torch: for each request of standard
input (``{"inputs", "settings"}``) one line with the answers, in order. A failure is one line with message,
hint and exit code.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from luthier.errors import UsageError
from luthier.tasks.child import Say, requests, talk


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
        case "see":
            from luthier.tasks.vision import answer_about

            return answer_about(folder, inputs, device=device, **settings)
        case "embed":
            return _embed(folder, inputs, settings, device)
        case "rerank":
            from luthier.data.tokenizer import load_tokenizer
            from luthier.tasks.reranking import load_saved_reranker

            scorer = load_saved_reranker(folder, load_tokenizer(folder), device=device)
            return [float(score) for score in scorer.score([(query, text) for query, text in inputs])]
        case _:
            raise UsageError(
                f"{kind} is not a kind of answer", hint="classify, generate, see, embed or rerank"
            )


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


def _serve(kind: str, folder: Path, say: Say) -> None:
    for asked in requests():
        say(answers=answers(kind, folder, asked["inputs"], asked.get("settings", {})))


def main() -> int:
    """Entry of the process."""
    return talk(lambda say: _serve(sys.argv[1], Path(sys.argv[2]), say))


if __name__ == "__main__":
    raise SystemExit(main())
