"""Build step: compile the catalogue's YAML into the JSON index that the wheel carries.

As a hatchling build hook it adds ``luthier/catalog/index.json`` to the wheel and leaves the YAML out.
By hand, ``python tools/compile_catalog.py`` checks the catalogue and says how large the index is.
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


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # outside a build there is no hatchling
    BuildHookInterface = object  # type: ignore[assignment, misc]


class CatalogHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Puts the compiled index into the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the index beside the build and name it for the wheel; an editable one reads the YAML."""
        if version == "editable":
            return
        values = compile_index(Path(self.root))
        from luthier.catalog.build import write_index

        path = Path(self.directory) / "index.json"
        write_index(values, path)
        build_data["force_include"][str(path)] = "luthier/catalog/index.json"


def main() -> None:
    """Check the catalogue and say what the index holds."""
    values = compile_index()
    size = len(json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode())
    print(f"{len(values['models'])} models, {len(values['licences'])} licences, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
