"""Bring the studio's third-party files: htmx, uPlot, Inter and JetBrains Mono, with their licences.

``python tools/studio_assets.py`` (or ``make studio``) fetches four pinned archives from npm once, checks
each by its SHA-256 and lays the few files that pages use into ``src/luthier/studio/static/vendor``. They
are never committed; the wheel's build does the same. Standard library only; where npm is installed it does
the fetching, so that its own settings (a mirror, a proxy) hold.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT / "src" / "luthier" / "studio" / "static" / "vendor"
REGISTRY = "https://registry.npmjs.org"


class Package(NamedTuple):
    """One archive of npm and what is taken from it."""

    name: str
    version: str
    sha256: str
    files: dict[str, str]
    """Name in the archive -> name in the vendor folder."""


PACKAGES = (
    Package(
        "htmx.org",
        "4.0.1",
        "5fba65616ca148a86d377e9771bcada7f35faee3558651feb929eea425e13b3c",
        {"dist/htmx.min.js": "htmx.min.js", "LICENSE": "htmx.LICENSE.txt"},
    ),
    Package(
        "uplot",
        "1.6.32",
        "4b8a8191e425658e3ea8c8c1314b0fc679c861ee3a1af2b20c7b16ba50b5133d",
        {
            "dist/uPlot.iife.min.js": "uPlot.iife.min.js",
            "dist/uPlot.min.css": "uPlot.min.css",
            "LICENSE": "uPlot.LICENSE.txt",
        },
    ),
    Package(
        "@fontsource-variable/inter",
        "5.3.0",
        "d26710dd38e7217484a1d47ee76c024977ec550548876f26d06ed1844af09a14",
        {
            "files/inter-latin-wght-normal.woff2": "inter-latin-wght-normal.woff2",
            "LICENSE": "inter.LICENSE.txt",
        },
    ),
    Package(
        "@fontsource-variable/jetbrains-mono",
        "5.3.0",
        "996fe6368a480c9ce15d4de22a2682b7c40b403718fee2b15e7272f244fd993f",
        {
            "files/jetbrains-mono-latin-wght-normal.woff2": "jetbrains-mono-latin-wght-normal.woff2",
            "LICENSE": "jetbrains-mono.LICENSE.txt",
        },
    ),
)
AXE = (
    Package(
        "axe-core",
        "4.14.1",
        "e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
        {"axe.min.js": "axe.min.js", "LICENSE": "axe.LICENSE.txt"},
    ),
)
"""The accessibility rules of the browser tests (MPL-2.0): never shipped."""


def ensure(folder: Path = VENDOR, packages: tuple[Package, ...] = PACKAGES) -> Path:
    """The folder with every file in it; fetched unless a stamp says that these very archives are there."""
    stamp = folder / "versions.txt"
    wanted = "".join(f"{one.name} {one.version} {one.sha256}\n" for one in packages)
    files = [name for package in packages for name in package.files.values()]
    if (
        stamp.is_file()
        and stamp.read_text(encoding="utf-8") == wanted
        and all((folder / name).is_file() for name in files)
    ):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages:
        archive = fetch(package)
        found = hashlib.sha256(archive).hexdigest()
        if found != package.sha256:
            raise SystemExit(f"{package.name} {package.version} has the digest {found}, not {package.sha256}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for inside, name in package.files.items():
                member = tar.extractfile(f"package/{inside}")
                assert member is not None
                (folder / name).write_bytes(member.read())
    stamp.write_text(wanted, encoding="utf-8")
    return folder


def fetch(package: Package) -> bytes:
    """The archive's bytes, by npm where there is one, else straight from the registry."""
    if (npm := shutil.which("npm")) is not None:
        with tempfile.TemporaryDirectory() as scratch:
            asked = f"{package.name}@{package.version}"
            done = subprocess.run(
                [npm, "pack", "--silent", asked], cwd=scratch, capture_output=True, check=False
            )
            found = list(Path(scratch).glob("*.tgz"))
            if done.returncode == 0 and len(found) == 1:
                return found[0].read_bytes()
    short = package.name.rsplit("/", 1)[-1]
    address = f"{REGISTRY}/{package.name}/-/{short}-{package.version}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:  # noqa: S310 - https, a constant
            return bytes(answer.read())
    except OSError as error:
        raise SystemExit(
            f"{package.name} {package.version} cannot be fetched ({error})\n"
            f"the studio's pages need it once: check the network, or npm's registry setting\n"
            "(everything but the studio works without)"
        ) from None


if __name__ == "__main__":
    print(f"the studio's files lie in {ensure()}")
    if "--axe" in sys.argv:
        print(f"the browser tests' rules lie in {ensure(ROOT / '.cache' / 'axe', AXE)}")
