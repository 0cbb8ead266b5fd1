"""Turn the catalogue's YAML into the one JSON index that everything reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from luthier.errors import FileProblem
from luthier.files import write_text

FOLDER = Path(__file__).parent
FORMAT = 2
"""Raised when the index's own layout changes, so that older caches are not read."""


def yaml_files(folder: Path = FOLDER) -> list[Path]:
    """Every YAML file that the index is made of, in a stable order."""
    return sorted([*folder.glob("*.yaml"), *folder.glob("models/*.yaml")])


def digest_of(files: Iterable[Path], folder: Path = FOLDER) -> str:
    """Digest of the files' names and contents, and of the index's layout."""
    digest = hashlib.sha256(f"catalogue {FORMAT}\n".encode())
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def build_index(folder: Path = FOLDER) -> dict[str, Any]:
    """Read all YAML and return the index as plain values. Errors: FileProblem with the file."""
    files = yaml_files(folder)
    models: list[dict[str, Any]] = []
    for path in files:
        if path.parent.name == "models":
            document = _read(path)
            shared = document.get("shared", {})
            models += [_model({**shared, **entry}, path) for entry in document["models"]]
    sources = _read(folder / "sources.yaml")["sources"]
    index = {
        "format": FORMAT,
        "digest": digest_of(files, folder),
        "models": models,
        "licences": _read(folder / "licences.yaml")["licences"],
        "gpus": [_gpu(entry) for entry in _read(folder / "gpus.yaml")["gpus"]],
        "hyperparameters": _read(folder / "hyperparameters.yaml")["hyperparameters"],
        "ecosystem": _read(folder / "ecosystem.yaml")["ecosystem"],
        "sources": sources,
    }
    _check(index)
    return index


def write_index(index: dict[str, Any], path: Path) -> None:
    """Write the index whole, or not at all."""
    write_text(path, json.dumps(index, ensure_ascii=False, separators=(",", ":")))


def _read(path: Path) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise FileProblem(f"not valid YAML: {error}", file=path) from None
    if not isinstance(document, dict):
        raise FileProblem("is not a mapping of sections", file=path, line=1)
    return document


def _model(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    shape = entry.get("architecture")
    if shape is not None:
        shape = dict(shape)
        cycle = shape.pop("layer_cycle", None)
        if cycle:
            shape["layer_kinds"] = [cycle[i % len(cycle)] for i in range(shape["layers"])]
        shape.setdefault("max_positions", entry.get("context", {}).get("native"))
        entry = {**entry, "architecture": shape}
    if "id" not in entry:
        raise FileProblem("a model has no id", file=path)
    return entry


def _gpu(entry: dict[str, Any]) -> dict[str, Any]:
    gib, usable = entry.pop("gib"), entry.pop("usable_gib", None)
    entry["nameplate"] = gib * 2**30
    entry["memory_total"] = int((usable if usable is not None else gib * 0.98) * 2**30)
    entry["flops"] = entry.pop("tflops") * 1e12
    entry["bandwidth"] = entry["bandwidth"] * 1e9
    if "capability" in entry:
        entry["compute_capability"] = entry.pop("capability")
    if "price" in entry:
        entry["price_per_hour"] = entry.pop("price")
    return entry


def _check(index: dict[str, Any]) -> None:
    """References between the files hold; the records' own rules are checked when it is read."""
    licences = {entry["id"] for entry in index["licences"]}
    seen: set[str] = set()
    for entry in index["gpus"]:
        if ("price_per_hour" in entry) != ("priced" in entry) or entry.get("priced", "") not in {
            "",
            *index["sources"],
        }:
            raise FileProblem(
                f"{entry['id']}: a price has a source in sources.yaml", file=FOLDER / "gpus.yaml"
            )
    for model in index["models"]:
        name = model["id"]
        if name in seen:
            raise FileProblem(f"{name} stands in the catalogue twice", file=FOLDER / "models")
        seen.add(name)
        if model["licence"] not in licences:
            raise FileProblem(
                f"{name}: no licence is called {model['licence']}", file=FOLDER / "licences.yaml"
            )
        keys = {*model.get("sources", ()), *(b["source"] for b in model.get("benchmarks", ()))}
        for key in sorted(keys - set(index["sources"])):
            raise FileProblem(f"{name}: no source is called {key}", file=FOLDER / "sources.yaml")
