"""Home, Runs, the run page and their API over runs as a worker writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from luthier.runs.process import identity
from luthier.schema.base import Range
from luthier.schema.estimate import Estimate
from luthier.schema.results import Comparison
from luthier.schema.run import Failure, Origin, Status, WorkerIdentity
from luthier.studio.services.metrics import COLUMNS, sampled, tail
from luthier.studio.services.runs import RunIndex

if TYPE_CHECKING:
    from starlette.testclient import TestClient
from studio_case import LIVE, made_run, studio

GONE = WorkerIdentity(pid=2**22 - 1, started=1.0, boot="of another day")
HTML = {"accept": "text/html"}
TABS = ("charts", "samples", "checkpoints", "config", "log", "environment", "nonsense")


def page(client: TestClient, path: str) -> str:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == 200, answer.text[:500]
    return answer.text


def test_an_empty_studio_says_how_to_begin(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        assert "First run" in page(client, "/")
        assert "No run yet" in page(client, "/runs")


def test_runs_are_listed_and_filtered(tmp_path: Path) -> None:
    made_run(tmp_path, "tone", steps=5)
    made_run(tmp_path, "sums", steps=5, status=Status(state="stopped", step=5), model={"id": "acme/large"})
    with studio(tmp_path) as client:
        text = page(client, "/runs")
        assert "0 active, 2 in all" in text
        assert 'id="run-tone"' in text
        assert 'id="run-sums"' not in page(client, "/runs?status=done")
        assert "No run is like that" in page(client, "/runs?q=LARGE+done")
        found = client.get("/api/v1/runs", params={"q": "large"}).json()
        assert [row["id"] for row in found["runs"]] == ["sums"]


def test_two_hundred_runs_are_listed_and_filtered(tmp_path: Path) -> None:
    one = made_run(tmp_path, "r000", steps=5)
    for number in range(1, 200):
        folder = tmp_path / "runs" / f"r{number:03}"
        folder.mkdir()
        for name in ("status.json", "recipe.yaml"):
            (folder / name).write_bytes((one.path / name).read_bytes())
    index = RunIndex(tmp_path / "runs")
    assert len(index.rows()) == 200
    with studio(tmp_path) as client:
        text = page(client, "/runs?q=r1")  # how fast: benchmarks/studio
    assert "200 in all" in text
    assert "r199" in text
    assert "r099" not in text


@pytest.mark.parametrize("tab", TABS)
def test_every_tab_of_a_run_opens(tmp_path: Path, tab: str) -> None:
    made_run(tmp_path, "tone", steps=12)
    with studio(tmp_path) as client:
        text = page(client, f"/runs/tone?tab={tab}")
        assert "<h1>tone</h1>" in text
        assert "style=" not in text
        assert " onclick" not in text


def test_a_batch_that_cannot_be_shown_says_why(tmp_path: Path) -> None:
    made_run(tmp_path, "tone", steps=3)
    with studio(tmp_path) as client:
        assert "the rows cannot be shown" in page(client, "/runs/tone?tab=batch")


def test_a_failed_run_names_its_cause_and_ways_out(tmp_path: Path) -> None:
    failure = Failure(kind="DoesNotFit", message="out of memory at step 3", hint="halve it", exit_code=3)
    recipe = {"training": {"micro_batch_size": 8, "batch_size": 8, "sequence_length": 2048}}
    run = made_run(tmp_path, "big", steps=3, status=Status(state="failed", step=3, failure=failure), **recipe)
    (run.path / "log.txt").write_text("a traceback\n<script>alert(1)</script>\n")
    with studio(tmp_path) as client:
        text = page(client, "/runs/big")
    assert "out of memory at step 3" in text
    assert "Halve the micro-batch to 4" in text
    assert "Cut rows to 1,024 tokens" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_dead_worker_is_shown_as_lost_with_resume(tmp_path: Path) -> None:
    made_run(tmp_path, "tone", status=Status(state="running", stage="train", step=9, worker=GONE))
    with studio(tmp_path) as client:
        text = page(client, "/runs/tone")
        assert "The worker was lost" in text
        assert "Resume" in text
        assert client.get("/api/v1/runs/tone").json()["state"] == "lost"


def test_a_live_worker_is_taken_over_again(tmp_path: Path) -> None:
    made_run(tmp_path, "tone", status=Status(state="running", stage="train", step=9, worker=identity()))
    for _ in range(2):  # the second time as after a restart
        with studio(tmp_path) as client:
            assert client.get("/api/v1/runs/tone").json()["state"] == "running"
            assert "Stop and save" in page(client, "/runs/tone")


def test_stop_asks_the_worker(tmp_path: Path) -> None:
    run = made_run(tmp_path, "tone", status=Status(state="running", stage="train", step=9, worker=identity()))
    with studio(tmp_path) as client:
        assert client.post("/api/v1/runs/tone/save").status_code == 200
        assert run.asked() == "save"
        run.set_status(Status(state="done"))
        answer = client.post("/api/v1/runs/tone/stop")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


@pytest.mark.parametrize("name", ["nope", "..", "%2e%2e", "..%5Cx", ".queue", "a%00b"])
def test_what_is_no_run_is_not_found(tmp_path: Path, name: str) -> None:
    made_run(tmp_path, "tone", steps=2)
    with studio(tmp_path) as client:
        for path in ("", "/metrics", "/log", "/recipe.yaml", "/bundle.zip"):
            assert client.get(f"/api/v1/runs/{name}{path}").status_code == 404


def test_a_run_elsewhere_is_not_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "other", "secret", steps=2)
    (tmp_path / "runs").mkdir()
    with studio(tmp_path) as client:
        assert client.get(f"/runs/{run.path}", headers=HTML).status_code == 404


def test_a_family_is_drawn_from_its_oldest(tmp_path: Path) -> None:
    made_run(tmp_path, "first", steps=2)
    for name, parent in (("second", "first"), ("third", "second")):
        run = made_run(tmp_path, name, steps=2)
        run.save_stage("origin", "", Origin(kind="branch", parent=parent, path="x", step=1))
    with studio(tmp_path) as client:
        text = page(client, "/runs/third")
        tree = text[text.index('class="tree"') :]
        assert tree.index(">first</a>") < tree.index(">second</a>") < tree.index(">third</strong>")


def test_two_runs_are_compared_by_setting(tmp_path: Path) -> None:
    made_run(tmp_path, "one", steps=2)
    made_run(tmp_path, "two", steps=2, training={"learning_rate": 1e-5})
    with studio(tmp_path) as client:
        assert "training.learning_rate" in page(client, "/runs/diff?ids=one,two")
        assert client.get("/runs/diff?ids=one", headers=HTML).status_code == 404
        changed = client.get("/api/v1/runs/one/diff/two").json()["changed"]
        assert "training.learning_rate" in changed


def predicted(process: int, tensors: int) -> Estimate:
    """A prediction of which only the peaks matter."""
    whole, alone = (Range(low=size, expected=size, high=size) for size in (process, tensors))
    return Estimate(
        phases=(), process=whole, tensors=alone, seconds=None, trainable_parameters=1, total_parameters=1,
        flops=1.0, basis="formula",
    )  # fmt: skip


@pytest.mark.parametrize("on_gpu", [False, True])
def test_both_pages_say_one_predicted_peak(tmp_path: Path, *, on_gpu: bool) -> None:
    for name in ("one", "two"):
        run = made_run(tmp_path, name, steps=2)
        run.save_stage("plan", "", predicted(3 * 2**30, 2**30))
        run.save_stage("hardware", "", {"accelerators": [{}] if on_gpu else []})
    wanted = "1.00" if on_gpu else "3.00"
    with studio(tmp_path) as client:
        assert f"{wanted} GiB" in page(client, "/runs/diff?ids=one,two")
        assert f"of {wanted}" in page(client, "/runs/one")


def test_a_run_leads_on_to_its_proof_and_its_exports(tmp_path: Path) -> None:
    run = made_run(tmp_path, "tone", steps=2)
    made_run(tmp_path, "halted", steps=2, status=Status(state="stopped", step=2))
    with studio(tmp_path) as client:
        text = page(client, "/runs/tone")
        assert 'href="/exports/tone"' in text
        assert 'href="/evals/tone"' not in text  # nothing was judged
        page(client, "/exports/tone")
        assert "/exports/halted" not in page(client, "/runs/halted")
        run.save_stage(
            "comparison",
            "",
            [
                Comparison(split="test", primary="loss", differences=(), verdict="better").model_dump(
                    mode="json"
                )
            ],
        )
        assert 'href="/evals/tone"' in page(client, "/runs/tone")


def test_sampling_keeps_spikes_ends_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 20_001):
            loss = 99.0 if step == 7777 else 2.0
            file.write(json.dumps({"time": 1.0, "kind": "step", "step": step, "loss": loss, "x": "y" * 40},
                                  separators=(",", ":")) + "\n")  # fmt: skip
            if step % 1000 == 0:
                check = {"time": 1.0, "kind": "validation", "step": step, "loss": 1.0}
                file.write(json.dumps(check, separators=(",", ":")) + "\n")
        file.write('{"time":1,"kind":"step","step":20001,"lo')  # torn: its writer is at it
    found = sampled(path, most=600)
    steps = found["columns"]["step"]
    assert len(steps) <= 602
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1, 20_000)
    assert 7777 in steps
    assert len(found["validation"]["step"]) == 20
    assert set(found["columns"]) == set(COLUMNS)
    with path.open("a") as file:
        file.write('ss":1.5}\n')
    news = tail(path, found["offset"])
    assert [row[:2] for row in news["rows"]] == [[20001, 1.5]]
    assert tail(path, news["offset"])["rows"] == []


def test_a_live_page_hears_every_step_from_its_place(tmp_path: Path) -> None:
    run = made_run(
        tmp_path, "tone", steps=3, status=Status(state="running", stage="train", worker=identity())
    )
    with studio(tmp_path) as client:
        offset = client.get("/api/v1/runs/tone/metrics").json()["offset"]
        run.append("metrics", {"kind": "step", "step": 4, "loss": 1.25, "seconds_left": 5.0})
        with client.websocket_connect(LIVE) as socket:
            socket.send_json({"key": 7, "topic": "run", "id": "tone", "offset": offset})
            news = socket.receive_json()
            assert news["key"] == 7
            assert [row[:2] for row in news["rows"]] == [[4, 1.25]]
            assert (news["state"], news["left"]) == ("running", "5.0 s")
            run.append("metrics", {"kind": "step", "step": 5, "loss": 1.0})
            more = socket.receive_json()
            assert [row[0] for row in more["rows"]] == [5]
            run.set_status(Status(state="done", step=5))
            assert socket.receive_json()["state"] == "done"


def test_nonsense_over_the_socket_ends_it_quietly(tmp_path: Path) -> None:
    with studio(tmp_path) as client:
        for words in ("[1, 2]", "no json", '{"key": 1, "topic": "run", "id": "../../etc"}'):
            with client.websocket_connect(LIVE) as socket:
                socket.send_text(words)
        assert client.get("/health").status_code == 200


def test_events_are_streamed_to_programs(tmp_path: Path) -> None:
    made_run(tmp_path, "tone", steps=3)
    with studio(tmp_path) as client:
        text = client.get("/api/v1/runs/tone/events").text
    assert "event: status" in text
    assert '"rows": [[1, ' in text


def test_files_of_a_run(tmp_path: Path) -> None:
    run = made_run(tmp_path, "tone", steps=3)
    with studio(tmp_path) as client:
        assert client.get("/api/v1/runs/tone/metrics.csv").text.splitlines()[0].startswith("kind,step,loss")
        assert client.get("/api/v1/runs/tone/recipe.yaml").text == (run.path / "recipe.yaml").read_text()
        assert client.get("/api/v1/runs/tone/bundle.zip").content[:2] == b"PK"
        assert client.get("/api/v1/runs/tone/report.html").status_code == 404
        (run.path / "report.html").write_text("<p>report</p>")
        policy = client.get("/api/v1/runs/tone/report.html").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "sandbox" in policy
