"""What the wheel carries besides the source: the compiled catalogue and the studio's third-party files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WheelHook(BuildHookInterface):  # type: ignore[type-arg, misc]
    """Adds ``catalog/index.json`` and ``studio/static/vendor``; an editable wheel reads the source."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make both beside the build and name them for the wheel."""
        if version == "editable":
            return
        root, made = Path(self.root), Path(self.directory)
        values = _tool(root, "compile_catalog").compile_index(root)
        from luthier.catalog.build import write_index

        index = made / "index.json"
        write_index(values, index)
        build_data["force_include"][str(index)] = "luthier/catalog/index.json"
        here = root / "src" / "luthier" / "studio" / "static" / "vendor"
        try:
            vendor = _tool(root, "studio_assets").ensure(here if here.is_dir() else made / "vendor")
        except SystemExit as error:
            # Without npm all else can still be installed; `luthier studio` says what is missing.
            self.app.display_warning(f"this wheel is without the studio's pages: {error}")
            return
        build_data["force_include"][str(vendor)] = "luthier/studio/static/vendor"


def _tool(root: Path, name: str) -> Any:
    """A script of this folder as a module."""
    spec = importlib.util.spec_from_file_location(name, root / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
