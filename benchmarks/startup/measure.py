"""Time of ``luthier --help`` against a bare import of the libraries that it and its records stand on.

    python benchmarks/startup/measure.py [--runs 15]

Both are timed in fresh interpreters, in turn, so that a busy machine slows both alike; the medians and
their ratio are printed. The aim is a ratio of at most 1.5.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

BARE = "import cyclopts, pydantic, rich.console"
HELP = "from luthier.cli.main import main; main(['--help'])"
COMMANDS = {"bare import": BARE, "luthier --help": HELP, "interpreter alone": "pass"}


def seconds(code: str) -> float:
    """Wall time of one fresh interpreter that runs code."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description="Start-up time of the command line.")
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    for code in COMMANDS.values():
        seconds(code)  # fills the file cache and writes bytecode
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, code in COMMANDS.items():
            times[name].append(seconds(code))
    median = {name: round(statistics.median(values), 3) for name, values in times.items()}
    ratio = median["luthier --help"] / median["bare import"]
    print(
        json.dumps(
            {"seconds": median, "ratio": round(ratio, 2), "runs": runs, "python": sys.version.split()[0]}
        )
    )


if __name__ == "__main__":
    main()
