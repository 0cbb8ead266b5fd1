"""Checkpoints beside the training: the same as in its way, and a failed write is not passed over."""

import errno
import threading
import time

import pytest
import torch

from luthier.errors import DoesNotFit
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training import checkpoint
from luthier.training.guard import HostShort
from luthier.training.loop import fit
from luthier.training.writer import HostCopies, Writer

CHOICE = TrainingChoice(
    epochs=2, learning_rate=3e-3, batch_size=4, micro_batch_size=2, sequence_length=32, weight_decay=0.1,
    evaluate_every=3, checkpoint_every=2, keep_last=9, activation_checkpointing="none",
)  # fmt: skip


def run(tiny, source, directory, events, *, control=None, resume=False, **changes):
    model = tiny()
    add_lora(model, Lora(rank=4, dropout=0.2), seed=1)
    return fit(
        model, causal_objective(model), source, [], choice=CHOICE.model_copy(update=changes), seed=5,
        directory=directory, recipe_digest="r", device=torch.device("cpu"), on_metrics=events.append,
        control=control, resume=resume,
    )  # fmt: skip


def test_copies_are_of_their_moment():
    weight, held = torch.ones(3), HostCopies()
    state = {"state": {0: {"step": torch.tensor(1.0), "name": "a"}}, "groups": [{"betas": (0.9, 0.99)}]}
    copied = held.copy({"weights": {"w": weight}, "optimizer": state, "average": None})
    weight += 1
    state["state"][0]["step"] += 1
    assert torch.equal(copied["weights"]["w"], torch.ones(3))
    assert copied["optimizer"]["state"][0] == {"step": torch.tensor(1.0), "name": "a"}
    assert copied["optimizer"]["groups"] == [{"betas": (0.9, 0.99)}]
    assert copied["average"] is None
    again = held.copy({"weights": {"w": weight}})
    assert again["weights"]["w"].data_ptr() == copied["weights"]["w"].data_ptr(), "buffers are used again"


def test_what_nobody_changes_later_is_not_held_twice():
    weight, gathered, held = torch.ones(6), torch.ones(6), HostCopies()
    copied = held.copy({"weights": {"part": weight[2:], "whole": gathered}}, live=[weight])["weights"]
    weight += 1
    assert torch.equal(copied["part"], torch.ones(4)), "a view of what is changed is copied"
    assert copied["whole"].data_ptr() == gathered.data_ptr()


def test_one_write_at_a_time_and_its_failure_is_raised_once():
    writer, gate, done = Writer(), threading.Event(), []
    writer.submit(lambda: (gate.wait(), done.append(1)))
    assert writer.busy
    assert not writer.ended()
    assert not done
    gate.set()
    assert writer.wait()
    assert done == [1]

    def fails():
        raise OSError(errno.ENOSPC, "No space left on device")

    writer.submit(fails)
    with pytest.raises(OSError, match="No space"):
        writer.wait()
    assert not writer.wait()


def test_written_beside_or_in_the_way_is_the_same(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    events = {}
    for name, beside in (("beside", True), ("before", False)):
        events[name] = []
        run(tiny, make_source(rows), tmp_path / name, events[name], background_checkpoints=beside)
    files = [
        {
            file.relative_to(tmp_path / name): file.read_bytes()
            for file in sorted((tmp_path / name).rglob("*"))
            if file.suffix in (".safetensors", ".pt")
        }
        for name in events
    ]
    assert len(files[0]) == 4 * 3
    assert files[0] == files[1]
    saved = [[e["step"] for e in found if e["kind"] == "checkpoint"] for found in events.values()]
    assert saved == [[2, 4, 6, 8]] * 2


def test_a_host_without_room_for_the_copy_has_checkpoints_written_in_the_way(
    tiny, make_source, make_documents, tmp_path, monkeypatch
):
    tried = []

    def refused(self, values, *, live=None):
        tried.append(values)
        raise HostShort("1.2 MB of the host's memory cannot be locked")

    rows, events = make_documents(14), []
    monkeypatch.setattr(HostCopies, "copy", refused)
    run(tiny, make_source(rows), tmp_path, events, background_checkpoints=True)
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [2, 4, 6, 8]
    assert len(list(tmp_path.glob("checkpoints/step-*"))) == 4
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert len(tried) == sum("cannot be locked: from now on training waits" in text for text in notes) == 1


def test_training_goes_on_while_a_slow_disk_writes(tiny, make_source, make_documents, tmp_path, monkeypatch):
    """Resumed from what a slow write caught in the middle of the training is bit for bit the same run."""
    rows, save = make_documents(14), checkpoint.save

    def slow(*args, **kwargs):
        time.sleep(0.3)
        return save(*args, **kwargs)

    straight, events = [], []
    run(tiny, make_source(rows), tmp_path / "straight", straight)
    monkeypatch.setattr(checkpoint, "save", slow)

    class Killed(BaseException):
        pass

    def control():
        if sum(event["kind"] == "step" for event in events) == 7:
            raise Killed

    with pytest.raises(Killed):
        run(tiny, make_source(rows), tmp_path / "killed", events, control=control, checkpoint_every=3)
    kinds = [event["kind"] for event in events]
    assert kinds.index("checkpoint") > kinds.index("step") + 3, "told after steps that came while it wrote"
    assert min(e["seconds"] for e in events if e["kind"] == "checkpoint") > 0.3
    assert events[kinds.index("checkpoint")]["stalled"] < 0.2
    monkeypatch.setattr(checkpoint, "save", save)
    after = []
    run(tiny, make_source(rows), tmp_path / "killed", after, resume=True)
    assert after[0]["kind"] == "resumed"
    losses = [[e["loss"] for e in found if e["kind"] == "step"] for found in (straight, after)]
    assert losses[1] == losses[0][after[0]["step"] :]
    whole, cut = (
        checkpoint.load(tmp_path / name / "checkpoints" / "step-00000008") for name in ("straight", "killed")
    )
    assert all(torch.equal(whole.weights[name], cut.weights[name]) for name in whole.weights)


def test_a_disk_that_fills_up_behind_the_training_ends_it(
    tiny, make_source, make_documents, *, tmp_path, monkeypatch
):
    save = checkpoint.save

    def full(directory, position, **kwargs):
        def stop():
            if position.step == 4:
                raise OSError(errno.ENOSPC, "No space left on device")

        return save(directory, position, before_rename=stop, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full)
    events = []
    with pytest.raises(DoesNotFit, match=r"disk is full.*step 4.*step 2 is untouched"):
        run(tiny, make_source(make_documents(14)), tmp_path, events)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(checkpoint, "save", save)
    after = []
    run(tiny, make_source(make_documents(14)), tmp_path, after, resume=True)
    assert after[0] == {"kind": "resumed", "step": 2, "total_steps": 8}
