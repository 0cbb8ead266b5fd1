"""Answers at each evaluation: as the model gives them, and nothing of the training changes by them."""

import pytest

from luthier.runs.recorder import Recorder
from luthier.studio.services.seen import course
from luthier.tasks import glimpses
from luthier.tasks.chat import ChatTask
from studio_case import made_run
from tasks.test_chat import SPLITS, Words, recipe, save_model

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")

SHORT = {"epochs": 8, "evaluate_every": 16, "learning_rate": 3e-2}


def trained(tmp_path, name, **training):
    folder = tmp_path / name
    folder.mkdir()
    task = ChatTask(recipe(save_model(folder / "base"), **training), folder / "base", Words())
    events = []
    task.fit(SPLITS, folder / "run", recipe_digest="r", on_metrics=events.append)
    return task, events


def losses(events):
    return [one["loss"] for one in events if one["kind"] in ("step", "validation")]


def samples(events):
    return [one for one in events if one["kind"] == "samples"]


def test_a_training_is_the_same_to_the_bit_with_answers_and_without(tmp_path, monkeypatch):
    monkeypatch.setattr(glimpses, "SHARE", 1.0)
    task, events = trained(tmp_path, "with", **SHORT)
    found = samples(events)
    assert [one["step"] for one in found] == [one["step"] for one in events if one["kind"] == "validation"]
    last = found[-1]["samples"]
    assert [one["prompt"] for one in last] == ["<s> w9", "<s> w15"]
    assert [one["expected"] for one in last] == ["w10 w11 w12 </s>", "w16 w17 w18 </s>"]
    assert all(one["answer"].startswith("w") for one in last)
    assert len({one["samples"][0]["answer"] for one in found}) > 1, "the weights change, and what they say"
    assert not any(module.training for module in task.model.modules())
    monkeypatch.setattr(glimpses, "ROWS", 0)
    _, plain = trained(tmp_path, "without", **SHORT)
    assert samples(plain) == []
    assert losses(plain) == losses(events)


def test_answers_stop_where_they_take_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(glimpses, "SHARE", 0.0)
    _, events = trained(tmp_path, "slow", **SHORT)
    assert len(samples(events)) == 1


def test_they_are_kept_by_step_and_shown(tmp_path):
    run = made_run(tmp_path, "first", steps=0)
    record = Recorder(run, board=None)
    row = {"row": "a", "prompt": "p", "expected": "e"}
    for step, answer in ((5, "x"), (10, "y"), (10, "z")):  # step 10 was done again after a kill
        record({"kind": "samples", "step": step, "seconds": 0.1, "samples": [{**row, "answer": answer}]})
    assert course(run) == [{"prompt": "p", "expected": "e", "said": [(10, "z"), (5, "x")]}]
    assert list(run.lines("metrics")) == []
