"""Chat templates on request, for base models that have none: by name, from a file, or another model's."""

from __future__ import annotations

import json
from pathlib import Path

from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.errors import FileProblem, Unsupported, UsageError, did_you_mean
from luthier.files import write_text

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_BOS = "{{ bos_token if bos_token is defined and bos_token else '' }}"
PLAIN = (
    _BOS + "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}Assistant: {{ message['content'] }}{{ eos_token }}\n"
    "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
NAMED = {"chatml": CHATML, "plain": PLAIN}
"""chatml: needs a vocabulary with its marks. plain: words alone, each answer ended by the end token."""


def read_template(name: str) -> str:
    """The source that a recipe's ``model.chat_template`` stands for.

    name: ``chatml``, ``plain``, a .jinja file, or a folder with a saved model whose template is taken.
    Errors: UsageError with the nearest name, FileProblem, Unsupported for a model without one.
    """
    if name in NAMED:
        return NAMED[name]
    path = Path(name).expanduser()
    if path.is_dir():
        found = load_tokenizer(path).chat_template
        if found is None:
            raise Unsupported("has no chat template to take", file=path, hint="name an instruct model")
        return found
    if path.suffix in (".jinja", ".jinja2") or path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileProblem(f"cannot be read as a template: {error}", file=path) from None
    raise UsageError(
        f"{name!r} is no chat template",
        hint=did_you_mean(name, NAMED) or "use chatml, plain, a .jinja file, or an instruct model's folder",
    )


def marks_of(name: str | None) -> tuple[str, ...]:
    """What the vocabulary must have as tokens of their own for a template that is named."""
    return ("<|im_start|>", "<|im_end|>") if name == "chatml" else ()


def check_template(tokenizer: FileTokenizer, name: str) -> None:
    """Refuse a template whose marks the vocabulary does not have. Errors: Unsupported."""
    missing = [mark for mark in marks_of(name) if len(tokenizer.encode(mark)) != 1]
    if missing:
        raise Unsupported(
            f"this vocabulary has no {' and no '.join(missing)}",
            file=tokenizer.directory,
            hint="use model.chat_template=plain, or the folder of the family's instruct model; or train it: "
            f"model.new_tokens={','.join(missing)}",
        )


def write_template(tokenizer: FileTokenizer, folder: Path) -> None:
    """Make a template that was asked for part of a saved model, with the token that ends its turns."""
    source = tokenizer.chat_template
    assert source is not None
    if not tokenizer.special_tokens.get("bos_token"):
        # llama.cpp takes token 11 for the BOS of a vocabulary without one, and tells templates its text.
        source = source.replace(_BOS, "")
    write_text(folder / "chat_template.jinja", source)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config.pop("chat_template", None)
    if tokenizer.turn_end is not None:
        config["eos_token"] = tokenizer.token(tokenizer.turn_end)
        generation = folder / "generation_config.json"
        values = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
        values["eos_token_id"] = sorted(tokenizer.eos_ids)
        write_text(generation, json.dumps(values, indent=2) + "\n")
    write_text(path, json.dumps(config, indent=2, ensure_ascii=False) + "\n")
