"""Slices of a judged split, computed by a process of its own and kept.

Their tests need scipy, which would stay in the studio's memory for good: 65 MB of the 120 that it may take.

``python -m luthier.studio.services.slicing RUN_DIR SPLIT`` prints them as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from luthier.errors import ToolchainError
from luthier.files import write_text
from luthier.runs.directory import RunDirectory, digest_of
from luthier.runs.report.scores import SliceRow
from luthier.studio.services.evals import open_evaluation

PATIENCE = 120.0


def slices_of(run: RunDirectory, split: str, *, home: Path) -> list[SliceRow]:
    """Parts of a split on their own, worst first; from the studio's folder where they were computed before.

    Errors: ToolchainError where the process fails.
    """
    marks = []
    for name in ("tuned.json", "baseline.json", f"evaluations/{split}.json"):
        path = run.path / name
        marks.append(f"{path} {path.stat().st_mtime_ns}" if path.is_file() else "")
    kept = home / "slices" / f"{digest_of(split, *marks)}.json"
    if not kept.is_file():
        words = [sys.executable, "-m", "luthier.studio.services.slicing", str(run.path), split]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            raise ToolchainError("the slices took too long", hint="see the run's report") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            raise ToolchainError(f"the slices could not be computed: {last}", hint="see the run's report")
        write_text(kept, done.stdout)
    return [SliceRow(**one) for one in json.loads(kept.read_text(encoding="utf-8"))]


def main() -> None:
    """Entry of the process."""
    found = open_evaluation(RunDirectory(Path(sys.argv[1])), sys.argv[2])
    json.dump([asdict(one) for one in found.slices], sys.stdout)


if __name__ == "__main__":
    main()
