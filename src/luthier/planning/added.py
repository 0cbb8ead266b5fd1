"""Entries that users add to the catalogue: built from a model's own files, without its weights."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from luthier.catalog.index import added_folder, all_models, forget, licences
from luthier.errors import ModelNotFound, UsageError, did_you_mean
from luthier.schema.model import (
    Architecture,
    ChatTemplateFacts,
    ContextFacts,
    GgufFacts,
    Kind,
    LoraFacts,
    ModelCard,
    ParameterFacts,
    Variants,
)
from luthier.schema.recipe import Purpose
from luthier.sizing.model_config import architecture_of
from luthier.sizing.parameters import count_parameters, target_matrices

PURPOSES: dict[Kind, tuple[Purpose, ...]] = {
    "decoder": ("chat", "text-generation"),
    "vision-language": ("chat", "text-generation"),
    "encoder": ("multi-label-classification", "multi-class-classification"),
    "bi-encoder": ("similarity",),
    "cross-encoder": ("reranking",),
}


def card_from_directory(directory: Path, *, name: str | None = None) -> tuple[ModelCard, tuple[str, ...]]:
    """Build an entry from config.json, the tokenizer's files and the README; second, what stays unknown.

    Errors: FileProblem where there is no readable config, Unsupported for a shape nobody can count.
    """
    shape = architecture_of(directory)
    config = _json(directory / "config.json")
    kind = _kind(directory, config, shape)
    card_text = _front_matter(directory / "README.md")
    called = name or _own_name(config, directory)
    like, same = _sibling(config, shape)
    licence, unknown = _licence(card_text)
    template = _template(directory)
    languages = _languages(card_text)
    total = count_parameters(shape).total
    if languages is None:
        unknown.append("languages: the card names none")
    if like is None:
        unknown.append(f"GGUF: no model of type {shape.model_type} in the catalogue to take it from")
    instruct = template is not None or kind not in ("decoder", "vision-language")
    if kind in ("decoder", "vision-language") and template is None:
        unknown.append("chat template: none found, taken for base weights")
    found = ModelCard(
        id=called,
        family=like.family if like is not None and same else shape.model_type,
        org=called.split("/")[0] if "/" in called else "local",
        kind=kind,
        variants=Variants(instruct=called if instruct else None, base=None if instruct else called),
        parameters=ParameterFacts(
            total=total, basis="counted from config.json", towers=shape.extra_parameters or None
        ),
        architecture=shape,
        context=ContextFacts(native=shape.max_positions),
        modalities=("text", "image") if kind == "vision-language" else ("text",),
        purposes=PURPOSES[kind],
        tags=_tags(template),
        languages=languages,
        licence=licence,
        licence_confidence="medium" if licence != "unknown" else None,
        gguf=_gguf(like),
        chat_template=None if template is None else ChatTemplateFacts(style="its own"),
        lora=LoraFacts(targets=tuple(dict.fromkeys(m.name for _, m in target_matrices(shape)))),
        caveats=like.caveats if like is not None and same else (),
        added_from=str(directory.resolve()),
    )
    return found, tuple(unknown)


def save_card(card: ModelCard) -> Path:
    """Keep an entry where every command finds it. Errors: UsageError for a name of the shipped catalogue."""
    shipped = {c.id for c in all_models() if c.added_from is None}
    if card.id in shipped:
        raise UsageError(
            f"{card.id} stands in the catalogue already", hint="give another name: --name my/model"
        )
    path = _path_of(card.id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(card.model_dump_json(indent=2, exclude_none=True), encoding="utf-8")
    forget()
    return path


def remove_card(name: str) -> Path:
    """Remove an added entry. Errors: ModelNotFound."""
    path = _path_of(name)
    if not path.exists():
        added = [card.id for card in all_models() if card.added_from is not None]
        raise ModelNotFound(
            f"no entry called {name!r} was added",
            hint=did_you_mean(name, added) or f"added are: {', '.join(added) or 'none'}",
        )
    path.unlink()
    forget()
    return path


def _path_of(name: str) -> Path:
    return added_folder() / f"{re.sub(r'[^A-Za-z0-9._-]+', '--', name)}.json"


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _own_name(config: dict[str, Any], directory: Path) -> str:
    named = config.get("_name_or_path")
    return (
        named
        if isinstance(named, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", named)
        else directory.resolve().name
    )


def _kind(directory: Path, config: dict[str, Any], shape: Architecture) -> Kind:
    classes = " ".join(config.get("architectures") or ())
    if (directory / "modules.json").exists():
        return "bi-encoder"
    if "SequenceClassification" in classes and len(config.get("id2label") or {}) == 1:
        return "cross-encoder"
    if "vision_config" in config or "ForConditionalGeneration" in classes:
        return "vision-language"
    return "decoder" if shape.causal else "encoder"


def _front_matter(path: Path) -> dict[str, str]:
    """Simple ``key: value`` lines of a model card's head."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if head is None:
        return {}
    found: dict[str, str] = {}
    key = ""
    for line in head[1].splitlines():
        if match := re.match(r"([\w-]+):\s*(.*)$", line):
            key, value = match[1], match[2].strip()
            found[key] = value
        elif key and (match := re.match(r"\s*-\s*(.+)$", line)):
            found[key] = f"{found[key]} {match[1].strip()}".strip()
    return found


def _licence(card: dict[str, str]) -> tuple[str, list[str]]:
    named = (card.get("license_name") or card.get("license") or "").strip("'\" ").lower()
    known = {terms.id for terms in licences()}
    if named in known:
        return named, []
    said = f"the card says {named!r}, which is not known" if named else "the card names none"
    return "unknown", [f"licence: {said}"]


def _languages(card: dict[str, str]) -> tuple[str, ...] | None:
    words = re.findall(r"\b[a-z]{2}\b", card.get("language", ""))
    return tuple(dict.fromkeys(words)) or None


def _template(directory: Path) -> str | None:
    for name in ("chat_template.jinja", "chat_template.json"):
        path = directory / name
        if path.exists():
            return path.read_text(encoding="utf-8", errors="replace")
    value = _json(directory / "tokenizer_config.json").get("chat_template")
    return None if not value else value if isinstance(value, str) else json.dumps(value)


def _tags(template: str | None) -> tuple[str, ...]:
    if template is None:
        return ()
    found = []
    if "tools" in template:
        found.append("tools")
    if "<think>" in template or "enable_thinking" in template:
        found.append("thinking")
    return tuple(found)


def _sibling(config: dict[str, Any], shape: Architecture) -> tuple[ModelCard | None, bool]:
    """A model of the same type, from which GGUF is taken; true where even its shape is the same."""
    classes = set(config.get("architectures") or ())
    known = [card for card in all_models() if card.architecture is not None and card.added_from is None]
    for card in known:
        if card.architecture is not None and _outline(card.architecture) == _outline(shape):
            return card, True
    same = [card for card in known if card.architecture and card.architecture.model_type == shape.model_type]
    exact = [card for card in same if card.gguf.hf_class in classes]
    return next(iter(exact or same), None), False


def _outline(shape: Architecture) -> tuple[object, ...]:
    return (
        shape.model_type,
        shape.layers,
        shape.hidden_size,
        shape.intermediate_size,
        shape.attention_heads,
        shape.kv_heads,
        shape.vocab_size,
        shape.tied_embeddings,
    )


def _gguf(like: ModelCard | None) -> GgufFacts:
    if like is None:
        return GgufFacts()
    return like.gguf.model_copy(update={"note": f"taken from {like.id}, the same type"})
