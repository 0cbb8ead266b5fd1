"""The loop: equal to a plain one, equal when cut and resumed, honest when it fails."""

import itertools
import shutil

import pytest
import torch

from luthier.errors import CheckpointError, DataError, Interrupted
from luthier.models.lora import adapted, add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training.loop import fit
from luthier.training.memory import PhaseWatch
from luthier.training.optimizer import learning_rate
from luthier.training.selection import selected_checkpoint
from luthier.training.source import total_steps

CHOICE = TrainingChoice(
    epochs=2, learning_rate=3e-3, batch_size=4, micro_batch_size=2, sequence_length=32, weight_decay=0.1,
    evaluate_every=3, checkpoint_every=2, keep_last=2, warmup_share=0.2, activation_checkpointing="none",
)  # fmt: skip


def run(tiny, source, directory, *, lora=Lora(rank=4, dropout=0.2), choice=CHOICE, validation=(), **kwargs):  # noqa: B008
    """Train a fresh model; returns result, model and events."""
    model = tiny()
    if lora is not None:
        add_lora(model, lora, seed=1)
    if kwargs.pop("bf16", False):
        for weight in model.parameters():
            if lora is None or not weight.requires_grad:
                weight.data = weight.data.bfloat16()
    events = kwargs.pop("events", [])
    result = fit(
        model, causal_objective(model), source, list(validation), choice=choice, seed=5, directory=directory,
        recipe_digest=kwargs.pop("recipe_digest", "r"), device=torch.device("cpu"), on_metrics=events.append,
        **kwargs,
    )  # fmt: skip
    return result, model, events


TRAJECTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens")


def trajectory(events):
    """All figures of a run that do not depend on the clock."""
    steps = [tuple(event[key] for key in TRAJECTORY) for event in events if event["kind"] == "step"]
    held_out = [
        (event["step"], event["loss"], event["best"]) for event in events if event["kind"] == "validation"
    ]
    return steps, held_out


def weights_of(model):
    return {
        name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad
    }


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.fixture
def held_out(make_documents, make_micro):
    return [make_micro([[document]]) for document in make_documents(5, seed=9)]


@pytest.mark.parametrize("lora", [Lora(rank=4, dropout=0.2), Lora(rank=3, dora=True, dropout=0.1), None])
def test_killed_after_every_step_and_resumed_is_the_same_run(
    tiny, make_source, make_documents, held_out, *, tmp_path, lora
):
    rows = make_documents(14)
    whole = make_source(rows)
    expected, model, events = run(tiny, whole, tmp_path / "whole", lora=lora, validation=held_out)
    steps, validations = trajectory(events)
    assert expected.steps == len(steps) == 8
    assert len(validations) == 3

    class Killed(BaseException):
        """Ends the process without a chance to save, like kill -9."""

    for last in range(1, 8):
        directory = tmp_path / f"killed-{last}"
        seen, cut = [], make_source(rows)

        def control(last=last, seen=seen):
            if max(event["step"] for event in seen) == last:
                raise Killed

        with pytest.raises(Killed):
            run(tiny, cut, directory, lora=lora, validation=held_out, control=control, events=seen)
        again = make_source(rows)
        torch.manual_seed(last)  # whatever the new process did with its generators
        result, resumed, after = run(tiny, again, directory, lora=lora, validation=held_out, resume=True)
        start = next((event["step"] for event in after if event["kind"] == "resumed"), 0)
        assert start <= last
        assert start >= last - last % 2, "the checkpoint every second step is used"
        done, told = trajectory(after)
        assert done == steps[start:]
        assert told == [entry for entry in validations if entry[0] > start]
        assert again.served == whole.served[start:]
        assert_equal_weights(weights_of(resumed), weights_of(model))
        same = {"seconds", "tokens_per_second", "peak_memory", "phase_memory", "training_peak"}
        assert result.model_dump(exclude=same) == expected.model_dump(exclude=same)
        shutil.rmtree(directory)


def test_same_seed_same_run(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(10)
    _, one, events = run(tiny, make_source(rows), tmp_path / "a")
    torch.rand(7)
    _, other, again = run(tiny, make_source(rows), tmp_path / "b")
    assert trajectory(events) == trajectory(again)
    assert_equal_weights(weights_of(one), weights_of(other))


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_equals_a_plain_loop_over_transformers(tiny, make_source, make_documents, tmp_path, lora):
    """AdamW, clipping, schedule and normalisation against torch's own, on transformers' own loss."""
    rows = make_documents(12)
    source = make_source(rows)
    choice = CHOICE.model_copy(update={"max_grad_norm": 0.1, "learning_rate": 1e-2})
    _, model, events = run(tiny, source, tmp_path, lora=lora, choice=choice)

    plain = tiny().train()
    if lora is not None:
        add_lora(plain, lora, seed=1)
    trained = [weight for weight in plain.parameters() if weight.requires_grad]
    groups = [
        {"params": [w for w in trained if w.ndim > 1], "weight_decay": 0.1},
        {"params": [w for w in trained if w.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0)
    losses, norms = [], []
    for step in range(6):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, 6, choice)
        batches = source.batches(step // 3, step % 3)
        count = sum((batch.labels[:, 1:] != -100).sum() for batch in batches)
        total = 0.0
        for batch in batches:
            out = plain(
                input_ids=batch.input_ids,
                attention_mask=(batch.document_ids > 0).long(),
                labels=batch.labels,
                num_items_in_batch=count,
            )
            out.loss.backward()
            total += out.loss.item()
        losses.append(total)
        norms.append(torch.nn.utils.clip_grad_norm_(trained, 0.1).item())
        adamw.step()
        adamw.zero_grad()
    steps = [event for event in events if event["kind"] == "step"]
    assert max(norms) > 0.1, "clipping is at work"
    assert [event["loss"] for event in steps] == pytest.approx(losses, rel=1e-5)
    assert [event["grad_norm"] for event in steps] == pytest.approx(norms, rel=1e-4)
    assert steps[-1]["loss"] < steps[0]["loss"]
    for weight, other in zip([w for w in model.parameters() if w.requires_grad], trained, strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=2e-4)


def test_accumulation_of_four_equals_a_batch_of_four(tiny, make_source, make_documents, tmp_path):
    """Documents of different lengths: a mean of means would differ."""
    rows = make_documents(8)
    lora = Lora(rank=4)
    _, one, at_once = run(tiny, make_source(rows, micro_batch_size=4), tmp_path / "a", lora=lora)
    _, four, in_turn = run(tiny, make_source(rows, micro_batch_size=1), tmp_path / "b", lora=lora)
    for whole, parts in zip(trajectory(at_once)[0], trajectory(in_turn)[0], strict=True):
        assert parts == pytest.approx(whole, rel=1e-5)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(four)[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lora", [Lora(rank=4, dropout=0.2), None])
def test_activation_checkpointing_changes_nothing(tiny, make_source, make_documents, tmp_path, lora):
    rows = make_documents(8)
    full = CHOICE.model_copy(update={"activation_checkpointing": "full"})
    _, one, events = run(tiny, make_source(rows), tmp_path / "a", lora=lora)
    _, other, again = run(tiny, make_source(rows), tmp_path / "b", lora=lora, choice=full)
    for plain, recomputed in zip(trajectory(events)[0], trajectory(again)[0], strict=True):
        assert recomputed == pytest.approx(plain, rel=1e-6)
    for name, weight in weights_of(one).items():
        torch.testing.assert_close(weights_of(other)[name], weight, rtol=1e-5, atol=1e-6)
    assert not any(getattr(part, "gradient_checkpointing", False) for part in other.modules())


@pytest.mark.parametrize("lora", [Lora(rank=4), None])
def test_bf16_weights_learn_through_fp32_masters(tiny, make_source, make_documents, tmp_path, lora):
    """The update of a step is smaller than a bf16 weight can show: only masters can add it up."""
    rows = make_documents(16)
    choice = CHOICE.model_copy(update={"epochs": 4, "learning_rate": 2e-3})
    _, _, exact = run(tiny, make_source(rows), tmp_path / "a", lora=lora, choice=choice)
    result, model, rounded = run(tiny, make_source(rows), tmp_path / "b", lora=lora, choice=choice, bf16=True)
    fine, coarse = trajectory(exact)[0], trajectory(rounded)[0]
    assert coarse[-1][2] < coarse[0][2] - 0.01
    assert [step[2] for step in coarse] == pytest.approx([step[2] for step in fine], rel=0.02)
    assert result.dtype == "bfloat16"
    if lora is None:
        # Resumed from masters, not from rounded weights.
        saved = selected_checkpoint(tmp_path / "b", choice)
        assert saved.name == "step-00000016"
        _, again, _ = run(
            tiny, make_source(rows), tmp_path / "b", lora=lora, choice=choice, bf16=True, resume=True
        )
        assert_equal_weights(weights_of(again), weights_of(model))


def test_stop_saves_and_save_goes_on(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    asked = iter([None, None, "save", None, "stop"])
    events = []
    with pytest.raises(Interrupted, match="step 5 of 8"):
        run(tiny, make_source(rows), tmp_path, control=lambda: next(asked), events=events)
    assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [2, 3, 4, 5]
    _, _, whole = run(tiny, make_source(rows), tmp_path / "whole")
    _, _, after = run(tiny, make_source(rows), tmp_path, resume=True)
    assert trajectory(after)[0] == trajectory(whole)[0][5:]
    result, _, nothing = run(tiny, make_source(rows), tmp_path, resume=True)
    assert result.steps == 8
    assert [event["kind"] for event in nothing] == ["resumed"]


def test_the_best_checkpoint_is_kept_and_chosen(
    tiny, make_source, make_documents, make_micro, *, tmp_path, monkeypatch
):
    """Validation rows that contradict training: the loss rises, so the first evaluation stays best."""
    ids = [50, 49, 48, 47, 46, 45]
    contrary = [make_micro([[(ids, ids)]])]
    choice = CHOICE.model_copy(update={"epochs": 4, "evaluate_every": 1, "learning_rate": 2e-2})
    result, model, events = run(
        tiny, make_source(make_documents(14)), tmp_path, lora=None, choice=choice, validation=contrary
    )
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "validation"}
    best = min(losses, key=losses.get)
    assert best < 14
    assert result.best_step == best
    assert result.selected_checkpoint == f"checkpoints/step-{best:08d}"
    assert result.best_validation_loss == losses[best]
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("an optimiser's states are read for it"))
    assert selected_checkpoint(tmp_path, choice).name == f"step-{best:08d}"
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == sorted({f"step-{best:08d}", "step-00000014", "step-00000016"} | {f"step-{best:08d}"})
    out = model(contrary[0].input_ids, labels=contrary[0].input_ids).loss.item()
    assert out == pytest.approx(losses[best], rel=1e-5), "the best weights are in the model"


def test_a_best_checkpoint_that_is_torn_gives_way_to_the_last_one(
    tiny, make_source, make_documents, make_micro, tmp_path
):
    contrary = [make_micro([[([50, 49, 48, 47, 46, 45],) * 2]])]
    choice = CHOICE.model_copy(update={"epochs": 3, "evaluate_every": 1, "learning_rate": 2e-2})
    told = {"lora": None, "choice": choice, "validation": contrary}
    result, _, events = run(tiny, make_source(make_documents(14)), tmp_path, **told)
    assert result.best_step < result.steps
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "validation"}
    torn = tmp_path / result.selected_checkpoint / "weights.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    again, model, events = run(tiny, make_source(make_documents(14)), tmp_path, resume=True, **told)
    assert again.selected_checkpoint == f"checkpoints/step-{result.steps:08d}"
    assert selected_checkpoint(tmp_path, choice) == tmp_path / again.selected_checkpoint
    (said,) = [event["text"] for event in events if event["kind"] == "note"]
    assert said.startswith("the checkpoint is torn: weights.safetensors is ")
    assert f"step {result.best_step} was the best, the weights of step {result.steps} are shipped" in said
    out = model(contrary[0].input_ids, labels=contrary[0].input_ids).loss.item()
    assert out == pytest.approx(losses[result.steps], rel=1e-5)


def test_no_rows_and_other_recipes_are_refused(tiny, make_source, make_documents, tmp_path):
    with pytest.raises(DataError, match="no row"):
        run(tiny, make_source([]), tmp_path)
    run(tiny, make_source(make_documents(4)), tmp_path)
    with pytest.raises(CheckpointError, match="another recipe"):
        run(tiny, make_source(make_documents(4)), tmp_path, resume=True, recipe_digest="other")


def test_a_torn_checkpoint_is_passed_over_and_said(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    _, _, whole = run(tiny, make_source(rows), tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000008"
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    _, _, events = run(tiny, make_source(rows), tmp_path, resume=True)
    assert events[0]["kind"] == "note"
    assert "step 8 is torn (weights.safetensors is" in events[0]["text"]
    assert events[1]["step"] == 6
    assert trajectory(events)[0] == trajectory(whole)[0][6:]


@pytest.mark.parametrize(
    ("epochs", "most", "expected"),
    [(1, None, 3), (2, None, 6), (1.5, None, 5), (0.1, None, 1), (9, 4, 4), (None, 7, 7)],
)
def test_steps_of_a_run(make_source, make_documents, epochs, most, expected):
    choice = CHOICE.model_copy(update={"epochs": epochs, "max_steps": most})
    assert total_steps(make_source(make_documents(10)), choice) == expected


def test_schedules():
    def rates(name):
        choice = CHOICE.model_copy(update={"schedule": name, "learning_rate": 1.0, "warmup_share": 0.2})
        return [learning_rate(step, 10, choice) for step in range(10)]

    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("linear") == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    cosine = rates("cosine")
    assert cosine[:3] == [0.5, 1.0, 1.0]
    assert cosine[6] == pytest.approx(0.5)
    assert all(earlier > later for earlier, later in itertools.pairwise(cosine[2:]))


def test_adapters_are_all_that_changes(tiny, make_source, make_documents, tmp_path):
    _, model, _ = run(tiny, make_source(make_documents(8)), tmp_path)
    base = dict(tiny().named_parameters())
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            assert torch.equal(weight, base[name])
    assert all(layer.lora_B.abs().max() > 0 for _, layer in adapted(model))


def test_the_height_of_each_phase_is_measured(tiny, make_source, make_documents, make_micro, tmp_path):
    """64 MiB held only while a loss is computed belong to the forward phase, and to no other."""

    class Greedy(CausalObjective):
        def __call__(self, model, batch):
            held = torch.ones(64 << 18)
            loss = super().__call__(model, batch)
            del held
            return loss

    model = tiny()
    add_lora(model, Lora(rank=2), seed=0)
    plain, cpu = causal_objective(model), torch.device("cpu")
    watch, read = PhaseWatch(cpu), []
    result = fit(
        model, Greedy(plain.head, plain.documents), make_source(make_documents(8)), [], choice=CHOICE, seed=5,
        directory=tmp_path, recipe_digest="r", device=cpu, on_metrics=lambda _: None, memory=watch,
        control=lambda: read.append(set(watch.phases)),
    )  # fmt: skip
    phases = result.phase_memory
    assert watch.phases == phases
    assert read[0] == set(phases), "there from the first step on"
    assert set(phases) == {"load", "forward", "backward", "optimizer"}
    assert phases["forward"] - phases["backward"] > 48 << 20
    assert result.peak_memory >= max(phases.values())
