"""What torch finds on this machine, asked once for each torch and processor, without importing it here."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from luthier.errors import ToolchainError
from luthier.files import cache_dir, write_text
from luthier.runs.directory import digest_of
from luthier.runs.process import torch_environment
from luthier.schema.hardware import Hardware


def probe(hardware: Hardware) -> dict[str, Any]:
    """Return what ``luthier.models.probe`` prints; measured anew only when torch or hardware changed."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        raise ToolchainError(
            "torch is not installed, so nothing can be trained here",
            hint="install it first (CPU build: pip install torch --index-url "
            "https://download.pytorch.org/whl/cpu), then: pip install 'luthier[all]'",
        ) from None
    names = [gpu.name for gpu in hardware.accelerators]
    key = digest_of(torch, hardware.processor.name, str(hardware.processor.cores), *names)
    path = cache_dir() / "probe" / f"{key}.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    done = subprocess.run(
        [sys.executable, "-m", "luthier.models.probe"],
        capture_output=True,
        text=True,
        check=False,
        env=torch_environment(),
    )
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-3:])
        raise ToolchainError(f"torch does not start here:\n{last}", hint="see `luthier doctor`")
    write_text(path, done.stdout)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
