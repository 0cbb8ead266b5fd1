"""Kill a training fifty times, each at another moment, go on with it, and hold the end to a run left alone.

    python benchmarks/faults/kills.py [--kills 50] [--seconds 450] [--folder FOLDER] [--table]

Every kill has a run of its own on a small random model on the CPU: full fine-tuning and LoRA with dropout by
turns. Moments are drawn from a seed over loading, baseline, steps, validation, the writing of checkpoints,
proof and export; every seventh kill is SIGTERM, the others are SIGKILL to the worker and all its children.
The run is then resumed until it is done. One line a kill goes into kills.jsonl: moment, what lay on the disk,
steps that had to be done again, and whether the last checkpoint (weights, optimiser, generators) and the
merged weights are, byte for byte, those of the run left alone. What stands in the file is not done again;
--seconds ends early, --table prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from luthier.runs.directory import RunDirectory  # noqa: E402
from luthier.runs.process import alive, current_state, kill_group  # noqa: E402
from luthier.training import manifest  # noqa: E402
from luthier.version import __version__  # noqa: E402
from tiny import save_tiny_model, write_recipe  # noqa: E402

RESULTS = HERE / "kills.jsonl"
STEPS = 24
MOMENTS = ("load", "step", "checkpoint", "step", "validation", "checkpoint", "step", "export", "step",
           "checkpoint", "baseline", "proof")  # fmt: skip
"""Where kills fall, by turns; within each the moment is drawn."""
METHODS = {"full": "{name: full}", "lora": "{name: lora, rank: 16, dropout: 0.1}"}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("--kills", type=int, default=50)
    words.add_argument("--seconds", type=float, default=3600.0)
    words.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "luthier-kills")
    words.add_argument("--table", action="store_true")
    asked = words.parse_args()
    if asked.table:
        print(table())
        return
    until = time.monotonic() + asked.seconds
    bench = Bench(asked.folder)
    done = {line["kill"] for line in lines()}
    for number in range(asked.kills):
        if number in done:
            continue
        if time.monotonic() > until:
            print(f"{len(lines())} of {asked.kills} are done: start again for the others")
            return
        line = bench.kill(number)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(line, flush=True)


def lines() -> list[dict[str, Any]]:
    """What was measured so far."""
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


class Bench:
    """A folder with the model, the rows, and every run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / "model" / "config.json").exists():
            save_tiny_model(folder / "model", hidden=192, layers=4)
        text = write_recipe(folder, folder / "model", checkpoint_every=4, evaluate_every=6).read_text()
        for name, method in METHODS.items():
            own = text.replace("{name: lora, rank: 4, dropout: 0.1}", method).replace(
                "{max_new_tokens: 16}",
                "{max_new_tokens: 8, max_rows: 4, probe_rows: 0, floor_rows: 0, shots: 0}",
            )
            (folder / f"{name}.yaml").write_text(own)
        self.whole = {name: self.straight(name) for name in METHODS}

    def luthier(self, *words: str) -> None:
        environment = {**os.environ, "LUTHIER_RUNS": str(self.folder / "runs"), "OMP_NUM_THREADS": "1",
                       "LUTHIER_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(ROOT / "src"),
                       "CI": "1"}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "luthier", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"luthier {' '.join(words)}: {done.stderr[-2000:]}")

    def start(self, method: str, name: str) -> RunDirectory:
        """Begin a run and return it once its worker is there."""
        for old in (self.folder / "runs").glob(f"{name}-*"):
            shutil.rmtree(old)
        self.luthier("train", str(self.folder / f"{method}.yaml"), f"name={name}", "--detach")
        (path,) = (self.folder / "runs").glob(f"{name}-*")
        return RunDirectory(path)

    def straight(self, method: str) -> dict[str, str]:
        """Digests of the run that nobody disturbs; made once."""
        kept = self.folder / f"{method}.json"
        if not kept.exists():
            run = self.start(method, f"straight-{method}")
            finish(run)
            kept.write_text(json.dumps(digests(run)))
        found: dict[str, str] = json.loads(kept.read_text())
        return found

    def kill(self, number: int) -> dict[str, Any]:
        """One run, killed once and gone on with to its end."""
        draw = random.Random(1000 + number)
        method, wanted = list(METHODS)[number % 2], MOMENTS[number % len(MOMENTS)]
        run = self.start(method, f"kill-{number:02d}")
        await_moment(run, wanted, draw)
        term = number % 7 == 6
        worker = run.status.worker
        stage, step = run.status.stage, last_step(run)
        if worker is not None and alive(worker):
            if term:
                os.kill(worker.pid, signal.SIGTERM)
            else:
                kill_group(worker)
            wait(lambda: not alive(worker))
        seen, disk = steps_told(run), on_disk(run)
        state = current_state(run)
        if state not in ("done", "failed"):
            self.luthier("train", "--resume", run.id, "--detach")
            wait(lambda: run.status.worker not in (None, worker) or current_state(run) == "done")
        finish(run)
        resumed = [v["step"] for v, _ in run.lines("metrics") if v["kind"] == "resumed"]
        went_on = resumed[0] if resumed else (STEPS if seen == STEPS else 0)
        found = digests(run)
        line = {
            "kill": number,
            "method": method,
            "signal": "SIGTERM" if term else "SIGKILL",
            "moment": wanted,
            "stage": stage,
            "step": step,
            "after": state,
            "disk": disk,
            "resumed_from": went_on,
            "steps_lost": max(0, seen - went_on),
            "state": current_state(run),
            "equal": found == self.whole[method],
            "differs": sorted(name for name, one in self.whole[method].items() if found.get(name) != one),
            "version": __version__,
        }
        if line["equal"]:
            shutil.rmtree(run.path)
        return line


def await_moment(run: RunDirectory, wanted: str, draw: random.Random) -> None:
    """Return when the worker is where the kill shall fall, or has ended before."""
    if wanted == "load":
        wait(lambda: run.status.worker is not None)
        time.sleep(draw.uniform(0, 6))
    elif wanted in ("baseline", "proof", "export"):
        stage = {"proof": "prove", "export": "ship"}.get(wanted, wanted)
        wait(lambda: run.status.stage == stage or ended(run))
        time.sleep(draw.uniform(0, 0.5))
    elif wanted == "checkpoint":
        after = draw.randrange(0, STEPS - 4, 4)
        folder = run.path / manifest.CHECKPOINTS
        wait(lambda: (last_step(run) >= after and any(folder.glob("*.part"))) or ended(run), every=0.0005)
        time.sleep(draw.uniform(0, 0.03))
    else:
        at = draw.randrange(1, STEPS) if wanted == "step" else draw.choice((6, 12, 18))
        wait(lambda: last_step(run) >= at or ended(run), every=0.001)
        time.sleep(draw.uniform(0, 0.1))


def wait(until: Any, seconds: float = 240, every: float = 0.01) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(every)


def ended(run: RunDirectory) -> bool:
    return current_state(run) in ("done", "failed", "stopped", "lost") and run.status.worker is not None


def finish(run: RunDirectory) -> None:
    wait(
        lambda: run.status.worker is not None and current_state(run) in ("done", "failed", "stopped", "lost")
    )


def last_step(run: RunDirectory) -> int:
    return run.status.step


def steps_told(run: RunDirectory) -> int:
    """The last step that the metrics tell of."""
    return max((v["step"] for v, _ in run.lines("metrics") if v["kind"] == "step"), default=0)


def on_disk(run: RunDirectory) -> str:
    """Checkpoints that lie there, and which of them are whole."""
    folder = run.path / manifest.CHECKPOINTS
    if not folder.is_dir():
        return "nothing"
    whole = [s for s in manifest.steps(folder) if manifest.is_whole(folder / manifest.step_name(s))]
    torn = [s for s in manifest.steps(folder) if s not in whole]
    parts = sorted(int(path.name.split("-")[1].split(".")[0]) for path in folder.glob("*.part"))
    said = [f"whole {' '.join(map(str, whole))}"] if whole else []
    said += [f"torn {' '.join(map(str, torn))}"] if torn else []
    said += [f"half written {' '.join(map(str, parts))}"] if parts else []
    return ", ".join(said) or "nothing"


def digests(run: RunDirectory) -> dict[str, str]:
    """What a run leaves that must not depend on how it got there."""
    last = run.path / manifest.CHECKPOINTS / manifest.step_name(STEPS)
    names = [last / name for name in (manifest.WEIGHTS, manifest.OPTIMIZER, manifest.RANDOM)]
    names += sorted((run.path / "artifacts").rglob("*.safetensors"))
    return {
        str(path.relative_to(run.path)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in names
        if path.exists()
    }


def table() -> str:
    """The kills by moment, as the documentation shows them."""
    found = lines()
    rows = ["| moment | kills | of these SIGTERM | steps done again (mean, most) | equal, byte for byte |",
            "|---|---|---|---|---|"]  # fmt: skip
    counts = Counter(line["moment"] for line in found)
    for moment in [*dict.fromkeys(MOMENTS), "all"]:
        own = [line for line in found if moment in (line["moment"], "all")]
        if not own:
            continue
        lost = [line["steps_lost"] for line in own]
        term = sum(line["signal"] == "SIGTERM" for line in own)
        equal = sum(line["equal"] and line["state"] == "done" for line in own)
        again = f"{sum(lost) / len(lost):.1f}, {max(lost)}"
        rows.append(
            f"| {moment} | {counts.get(moment, len(found))} | {term} | {again} | {equal} of {len(own)} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
