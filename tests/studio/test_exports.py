"""Exports: sizes before, files by range, nothing outside the run, steps from its own events."""

import json
import struct
import time
from types import SimpleNamespace

import pytest

from luthier.errors import RecipeError, UsageError
from luthier.exporting.files import artifact_of
from luthier.schema.results import Metric, ParityCheck, Quality, TrainResult
from luthier.schema.run import Status
from luthier.studio.services import deploying
from luthier.studio.services.exports import export_choice, export_view
from studio_case import made_run, settings_in, studio

VALUES = 1000


def safetensors(path, values=VALUES):
    header = json.dumps({"w": {"dtype": "BF16", "shape": [values], "data_offsets": [0, values * 2]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * values * 2)


@pytest.fixture
def run(tmp_path):
    run = made_run(tmp_path, "first")
    run.save_stage(
        "train",
        "",
        TrainResult(
            steps=20, epochs=1, first_loss=3, last_loss=2, best_step=20, best_validation_loss=None,
            selected_checkpoint="checkpoints/step-00000020", seconds=1, tokens=1, trained_tokens=1,
            tokens_per_second=1, peak_memory=1, trainable_parameters=250, total_parameters=VALUES,
            device="cpu", dtype="bfloat16",
        ),
    )  # fmt: skip
    out = run.path / "artifacts"
    safetensors(out / "merged" / "model.safetensors")
    file = out / "first-Q4_K_M.gguf"
    file.write_bytes(bytes(range(256)) * 4)
    score = Metric(value=0.9, low=0.8, high=0.95, n=64)
    gguf = artifact_of(file, "gguf:Q4_K_M", relative_to=run.path).model_copy(
        update={
            "parity": ParityCheck(
                prompts=14, equal_token_ids=14, compared_tokens=361, equal_tokens=345, near_ties=2,
                mean_kl=0.0405, stops=True, passed=True,
            ),
            "quality": Quality(
                split="test", metric="exact_match", score=score, difference=score,
                verdict="inconclusive", kept=0.99,
            ),
        }
    )  # fmt: skip
    merged = artifact_of(out / "merged", "merged", relative_to=run.path)
    run.save_stage("artifacts", "", [merged.model_dump(mode="json"), gguf.model_dump(mode="json")])
    return run


def test_sizes_are_known_before_and_what_was_measured_is_said(tmp_path, run):
    view = export_view(settings_in(tmp_path), run)
    sizes = {option.key: option.bytes for option in view.options}
    assert sizes["adapter"] == 1000
    assert sizes["merged"] == VALUES * 2
    assert sizes["F16"] > sizes["Q8_0"] > sizes["Q4_K_M"] > 0
    assert view.free > 0
    merged, gguf = view.written
    assert [file.path for file in merged.files] == ["merged/model.safetensors"]
    assert gguf.parity == "345 of 361 tokens on 14 prompts, KL 0.0405 nats"
    assert gguf.kept == "99 %"
    assert {option.key for option in view.options if option.there} == {"merged", "Q4_K_M"}


def test_files_come_whole_or_in_parts_and_from_nowhere_else(tmp_path, run):
    (run.path / "artifacts" / "away").symlink_to("/etc")
    with studio(tmp_path) as client:
        for root in ("/exports", "/api/v1/exports"):
            url = f"{root}/first/files/first-Q4_K_M.gguf"
            whole = client.get(url)
            assert len(whole.content) == 1024
            assert whole.headers["content-disposition"].startswith("attachment")
            part = client.get(url, headers={"range": "bytes=250-259"})
            assert part.status_code == 206
            assert part.content == (bytes(range(256)) * 2)[250:260]
            assert part.headers["content-range"] == "bytes 250-259/1024"
            assert client.get(url, headers={"range": "bytes=5000-"}).status_code == 416
            outside = (
                "%2e%2e/recipe.yaml",
                "..%2frecipe.yaml",
                "away/passwd",
                "merged",
                "%00",
                "no.gguf",
                "a" * 300,
            )
            for path in outside:
                assert client.get(f"{root}/first/files/{path}").status_code == 404, path


def test_pages_say_what_there_is(tmp_path, run):
    with studio(tmp_path) as client:
        assert "345 of 361 tokens" in client.get("/exports").text
        page = client.get("/exports/first").text
        assert "first-Q4_K_M.gguf" in page
        assert "99 %" in page
        kept = client.get("/runs/first?tab=checkpoints").text
        assert "345 of 361 tokens on 14 prompts, KL 0.0405 nats" in kept
        assert "prompts alike" not in kept
        for about in deploying.ABOUT.values():
            assert f">{about}</option>" in page
            assert len(about) <= 34, "a narrow column cuts more"
        assert client.get("/exports/nobody").status_code == 404
        values = client.get("/api/v1/exports/first").json()
        assert {one["kind"] for one in values["options"]} >= {"adapter", "merged", "Q4_K_M"}


def test_an_export_goes_through_the_queue_and_is_refused_where_it_cannot_be(tmp_path, run, monkeypatch):
    asked = []
    monkeypatch.setattr("luthier.studio.services.exports.submit", lambda settings, job: asked.append(job))
    with studio(tmp_path) as client:
        assert client.post("/exports/first", data={"kind": "adapter"}).status_code == 303
        assert [(job.kind, job.run, job.export.adapter, job.export.gguf) for job in asked] == [
            ("export", "first", True, ())
        ]
        for data, status, words in (
            ({}, 422, "nothing was chosen"),
            ({"kind": "onnx"}, 422, "ONNX"),
            ({"kind": "Q4_K_X"}, 422, "Q4_K_M"),
        ):
            refused = client.post("/exports/first", data=data)
            assert refused.status_code == status
            assert words in refused.text
        run.set_status(Status(state="queued"))
        assert client.post("/exports/first", data={"kind": "adapter"}).status_code == 409
        (run.path / "train.json").unlink()
        run.set_status(Status(state="done"))
        assert client.post("/api/v1/exports", json={"run": "first", "kinds": ["adapter"]}).status_code == 409
        assert client.post("/api/v1/exports", json={"run": "nobody", "kinds": ["adapter"]}).status_code == 404
    assert len(asked) == 1


def test_an_export_without_room_is_refused_before_anything_is_written(tmp_path, run, monkeypatch):
    full = SimpleNamespace(free=10)
    monkeypatch.setattr("luthier.exporting.space.shutil.disk_usage", lambda path: full)
    with studio(tmp_path) as client:
        refused = client.post("/api/v1/exports", json={"run": "first", "kinds": ["merged"]})
    assert refused.status_code == 422
    assert refused.json()["code"] == "does-not-fit"


def test_choices_are_words_of_the_recipe():
    assert export_choice(["Q8_0", "merged", "Q8_0"]).gguf == ("Q8_0",)
    with pytest.raises(UsageError):
        export_choice([])
    with pytest.raises(RecipeError):
        export_choice(["Q9"])


def test_steps_are_those_of_the_last_export(tmp_path, run):
    def event(**values):
        run.append("events", values)

    event(event="stage", stage="ship", state="start")
    event(event="progress", stage="ship", what="an older one", done=1, total=1)
    event(event="stage", stage="ship", state="done")
    event(event="progress", stage="prove", what="rows", done=1, total=9)
    event(event="stage", stage="ship", state="start")
    event(event="note", text="  Q4_K_M: quantising")
    event(event="progress", stage="ship", what="gguf:Q4_K_M in llama.cpp", done=3, total=14)
    view = export_view(settings_in(tmp_path), run)
    assert [(step.words, step.done, step.total, step.running) for step in view.steps] == [
        ("Q4_K_M: quantising", 1, 1, False),
        ("gguf:Q4_K_M in llama.cpp", 3, 14, False),
    ]
    assert not view.exporting


@pytest.mark.timeout(60)
def test_a_deployment_is_a_job_that_says_why_it_cannot_be(tmp_path, run):
    with studio(tmp_path) as client:
        assert client.post(f"/exports/{run.id}/deploy", data={"target": "toaster"}).status_code == 422
        begun = client.post(f"/exports/{run.id}/deploy", data={"target": "ollama"})
        assert begun.status_code == 303, begun.text
        until = time.monotonic() + 50
        while "being made" in (page := client.get(f"/exports/{run.id}").text):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert "gguf" in page.lower()
        (found,) = client.get(f"/api/v1/exports/{run.id}/deployments").json()["deployments"]
    assert found["target"] == "ollama"
    assert found["command"]["state"] == "failed", "the run of this test has no GGUF file"
    assert found["command"]["fix"]
