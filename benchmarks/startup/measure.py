"""Time of whole commands against a bare import of the libraries that they and their records stand on.

    python benchmarks/startup/measure.py [--runs 15] [--save]

Every command is timed in fresh interpreters, all in turn, so that a busy machine slows all alike; medians of
wall time and of the processor's own time are printed with their ratios to the bare import, and the most that
each ratio may be. Bytecode is kept in a folder of the run's own, as an installed package has it. Nothing
else is cached between runs but the catalogue's index, which a wheel carries ready made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BARE = "import cyclopts, pydantic, rich.console"
RUN = "from luthier.cli.main import main; main({words!r})"
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "luthier --help": (["--help"], 1.5),
    "luthier models": (["models"], 2.5),
    "luthier recommend": (["recommend"], 3.5),
    "luthier recommend --hardware 'rtx 4090'": (["recommend", "--hardware", "rtx 4090"], 3.5),
    "luthier recommend --target phone:8GB": (
        ["recommend", "--hardware", "rtx 4090", "--target", "phone:8GB"],
        None,
    ),
}
"""Command -> its words, and the most that its ratio to the bare import may be."""
RESULTS = Path(__file__).with_name("results.json")


def times(code: str, env: dict[str, str]) -> tuple[float, float]:
    """(wall seconds, processor seconds) of one fresh interpreter that runs code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True, env=env)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(runs: int) -> dict[str, object]:
    """All commands, so many times in turn."""
    codes = {"bare import": BARE, "interpreter alone": "pass"}
    codes |= {name: RUN.format(words=words) for name, (words, _) in COMMANDS.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in codes}
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env["PYTHONPYCACHEPREFIX"] = folder
        for code in codes.values():
            times(code, env)  # fills the file cache and writes bytecode
        for _ in range(runs):
            for name, code in codes.items():
                found[name].append(times(code, env))
    rows = {}
    bare = [statistics.median(column) for column in zip(*found["bare import"], strict=True)]
    for name, pairs in found.items():
        wall, own = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows[name] = {
            "wall_seconds": round(wall, 4),
            "processor_seconds": round(own, 4),
            "wall_ratio": round(wall / bare[0], 2),
            "processor_ratio": round(own / bare[1], 2),
            "most": COMMANDS[name][1] if name in COMMANDS else None,
            "all_wall_seconds": [round(pair[0], 4) for pair in pairs],
        }
    return {
        "commands": rows,
        "runs": runs,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
    }


def main() -> None:
    """Measure, print a table, and with --save keep the raw figures beside this file."""
    parser = argparse.ArgumentParser(description="Start-up time of the command line.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name} beside this file")
    asked = parser.parse_args()
    result = measure(asked.runs)
    commands: dict[str, dict[str, float | None]] = result["commands"]  # type: ignore[assignment]
    print(f"{'command':42}{'wall s':>8}{'ratio':>7}{'own s':>8}{'ratio':>7}{'most':>6}")
    for name, row in commands.items():
        most = "" if row["most"] is None else f"{row['most']:g}"
        print(
            f"{name:42}{row['wall_seconds']:8.3f}{row['wall_ratio']:7.2f}{row['processor_seconds']:8.3f}"
            f"{row['processor_ratio']:7.2f}{most:>6}"
        )
    if asked.save:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
