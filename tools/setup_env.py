"""Make the environment that the Makefile's commands run in. Standard library only.

    python3 tools/setup_env.py [--extras all,dev] [--venv .venv]

Makes a virtual environment, chooses a build of torch, says what will be downloaded, installs
Luthier in place with the versions of constraints.txt, and leaves a stamp, so that a second run ends
at once. Settings come from the environment:

    TORCH=cpu|cuda|skip   which build (default: cuda where `nvidia-smi -L` lists a GPU, else cpu);
                          skip leaves torch to you, and training out where there is none
    TORCH_INDEX=URL       where to take torch from, whatever the build
                          (ROCm: https://download.pytorch.org/whl/rocm6.4)
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5

# Megabytes (1e6 bytes) to download for CPython 3.11 on Linux x86-64, summed from the package index's
# own file sizes on 2026-11-22 for the versions of constraints.txt. Other systems differ a little.
DOWNLOAD = {"base": 33, "train": 67, "export": 37, "serve": 1, "data": 61, "studio": 1, "dev": 178}
TORCH_DOWNLOAD = {"cpu": 192, "cuda": 2730}
# Megabytes of disk for d megabytes of download: 2 d + 1200. Measured for the CPU environment with all
# extras: 384 MB become 1.6 GB, as most wheels are packed about 4 to 1 and CUDA libraries under 2 to 1.
UNPACKED, UNPACKED_BASE = 2, 1200


class SetupError(Exception):
    """A failure with words for a person; each line after the first is a way out."""


def main() -> int:
    """Parse the command line, set up, and turn failures into words and an exit code."""
    parser = argparse.ArgumentParser(description="Make the environment that the Makefile's commands run in.")
    parser.add_argument("--extras", default="all", help="extras of pyproject.toml, separated by commas")
    parser.add_argument("--venv", default=".venv", help="where the environment goes")
    args = parser.parse_args()
    try:
        set_up(ROOT / args.venv, [word.strip() for word in args.extras.split(",") if word.strip()])
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsetup: stopped; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def set_up(venv: Path, extras: list[str]) -> None:
    """Bring venv to what pyproject.toml, constraints.txt and the torch choice ask for."""
    check_python(sys.version_info[:2])
    build = torch_build(os.environ.get("TORCH"), sys.platform)
    index = os.environ.get("TORCH_INDEX") or (
        CPU_INDEX if build == "cpu" and sys.platform == "linux" else None
    )
    stamp = venv / "luthier-setup.json"
    key = stamp_key(build, index)
    before = read_stamp(stamp) if works(venv) else {}
    if before.get("key") == key and set(extras) <= set(before.get("extras", [])):
        return
    started = time.monotonic()
    extras = sorted(set(extras) | set(before.get("extras", [])))
    make_venv(venv)
    version = python_version(venv)
    print(f"Setting up {shown(venv)} with Python {version} ({platform.system()} {platform.machine()})")
    if not version.startswith(f"{sys.version_info[0]}.{sys.version_info[1]}."):
        print(f"  it was made with that one; for {platform.python_version()} remove {shown(venv)} first")
    stamp.unlink(missing_ok=True)
    python = python_of(venv)
    log = venv / "install.log"
    log.write_text("", encoding="utf-8")

    torch, megabytes, index = plan_torch(python, build, index)
    if build == "skip" and not has_torch(python):
        print("  torch is left out (TORCH=skip): planning and export work, training does not")
        extras_now = [extra for extra in extras if extra not in ("all", "train")]
        extras_now += ["export", "serve", "data", "studio"] if "all" in extras else []
    else:
        extras_now = extras
    megabytes += rest_megabytes(extras_now)
    print(f"  downloads: about {readable(megabytes)} in all, less what is here or in pip's cache already")
    check_disk(venv, megabytes)
    if torch:
        more = ["--extra-index-url", index] if index else []
        pip(python, ["install", torch, *more, "-c", str(ROOT / "constraints.txt")], log, "torch")
    where = f"{ROOT}[{','.join(extras_now)}]"
    pip(python, ["install", "-e", where, "-c", str(ROOT / "constraints.txt")], log, "Luthier")
    stamp.write_text(json.dumps({"key": key, "extras": extras}), encoding="utf-8")
    size = sum(f.stat().st_size for f in venv.rglob("*") if f.is_file() and not f.is_symlink())
    print(f"  ready in {time.monotonic() - started:.0f} s; {shown(venv)} holds {readable(size / 1e6)}")


def check_python(version: tuple[int, ...]) -> None:
    """Refuse a Python that Luthier does not run on, and one that cannot make environments."""
    if not OLDEST <= tuple(version) <= NEWEST:
        raise SetupError(
            f"Python {version[0]}.{version[1]} is not supported: Luthier needs {OLDEST[0]}.{OLDEST[1]} to "
            f"{NEWEST[0]}.{NEWEST[1]}\n  name another one: make PYTHON=python3.12 quickstart"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        own = f"python{version[0]}.{version[1]}-venv"
        raise SetupError(
            f"this Python cannot make virtual environments ({error.name} is missing)\n"
            f"  Debian and Ubuntu: sudo apt install {own}   (or python3-venv)\n"
            "  or name another Python: make PYTHON=/path/to/python3 quickstart"
        ) from error


def torch_build(asked: str | None, system: str) -> str:
    """Return cpu, cuda or skip: what was asked for, else what the machine has."""
    if asked:
        if asked not in ("cpu", "cuda", "skip"):
            raise SetupError(f"TORCH={asked} is not a choice\n  one of: cpu, cuda, skip")
        return asked
    return "cuda" if system != "darwin" and has_nvidia_gpu() else "cpu"


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    tool = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if not tool:
        return False
    try:
        answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "GPU" in answer.stdout


def plan_torch(python: Path, build: str, index: str | None) -> tuple[str | None, float, str | None]:
    """Say which torch will be installed; return its requirement, its megabytes and its extra index."""
    if build == "skip":
        return None, 0, None
    requirement = f"torch=={pinned('torch')}"
    if index:
        problem = unreachable(index)
        if problem and os.environ.get("TORCH_INDEX"):
            raise SetupError(
                f"TORCH_INDEX={index} cannot be reached: {problem}\n"
                "  check the address, or unset TORCH_INDEX to choose by what this machine has"
            )
        if problem:
            print(f"  {index} cannot be reached ({problem}); torch comes from your package index instead")
            index = None
    reason = {"cpu": "no NVIDIA GPU found", "cuda": "an NVIDIA GPU is here"}[build]
    reason = f"TORCH={build}" if os.environ.get("TORCH") else reason
    found = torch_file(python, requirement, index)
    if found is None:
        print(f"  {requirement} is installed already")
        return requirement, 0, index
    name = found.rsplit("/", 1)[-1].replace("%2B", "+")
    local = found.startswith("file:")
    got_cuda = build == "cuda" or ("+cpu" not in name and "manylinux" in name and "x86_64" in name)
    megabytes = 0 if local else TORCH_DOWNLOAD["cuda" if got_cuda else "cpu"]
    print(f"  torch for {build} ({reason}): {name}" + (" from a local file" if local else ""))
    if build == "cpu" and got_cuda and not local:
        print("  that is the CUDA build, which also runs on a CPU but is far larger; another source:")
        print("  make TORCH_INDEX=URL ..., or install torch into .venv yourself and use TORCH=skip")
    return requirement, megabytes, index


def torch_file(python: Path, requirement: str, index: str | None) -> str | None:
    """Ask pip which file it would install; None where torch is installed already."""
    command = [str(python), "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--no-input"]
    command += ["--disable-pip-version-check", "--report", "-", requirement]
    command += ["--extra-index-url", index] if index else []
    answer = subprocess.run(command, capture_output=True, text=True, env=clean_env(), check=False)
    if answer.returncode:
        raise SetupError(
            f"no {requirement} for this Python and system:\n{tail(answer.stderr)}\n"
            "  another source: make TORCH_INDEX=URL ...   another Python: make PYTHON=python3.12 ...\n"
            "  without training: make TORCH=skip ..."
        )
    report = json.loads(answer.stdout)
    return report["install"][0]["download_info"]["url"] if report["install"] else None


def unreachable(index: str) -> str | None:
    """Return why an index does not answer, or None when it does."""
    if not re.match(r"https?://", index):
        return None  # a folder or another scheme: pip will say
    try:
        request = urllib.request.Request(index.rstrip("/") + "/torch/", method="HEAD")  # noqa: S310
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        # Some mirrors refuse HEAD and answer pip's GET: only what says "not here" counts.
        return f"HTTP {error.code}" if error.code in (404, 410) or error.code >= 500 else None
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


def make_venv(venv: Path) -> None:
    """Make the environment, or make it anew where its interpreter no longer runs."""
    if works(venv):
        return
    if venv.exists():
        if not (venv / "pyvenv.cfg").exists() and any(venv.iterdir()):
            raise SetupError(f"{shown(venv)} is here but is no virtual environment\n  move it away first")
        print(f"  {shown(venv)} no longer runs; making it anew")
        shutil.rmtree(venv)
    answer = subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        shutil.rmtree(venv, ignore_errors=True)
        raise SetupError(f"no virtual environment could be made:\n{tail(answer.stdout + answer.stderr)}")


def works(venv: Path) -> bool:
    """Whether the environment's interpreter runs, is new enough and has pip."""
    code = f"import sys, pip; sys.exit(sys.version_info[:2] < {OLDEST})"
    if not python_of(venv).exists():
        return False
    return (
        subprocess.run([str(python_of(venv)), "-c", code], capture_output=True, check=False).returncode == 0
    )


def python_of(venv: Path) -> Path:
    """The interpreter of an environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_version(venv: Path) -> str:
    """The version of an environment's interpreter."""
    command = [str(python_of(venv)), "-c", "import platform; print(platform.python_version())"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def has_torch(python: Path) -> bool:
    """Whether torch is installed beside an interpreter (not imported: that takes seconds)."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


def check_disk(venv: Path, megabytes: float) -> None:
    """Refuse to start what cannot end."""
    free = shutil.disk_usage(venv).free / 1e6
    needed = megabytes * UNPACKED + UNPACKED_BASE
    if free < needed:
        raise SetupError(
            f"{readable(needed)} of disk are needed and {readable(free)} are free at {venv.parent}\n"
            "  free some, or clone to a larger disk"
        )


def rest_megabytes(extras: list[str]) -> float:
    """Megabytes of everything but torch."""
    wanted = set(extras) | ({"train", "export", "serve", "data", "studio"} if "all" in extras else set())
    return DOWNLOAD["base"] + sum(size for name, size in DOWNLOAD.items() if name in wanted)


def pip(python: Path, arguments: list[str], log: Path, what: str) -> None:
    """Run pip, its words into the log, its large downloads and the time onto the terminal."""
    command = [str(python), "-m", "pip", *arguments, "--no-input", "--disable-pip-version-check"]
    live = sys.stdout.isatty()
    started = time.monotonic()
    doing = [f"resolving {what}"]
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r\033[K  {doing[0]} ({time.monotonic() - started:.0f} s)", end="", flush=True)

    if live:
        threading.Thread(target=tick, daemon=True).start()
    try:
        with (
            log.open("a", encoding="utf-8") as out,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_env()
            ) as child,
        ):
            assert child.stdout is not None
            for line in child.stdout:
                out.write(line)
                words = milestone(line)
                if words:
                    doing[0] = words
                    if not live:
                        print(f"  {words}", flush=True)
            code = child.wait()
    finally:
        done.set()
        if live:
            print("\r\033[K", end="", flush=True)
    if code:
        raise SetupError(
            f"pip could not install {what}; its last words (all of them: {shown(log)}):\n"
            f"{tail(log.read_text(encoding='utf-8'))}\n"
            "  run the same command again once the cause is mended: what is installed stays"
        )


def milestone(line: str) -> str | None:
    """What a line of pip's says that is worth showing: files of 10 MB and more, and the last step."""
    words = line.strip()
    if words.startswith("Installing collected packages"):
        count = words.count(",") + 1
        return f"unpacking {count} package{'s' * (count > 1)}"
    size = re.match(r"Downloading (\S+) \(([\d.]+) (MB|GB)\)", words)
    if size and (size[3] == "GB" or float(size[2]) >= 10):
        return f"downloading {size[1].rsplit('/', 1)[-1].split('-')[0]} ({size[2]} {size[3]})"
    return None


def clean_env() -> dict[str, str]:
    """The environment without what would send pip's work elsewhere."""
    drop = {"PYTHONHOME", "PYTHONPATH", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV"}
    return {name: value for name, value in os.environ.items() if name not in drop}


def stamp_key(build: str, index: str | None) -> str:
    """Digest of all that decides what is installed."""
    digest = hashlib.sha256()
    for part in ("pyproject.toml", "constraints.txt", "tools/setup_env.py"):
        digest.update((ROOT / part).read_bytes())
    digest.update(repr((str(ROOT), build, index)).encode())
    return digest.hexdigest()


def read_stamp(path: Path) -> dict[str, object]:
    """The stamp of an earlier setup, or nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pinned(package: str) -> str:
    """The version that constraints.txt gives a package."""
    found = re.search(
        rf"^{re.escape(package)}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M
    )
    assert found, f"constraints.txt does not pin {package}"
    return found[1]


def readable(megabytes: float) -> str:
    """Megabytes in words."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 1000 else f"{megabytes:.0f} MB"


def shown(path: Path) -> str:
    """A path as a person at the repository's root would write it."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def tail(text: str, lines: int = 12) -> str:
    """The last lines of a program's words, indented."""
    return "\n".join(f"    {line}" for line in text.strip().splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(main())
