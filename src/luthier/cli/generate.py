"""``luthier generate``: continue a text with a tuned or pretrained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from luthier.errors import UsageError


def generate(
    model: str,
    /,
    *prompts: str,
    file: Path | None = None,
    suffix: str | None = None,
    image: tuple[Path, ...] = (),
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Continue texts as they are, without a chat template; with images, answer questions about them.

    Parameters
    ----------
    model
        A run (id, beginning of one, path, or latest) or a folder with a saved model.
    prompts
        Texts to continue.
    file
        A file of texts: rows with a text column, or one text a line (.txt).
    suffix
        What comes after the gap: the model writes what stands between a text and this (code models).
    image
        An image that every text asks about, through the chat template; once for each image.
    max_new_tokens
        Longest continuation in tokens.
    temperature
        0 takes the likeliest token each time; above that tokens are drawn.
    seed
        Seed of the draws.
    json
        Print one JSON object.
    """
    from luthier.cli.console import print_json
    from luthier.runs.answer import ask, ask_about, model_folder

    if file is not None:
        if prompts:
            raise UsageError("give texts or --file, not both")
        from luthier.data.texts import read_texts

        inputs = [one if isinstance(one, str) else one[0] for one in read_texts(file)]
    else:
        inputs = list(prompts)
    if not inputs or any(not one for one in inputs):
        raise UsageError("there is no text to continue", hint='luthier generate RUN "a beginning"')
    if image:
        if temperature > 0 or suffix is not None:
            raise UsageError(
                "questions about images are answered greedily, with nothing after a gap",
                hint="leave --temperature and --suffix out",
            )
        told = ask_about(model, inputs, image, max_new_tokens=max_new_tokens)
        if json:
            print_json({"model": model, "images": [str(one) for one in image], "answers": told})
            return
        for answer in told:
            sys.stdout.write(f"{answer['text']}\n")
        return
    folder = model_folder(model, "chat")
    settings: dict[str, object] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    settings |= {} if suffix is None else {"suffix": suffix}
    found = ask(folder, "generate", inputs, settings=settings)
    if json:
        print_json({"model": str(folder), "answers": found})
        return
    for prompt, answer in zip(inputs, found, strict=True):
        sys.stdout.write(f"{prompt}{answer['text']}{suffix or ''}\n")
