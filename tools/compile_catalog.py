"""Build step: compile the catalogue's YAML into the JSON index that the wheel carries.

``tools/build_hook.py`` adds it to the wheel as ``luthier/catalog/index.json``, without the YAML. By hand,
``python tools/compile_catalog.py`` checks the catalogue and says how large the index is.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def compile_index(root: Path = ROOT) -> dict[str, Any]:
    """Read, check and return the whole index. Errors: FileProblem for a fault in the YAML."""
    source = root / "src"
    if importlib.util.find_spec("luthier") is None:
        sys.path.insert(0, str(source))
    from luthier.catalog.build import build_index
    from luthier.catalog.index import Index

    values = build_index(source / "luthier" / "catalog")
    Index.model_validate_json(json.dumps(values))
    return values


def main() -> None:
    """Check the catalogue and say what the index holds."""
    values = compile_index()
    size = len(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode())
    print(f"{len(values['models'])} models, {len(values['licences'])} licences, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
