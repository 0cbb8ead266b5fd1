"""``luthier classify``: labels of texts by a tuned classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from luthier.errors import UsageError


def classify(
    model: str,
    /,
    *texts: str,
    file: Path | None = None,
    pair: str | None = None,
    top: int = 3,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Label texts with a tuned classifier, each with its probabilities.

    Parameters
    ----------
    model
        A run (id, beginning of one, path, or latest) or a folder with a saved classifier.
    texts
        Texts to label.
    file
        A file of texts: rows of JSONL, CSV or Parquet with a text column, or one text a line (.txt).
    pair
        The second text, for models that were trained on pairs.
    top
        How many labels are shown with their probability.
    json
        Print one JSON object with all probabilities.
    """
    from luthier.cli.console import print_json
    from luthier.runs.answer import ask, model_folder

    inputs = _inputs(texts, file, pair)
    folder = model_folder(model, "classify")
    found = ask(folder, "classify", [list(one) if isinstance(one, tuple) else one for one in inputs])
    if json:
        print_json(
            {
                "model": str(folder),
                "answers": [
                    {"text": one[0] if isinstance(one, tuple) else one, **answer}
                    for one, answer in zip(inputs, found, strict=True)
                ],
            }
        )
        return
    _show(inputs, found, top)


def _inputs(texts: tuple[str, ...], file: Path | None, pair: str | None) -> list[str | tuple[str, str]]:
    if file is not None:
        if texts or pair is not None:
            raise UsageError("give texts or --file, not both")
        from luthier.data.texts import read_texts

        return read_texts(file)
    if not texts:
        raise UsageError("there is no text to label", hint='luthier classify RUN "a text", or --file FILE')
    if any(not text.strip() for text in texts):
        raise UsageError("a text is empty")
    return [(text, pair) for text in texts] if pair is not None else list(texts)


def _show(inputs: list[str | tuple[str, str]], found: list[dict[str, Any]], top: int) -> None:
    from rich.markup import escape

    from luthier.cli.console import out

    for one, answer in zip(inputs, found, strict=True):
        text = " | ".join(one) if isinstance(one, tuple) else one
        chances = list(answer["probabilities"].items())[:top]
        shown = ", ".join(f"{label} {chance:.3f}" for label, chance in chances)
        labels = ", ".join(answer["labels"]) or "(none)"
        out().print(f"[bold]{escape(labels)}[/]  {escape(text)}")
        out().print(f"  {escape(shown)}", style="dim")
