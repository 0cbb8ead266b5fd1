"""One run on two machines through the command line: stopped by its cluster, started again, done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.runs.directory import RunDirectory
from tiny import save_tiny_model, write_recipe

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("machines")
    save_tiny_model(folder / "model")
    write_recipe(
        folder, folder / "model", micro_batch_size=1, epochs=2, evaluate_every=30, checkpoint_every=30
    )
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def command(home: Path, rank: int, port: int) -> subprocess.Popen[str]:
    flags = ("--nodes", "2", "--node-rank", str(rank), "--rendezvous", f"127.0.0.1:{port}", "--gpus", "1")
    own = home / f"machine-{rank}"
    own.mkdir(exist_ok=True)
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "luthier",
            "train",
            str(home / "recipe.yaml"),
            "--run",
            "orders",
            *flags,
            "export.gguf=[]",
            "--json",
        ],
        env={
            **os.environ,
            "LUTHIER_RUNS": str(own / "runs"),
            "LUTHIER_CACHE": str(own / "cache"),
            "LUTHIER_PATIENCE": "120",
            "OMP_NUM_THREADS": "1",
            "CI": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_that_its_cluster_stops_goes_on_where_it_stood(home: Path) -> None:
    port = free_port()
    both = [command(home, rank, port) for rank in (0, 1)]
    run = RunDirectory(home / "machine-0" / "runs" / "orders")
    until = time.monotonic() + 120
    while not any(values.get("step", 0) >= 2 for values, _ in run.lines("metrics")):
        assert time.monotonic() < until
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.2)
    both[1].send_signal(signal.SIGTERM)
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [130, 130], said
    assert run.status.state == "stopped"
    stopped_at = run.status.step
    assert stopped_at < 48

    port = free_port()
    both = [command(home, rank, port) for rank in (0, 1)]
    said = [one.communicate(timeout=200) for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert json.loads(said[1][0])["state"] == "done"
    answer = json.loads(said[0][0])
    assert answer["run"] == "orders"
    assert answer["train"]["steps"] == 48
    assert len(answer["comparisons"]) == 1, "the first machine proves what came of it"
    steps = [values["step"] for values, _ in run.lines("metrics") if values["kind"] == "step"]
    assert steps == sorted(set(steps)) == list(range(1, 49)), "no step was lost or done twice"
    assert not list((home / "machine-1").glob("runs/*")), "the second machine keeps nothing"

    third = command(home, 0, port)
    out, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    assert "run orders is done" in err
    assert json.loads(out)["state"] == "done"
