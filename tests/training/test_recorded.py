"""What a recorded step leaves in place; the recording itself needs a GPU (`test_cuda`)."""

from dataclasses import replace

import pytest
import torch

from luthier.schema.recipe import TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.optimizer import Optimizer
from luthier.training.recorded import Passes
from luthier.training.sharding import at_once


@pytest.fixture
def passes(tiny):
    model = tiny()
    objective = replace(causal_objective(model), tensors=True, longest=19)
    said = []
    masters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    made = Passes(model, objective, masters, through=at_once, record=True, say=said.append)
    return made, said


def gradients(passes):
    return {name: master.grad.clone() for name, master in passes.masters.items() if master.grad is not None}


def test_passes_that_may_be_recorded_leave_the_same_gradients_in_place(passes, make_micro, make_documents):
    made, said = passes
    assert made.recording
    batch = make_micro([make_documents(3), make_documents(2, seed=5)])
    plain = Passes(made.model, made.objective, made.masters, through=at_once, record=False, say=said.append)
    assert not plain.recording
    expected = plain(batch, 0.25, lambda: None)
    wanted = gradients(plain)
    for master in made.masters.values():
        master.grad = None
    with made.objective.scope(made.model):
        assert made(batch, 0.25, lambda: None).item() == pytest.approx(expected.item(), rel=1e-6)
    made.end(settled=True)
    for name, gradient in gradients(made).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)
    places = {name: gradient.data_ptr() for name, gradient in made.gradients.items()}
    assert places.keys() == wanted.keys()
    # The optimiser drops gradients; the next step finds them where they were, at zero.
    for master in made.masters.values():
        master.grad = None
    made.begin()
    assert {name: made.masters[name].grad.data_ptr() for name in places} == places
    assert all(not made.masters[name].grad.any() for name in places)
    made.forget("memory ran out")
    assert not made.recording
    assert said == ["steps are launched kernel by kernel from here on: memory ran out"]


def test_an_objective_that_cannot_be_recorded_is_not(passes):
    made, _ = passes
    plain = replace(made.objective, tensors=False)
    never = Passes(made.model, plain, made.masters, through=at_once, record=True, say=lambda _: None)
    assert not never.recording


def test_a_pass_that_cannot_be_recorded_runs_kernel_by_kernel(
    passes, make_micro, make_documents, monkeypatch
):
    made, said = passes
    batch = make_micro([make_documents(3)])
    with made.objective.scope(made.model):
        first = made(batch, 0.5, lambda: None)
    made.end(settled=True)
    monkeypatch.setattr(made, "_record", lambda *_: made.forget("an operation is not to be recorded"))
    made.begin()
    assert made(batch, 0.5, lambda: None).item() == pytest.approx(first.item(), rel=1e-6)
    assert said == ["steps are launched kernel by kernel from here on: an operation is not to be recorded"]
    assert all(made.masters[name].grad.any() for name in gradients(made))


@pytest.mark.parametrize("first", [True, False])  # whether the step that settles has one micro-batch
def test_gradients_of_masters_stay_where_they_are(tiny, make_micro, make_documents, first):
    model = tiny().bfloat16()
    optimizer = Optimizer(model, TrainingChoice())
    objective = replace(causal_objective(model), tensors=True, longest=19)
    arriving, masters = optimizer.gradients, optimizer.masters
    made = Passes(
        model, objective, masters, through=at_once, record=True, say=lambda _: None, arriving=arriving
    )
    batch = make_micro([make_documents(3)])

    def step(single):
        arriving.single = single
        made.begin()
        with made.objective.scope(made.model):
            for _ in range(1 if single else 2):
                made.met.clear()  # there is no GPU to record on
                made(batch, 0.5, lambda: None)
        grads = {name: arriving.of(master) for name, master in masters.items()}
        made.end(settled=True)
        found = {name: (grad.data_ptr(), grad.dtype, grad.float().clone()) for name, grad in grads.items()}
        optimizer.forget()
        return found

    settled = step(first)
    assert {kind for _, kind, _ in settled.values()} == {torch.bfloat16 if first else torch.float32}
    again, other = step(first), step(not first)
    for name, (place, _, values) in settled.items():
        assert again[name][0] == place
        assert torch.equal(again[name][2], values), "written over, not added"
        ratio = 2.0 if first else 0.5
        torch.testing.assert_close(other[name][2], values * ratio, rtol=1e-2, atol=1e-3)
    # What was recorded for steps of one micro-batch does not add up: others go kernel by kernel.
    assert (other[name][1], arriving.single) == (torch.float32, False)
    if first:
        assert not any(master.grad is not None for master in masters.values())
    made.forget("memory ran out")
    assert not arriving.places


@pytest.mark.parametrize(
    ("dtype", "counts", "expected"),
    [
        (torch.bfloat16, (2, 1, 2, 2), {3}),
        (torch.bfloat16, (1, 2, 2, 1), {2, 3}),
        (torch.float32, (1, 1, 2, 1), {2, 3}),
    ],
    ids=str,
)
def test_a_smaller_step_does_not_keep_the_others_from_being_recorded(
    tiny, make_micro, make_documents, monkeypatch, *, dtype, counts, expected
):
    """counts: micro-batches of each step; from the second on a step may settle where gradients stay."""
    model = tiny().to(dtype)
    optimizer = Optimizer(model, TrainingChoice())
    objective = replace(causal_objective(model), tensors=True, longest=19)
    arriving, masters = optimizer.gradients, optimizer.masters
    made = Passes(
        model, objective, masters, through=at_once, record=True, say=lambda _: None, arriving=arriving
    )
    batch, recorded = make_micro([make_documents(3)]), set()

    def record(*_):  # there is no GPU to record on
        recorded.add(step)
        return True

    monkeypatch.setattr(made, "_record", record)
    for step, count in enumerate(counts):
        arriving.single = count == 1
        made.begin()
        with made.objective.scope(made.model):
            for _ in range(count):
                made(batch, 0.5, lambda: None)
        made.end(settled=step > 0)
        optimizer.forget()
    assert recorded == expected
