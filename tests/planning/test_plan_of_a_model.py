"""``luthier plan MODEL``: what it says holds if it is followed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from luthier.cli.main import main


def leave(*words: str) -> int:
    """The exit code of a plan."""
    with pytest.raises(SystemExit) as left:
        main(("plan", *words))
    return int(left.value.code or 0)


def plan(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    code = leave(*words, "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if found["fits"] else 3)
    return found


MACHINES = [
    ("qwen2.5-1.5b-instruct", "rtx 3060", "full"),
    ("llama-3.3-70b-instruct", "rtx 4090", "qlora"),
    ("llama-3.1-8b-instruct", "t4", "lora"),
    ("qwen3-embedding-0.6b", "rtx 3060", "lora"),
    ("qwen2.5-0.5b-instruct", "cpu:8GB", "lora"),
    ("qwen2.5-7b-instruct", "a100 40GB", "full"),
    ("llama-3.1-8b-instruct", "2xh100", "full"),
]


@pytest.mark.parametrize(("model", "machine", "method"), MACHINES)
def test_each_change_that_is_offered_does_what_it_says(
    capsys: pytest.CaptureFixture[str], model: str, machine: str, method: str
) -> None:
    words = (model, "--hardware", machine)
    now = plan(capsys, *words, "--method", method)
    assert now["changes"]
    for change in now["changes"]:
        asked = change["setting"].split()
        if any(part.startswith("training.devices=") for part in asked):
            continue  # of a larger machine
        given = () if "method.name=" in change["setting"] else ("--method", method)
        after = plan(capsys, *words, *given, *asked)
        assert after["fits"] == change["fits"], change


def test_all_gpus_that_are_described_take_part(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llama-3.1-8b-instruct", "--batch", "64", "--hardware")
    one, eight = (plan(capsys, *words, f"{n}xh100") for n in (1, 8))
    assert eight["shape"]["batch_size"] == 8
    assert eight["estimate"]["seconds"]["expected"] < one["estimate"]["seconds"]["expected"] / 5
    whole = plan(capsys, *words, "8xh100", "--method", "full")
    assert whole["shape"]["shard"] > 1
    alone = plan(capsys, *words, "8xh100", "training.devices=1")
    assert alone["estimate"]["seconds"] == one["estimate"]["seconds"]
    assert leave(*words, "8xh100", "--method", "full") == 0
    assert "devices hold one model together" in " ".join(capsys.readouterr().out.split())


def test_what_no_recipe_may_ask_for_is_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("qwen2.5-0.5b-instruct", "--hardware", "h100")
    assert leave(*words, "--optimizer", "muon") == 2
    assert "Muon" in capsys.readouterr().err
    assert leave(*words, "training.micro_batch=1") == 2
    assert "micro_batch_size" in capsys.readouterr().err


def test_frozen_weights_wait_in_the_host_s_memory_where_nothing_else_fits(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ("llama-3.3-70b-instruct", "--hardware", "rtx 4090", "--method", "qlora")
    found = plan(capsys, *words)
    assert found["fits"]
    assert found["shape"]["offload_parameters"] is True
    assert leave(*words) == 0
    assert "nothing else fits" in " ".join(capsys.readouterr().out.split())
    refused = plan(capsys, *words, "training.offload_parameters=false")
    assert not refused["fits"]
