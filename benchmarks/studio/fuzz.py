"""Schemathesis over the studio's OpenAPI document: how many requests, and was any answered with a 5xx?

``python benchmarks/studio/fuzz.py --st PATH/TO/st [--out results/FILE.json]`` makes a few runs in a scratch
folder and a studio over them that may reach no Hub, and lets Schemathesis (installed where you like) ask it
as its owner would. Left out are logging out, which would end the test, and the stream of events, which never
ends. About ten minutes on two busy cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from luthier.schema.run import Failure, Status  # noqa: E402
from luthier.studio.access import Access  # noqa: E402
from studio.test_evals import judge  # noqa: E402
from studio_browser import Server  # noqa: E402
from studio_case import made_run  # noqa: E402

SEED = 20261122
LEFT_OUT = "logout|/events"
KEPT = ("schemathesis_version", "seed", "running_time", "operations", "phases", "test_cases")
FAULTS = ("failures", "errors")


def main() -> int:
    """Ask, count, say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--st", default="st")
    parser.add_argument("--examples", type=int, default=80)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        judge(made_run(folder, "judged"))
        made_run(folder, "done", steps=40)
        failure = Failure(kind="DoesNotFit", message="out of memory", hint="halve it", exit_code=3)
        made_run(folder, "failed", steps=3, status=Status(state="failed", step=3, failure=failure))
        server = Server(folder)
        server.environment["LUTHIER_CACHE"] = str(folder / "cache")
        server.start()
        try:
            found = ask(server, asked.st, asked.examples, folder)
            found["server_bytes_after"] = server.memory()
        finally:
            server.stop()
    text = json.dumps(found, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")
    return 1 if found["failures"] or found["errors"] else 0


def ask(server: Server, st: str, examples: int, folder: Path) -> dict[str, object]:
    """One run of Schemathesis; what its report counts."""
    token = Access(folder / "studio").token()
    words = [st, "run", f"{server.url}/api/v1/openapi.json", "-H", f"Authorization: Bearer {token}"]
    words += ["-c", "not_a_server_error", "--seed", str(SEED), "-n", str(examples), "--continue-on-failure"]
    words += ["--exclude-path-regex", LEFT_OUT, "--request-timeout", "30", "--no-shrink"]
    subprocess.run(
        [*words, "--report", "json", "--report-dir", str(folder / "report")], cwd=folder, check=False
    )
    (report,) = (folder / "report").glob("*.json")
    told = json.loads(report.read_text(encoding="utf-8"))
    return {name: told[name] for name in (*KEPT, *FAULTS)}


if __name__ == "__main__":
    sys.exit(main())
