"""A saved embedder, reranker or classifier that stays: ``python -m luthier.tasks.stay KIND FOLDER MODEL_ID``.

A folder with an ONNX graph is answered by onnxruntime, without torch.

JSON lines: one ``{"ready": true}`` once the model is loaded, then for each request of standard input
(``{"inputs": [...]}``) one line with ``answers`` and the ``tokens`` that were read, or with ``failure``.
Ends with its input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import FileProblem, LuthierError, UsageError
from luthier.schema.classification import DECISION_FILE
from luthier.schema.onnx import SPEC_FILE
from luthier.tasks.child import Say, failure_of, requests, talk

Answer = Callable[[list[Any]], list[Any]]


def load(kind: str, folder: Path, model_id: str, tokenizer: FileTokenizer) -> Answer:
    """What answers inputs of a kind: embed (texts), rerank (query and text), classify (texts or pairs)."""
    if (folder / SPEC_FILE).is_file():
        return load_graph(kind, folder)
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    match kind:
        case "embed":
            from luthier.tasks.vectors import load_embedder

            embedder = load_embedder(folder, tokenizer, model_id=model_id, device=device)
            return lambda inputs: list(embedder.encode(inputs).tolist())
        case "rerank":
            from luthier.tasks.reranking import load_saved_reranker

            scorer = load_saved_reranker(folder, tokenizer, device=device)
            return lambda inputs: [float(score) for score in scorer.score([tuple(pair) for pair in inputs])]
        case "classify":
            from luthier.tasks.labels import SavedClassifier

            found = SavedClassifier(folder, device=device)
            return lambda inputs: list(
                found.classify([tuple(one) if isinstance(one, list) else one for one in inputs])
            )
        case _:
            raise UsageError(f"{kind} is not a kind of answer", hint="embed, rerank or classify")


def load_graph(kind: str, folder: Path) -> Answer:
    """The same of an ONNX folder, by onnxruntime; torch is never loaded. Errors: as `OnnxModel`."""
    import numpy as np

    from luthier.exporting.onnx import OnnxModel
    from luthier.tasks.decision import described, read_decision

    model = OnnxModel(folder)
    if model.spec.answers != kind:
        raise UsageError(f"{folder.name} does not {kind}", hint=f"it was exported to {model.spec.answers}")
    if kind != "classify":
        return lambda inputs: list(model.run(inputs).tolist())
    decision = read_decision(folder)
    if decision is None:
        raise FileProblem(f"has no {DECISION_FILE}", file=folder, hint="luthier export RUN --onnx writes it")
    return lambda inputs: described(model.run(inputs).astype(np.float64), decision)


def _texts(inputs: Iterable[Any]) -> Iterable[str]:
    for one in inputs:
        if isinstance(one, str):
            yield one
        else:
            yield from one


def _serve(kind: str, folder: Path, model_id: str, say: Say) -> None:
    tokenizer = load_tokenizer(folder)
    answer = load(kind, folder, model_id, tokenizer)
    say(ready=True)
    for asked in requests():
        inputs = asked["inputs"]
        try:
            say(answers=answer(inputs), tokens=sum(len(tokenizer.encode(text)) for text in _texts(inputs)))
        except LuthierError as error:
            say(failure=failure_of(error))


def main() -> int:
    """Entry of the process."""
    return talk(lambda say: _serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3], say))


if __name__ == "__main__":
    raise SystemExit(main())
