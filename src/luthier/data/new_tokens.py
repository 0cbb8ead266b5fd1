"""New tokens of a vocabulary: what is said of them, and how a saved model comes to have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.data.tokenizer import FileTokenizer
from luthier.files import write_text

SHOWN = 4
"""New tokens that are named one by one."""


def told_of_new_tokens(tokenizer: FileTokenizer) -> str:
    """One line about the new tokens: their ids, what each was before, and how their embeddings begin."""
    named = [
        f"{tokenizer.token(index)} is {index} (was {len(pieces)} tokens)"
        for index, pieces in tokenizer.new_tokens.items()
    ]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    count = f"{len(named)} new token{'s' if len(named) > 1 else ''}"
    return (
        f"{count}: {', '.join(named[:SHOWN])}{more}; each begins as the mean of the embeddings of what it was"
    )


def write_new_tokens(tokenizer: FileTokenizer, folder: Path) -> None:
    """Give the tokenizer files of a saved model the new tokens, under the ids that they were trained with."""
    write_text(folder / "tokenizer.json", tokenizer.written())
    entries: dict[str, Any] = {
        str(index): {
            "content": tokenizer.token(index),
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": index in tokenizer.special_ids,
        }
        for index in tokenizer.new_tokens
    }
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # A list that is there must name all; without one tokenizer.json alone says it.
    if "added_tokens_decoder" in config:
        config["added_tokens_decoder"].update(entries)
        write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    path = folder / "added_tokens.json"
    # Readers of the older format (tokenizer.model) take what is added from here.
    if path.is_file() or (folder / "tokenizer.model").is_file():
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known.update({entry["content"]: int(index) for index, entry in entries.items()})
        write_text(path, json.dumps(known, indent=2, ensure_ascii=False) + "\n")
