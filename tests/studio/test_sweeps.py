"""Sweeps in the studio: listed, drawn, started from a run's recipe, refused where they cannot be."""

import json
import subprocess
import sys
import time

import pytest

from luthier.runs.process import identity
from luthier.runs.sweep.folder import WORKER, SweepFolder, list_sweeps
from luthier.schema.sweep import Axis, SweepChoice, SweepResult, Trial
from studio_case import made_run, studio

SPACE = (
    Axis(key="training.learning_rate", low=1e-5, high=1e-3, log=True),
    Axis(key="method.rank", choices=("8", "16")),
)


def made(tmp_path, name="orders-sweep"):
    """A sweep of three trials: one ended early, one the best, one that failed."""
    run = made_run(tmp_path, "first")
    choice = SweepChoice(name=name, space=SPACE, trials=5)
    folder = SweepFolder.create(choice, run.recipe, root=tmp_path / "runs")

    def trial(number, state, loss, rate, **more):
        settings = {"training.learning_rate": rate, "method.rank": "8"}
        losses = ((0.5, loss + 0.1), (1.0, loss)) if loss else ()
        return Trial(
            number=number, name=f"rate {rate}", settings=settings, state=state, run=f"t-{number}",
            loss=loss, losses=losses, **more,
        )  # fmt: skip

    result = SweepResult(
        choice=choice,
        path=str(folder.path),
        trials=(
            trial(0, "done", 1.5, "1e-4", why="the recipe's own settings"),
            trial(1, "pruned", 2.5, "1e-5", reason="behind the median"),
            trial(2, "done", 1.1, "5e-4"),
            trial(3, "failed", None, "1e-3", reason="<b>broke</b>"),
        ),
        best=2,
        importance={"training.learning_rate": 0.9, "method.rank": 0.1},
    )
    folder.save(result)
    return folder


def test_a_sweep_is_listed_and_drawn_with_its_best_first(tmp_path):
    made(tmp_path)
    with studio(tmp_path) as client:
        assert "Best of 4 trials: rate 5e-4" in client.get("/sweeps").text
        page = client.get("/sweeps/orders-sweep").text
    assert page.index("t-2") < page.index("t-0") < page.index("t-1") < page.index("t-3")
    assert "&lt;b&gt;broke" in page
    assert "<b>broke" not in page
    assert page.count('class="grid"') >= 3  # course, losses, one a setting
    assert "90 %" in page
    assert "lowered the validation loss by 26.7%" in page


def test_names_are_no_paths(tmp_path):
    folder = made(tmp_path)
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (outside / "sweep.json").write_text((folder.path / "sweep.json").read_text())
    with studio(tmp_path) as client:
        for name in ("nobody", "..%5celsewhere", "~", "%00", "a" * 300):
            assert client.get(f"/sweeps/{name}").status_code == 404, name
        assert client.post("/sweeps/orders-sweep/burn").status_code == 422
        assert client.post("/sweeps/orders-sweep/stop").status_code == 409


def test_what_cannot_be_searched_is_refused_before_anything_is_made(tmp_path):
    made_run(tmp_path, "first").save_stage("train", "", {})
    with studio(tmp_path) as client:
        assert "learning_rate=1e-5..1e-3:log" in client.get("/sweeps?run=first").text
        for data, words in (
            ({"run": "nobody", "space": "method.rank=8,16"}, "nobody"),
            ({"run": "first", "space": "training.epochs=2"}, "nothing is varied"),
            ({"run": "first", "space": "training.learning_rat=1e-5..1e-3"}, "learning_rate"),
            ({"run": "first", "space": "method.rank=8,16", "trials": "0"}, "0 trials"),
            ({"run": "first", "space": "method.rank=8,16", "trials": "many"}, "many"),
        ):
            refused = client.post("/sweeps", data=data)
            assert refused.status_code in (404, 422), data
            assert words in refused.text, data
    assert list_sweeps(tmp_path / "runs") == []


@pytest.mark.timeout(60)
def test_a_search_is_a_process_of_its_own(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    run = made_run(tmp_path, "first", model={"id": str(tmp_path / "no-model")}, data={"train": [str(rows)]})
    run.save_stage("train", "", {})
    with studio(tmp_path) as client:
        begun = client.post("/sweeps", data={"run": "first", "space": "method.rank=8,16", "trials": "2"})
        assert begun.status_code == 303, begun.text
        url = begun.headers["location"]
        folder = list_sweeps(tmp_path / "runs")[0]
        assert folder.choice.trials == 2
        worker = json.loads((folder.path / WORKER).read_text())
        assert worker["pid"] != identity().pid
        until = time.monotonic() + 50
        # the recipe's model is not there: the search says so and ends
        while "Go on" not in (page := client.get(url).text):
            assert time.monotonic() < until
            time.sleep(0.2)
    assert "no-model" in page


def test_a_sweep_of_a_terminal_is_stopped_from_the_page(tmp_path):
    folder = made(tmp_path)
    code = (
        "import sys, time; from pathlib import Path; from luthier.runs.sweep.folder import SweepFolder\n"
        f"with SweepFolder(Path({str(folder.path)!r})).held():\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert child.stdout.readline() == b"held\n"
        with studio(tmp_path) as client:
            assert "Stop" in client.get("/sweeps/orders-sweep").text
            assert client.post("/sweeps/orders-sweep/stop").status_code == 303
        assert child.wait(20) != 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
