"""Options of the training that change weights, noise and memory, each against a reference."""

import math

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from luthier.errors import TrainingError
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import CausalObjective, causal_objective
from luthier.training import checkpoint
from luthier.training.loop import fit
from luthier.training.neftune import lengths_of, noisy
from luthier.training.optimizer import Optimizer
from luthier.training.rounding import RoundedAdamW
from luthier.training.selection import selected_checkpoint

CHOICE = TrainingChoice(
    epochs=2, learning_rate=3e-3, batch_size=4, micro_batch_size=4, sequence_length=32, weight_decay=0.1,
    evaluate_every=4, checkpoint_every=2, keep_last=9, activation_checkpointing="none", select="last",
)  # fmt: skip


def train(tiny, source, directory, *, lora=None, bf16=False, objective=None, validation=(), events=None,
          control=None, resume=False, **changes):  # fmt: skip
    model = tiny()
    if lora is not None:
        add_lora(model, lora, seed=1)
    if bf16:
        model.bfloat16()
    made = causal_objective(model) if objective is None else objective(model)
    result = fit(
        model, made, source, list(validation), choice=CHOICE.model_copy(update=changes), seed=5,
        directory=directory, recipe_digest="r", device=torch.device("cpu"),
        on_metrics=[].append if events is None else events.append, control=control, resume=resume,
    )  # fmt: skip
    return result, model


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


class Killed(BaseException):
    """Ends a training without a chance to save."""


def cut_and_resumed(tiny, make_source, rows, directory, *, at=5, **options):
    """The same training, killed after a step and gone on with."""
    events = []

    def control():
        if sum(event["kind"] == "step" for event in events) == at:
            raise Killed

    with pytest.raises(Killed):
        train(tiny, make_source(rows), directory, events=events, control=control, **options)
    return train(tiny, make_source(rows), directory, resume=True, **options)


# -- noise on embeddings ---------------------------------------------------------------------


def test_noise_is_that_of_transformers_for_one_document_a_row(tiny):
    model = tiny().train()
    ids = torch.randint(3, 100, (1, 12))
    table = model.get_input_embeddings()
    table.neftune_noise_alpha = 5.0
    torch.manual_seed(0)
    with torch.enable_grad():
        theirs = neftune_post_forward_hook(table, (ids,), table(ids))
    with noisy(model, 5.0):
        seen = []
        handle = model.base_model.layers[0].register_forward_pre_hook(
            lambda _m, args, given: seen.append(args[0] if args else given["hidden_states"]), with_kwargs=True
        )
        torch.manual_seed(0)
        model.base_model(input_ids=ids, position_ids=torch.arange(12)[None])
        handle.remove()
    torch.testing.assert_close(seen[0], theirs, rtol=0, atol=1e-7)
    assert not torch.equal(theirs, table(ids))


def test_noise_follows_each_document_and_stays_out_of_evaluation(tiny):
    positions = torch.tensor([[0, 1, 2, 0, 1, 0]])
    assert lengths_of(positions, None).tolist() == [[3, 3, 3, 2, 2, 1]]
    assert lengths_of(None, torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist() == [[2, 2, 2], [3, 3, 3]]
    model, ids = tiny(), torch.randint(3, 100, (1, 6))
    plain = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
    with noisy(model, 5.0):
        assert torch.equal(model.base_model(input_ids=ids, position_ids=positions).last_hidden_state, plain)
        model.train()
        noised = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
        assert not torch.allclose(noised, plain)
        with torch.no_grad():
            silent = model.base_model(input_ids=ids, position_ids=positions).last_hidden_state
        assert torch.equal(silent, plain)
    assert torch.equal(model.base_model(input_ids=ids, position_ids=positions).last_hidden_state, plain)


def test_noise_draws_the_same_after_a_kill(tiny, make_source, make_documents, tmp_path):
    rows, options = make_documents(14), {"neftune_alpha": 5.0, "lora": Lora(rank=4, dropout=0.2)}
    _, whole = train(tiny, make_source(rows), tmp_path / "whole", **options)
    _, other = train(tiny, make_source(rows), tmp_path / "without", lora=options["lora"])
    _, again = cut_and_resumed(tiny, make_source, rows, tmp_path / "cut", **options)
    assert_equal(weights_of(again), weights_of(whole))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), other.parameters(), strict=True))


# -- the average of the weights --------------------------------------------------------------


@pytest.mark.parametrize("bf16", [False, True])
def test_the_average_is_torchs(tiny, make_source, make_documents, *, tmp_path, bf16):
    """Against torch's own averaging of the weights that every checkpoint holds."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    rows = make_documents(14)
    _, model = train(tiny, make_source(rows), tmp_path, ema=0.8, select="ema", checkpoint_every=1, bf16=bf16)
    held = torch.nn.ParameterDict()
    folders = sorted((tmp_path / "checkpoints").iterdir())
    assert len(folders) == 8
    averaged = None
    for folder in folders:
        weights = checkpoint.load_weights(folder)
        held = torch.nn.ParameterDict({name.replace(".", "/"): one for name, one in weights.items()})
        averaged = averaged or AveragedModel(held, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        averaged.update_parameters(held)
    expected = {name.replace("/", "."): one.detach() for name, one in averaged.module.items()}
    saved = checkpoint.load_weights(folders[-1], average=True)
    for name, one in expected.items():
        torch.testing.assert_close(saved[name], one, rtol=1e-6, atol=1e-7)
        own = dict(model.named_parameters())[name]
        assert torch.equal(own, saved[name].to(own.dtype)), "the average is what is shipped"
    assert selected_checkpoint(tmp_path, CHOICE.model_copy(update={"select": "ema"})) == folders[-1]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-bf16"])
def test_watching_the_average_leaves_the_training_as_it_is(
    tiny, make_source, make_documents, make_micro, *, tmp_path, optimizer
):
    rows, held_out = make_documents(14), [make_micro([[one]]) for one in make_documents(4, seed=9)]
    options = {"bf16": True, "optimizer": optimizer, "validation": held_out}
    events = []
    _, plain = train(tiny, make_source(rows), tmp_path / "plain", **options)
    _, watched = train(tiny, make_source(rows), tmp_path / "watched", ema=0.7, events=events, **options)
    assert_equal(weights_of(watched), weights_of(plain))
    losses = [event for event in events if event["kind"] == "validation"]
    assert all(event["average_loss"] != event["loss"] for event in losses)
    assert all(math.isfinite(event["average_loss"]) for event in losses)


def test_the_average_goes_on_after_a_kill(tiny, make_source, make_documents, tmp_path):
    rows, options = make_documents(14), {"ema": 0.9, "select": "ema", "lora": Lora(rank=4, dropout=0.2)}
    _, whole = train(tiny, make_source(rows), tmp_path / "whole", **options)
    _, again = cut_and_resumed(tiny, make_source, rows, tmp_path / "cut", **options)
    assert_equal(weights_of(again), weights_of(whole))


# -- Muon --------------------------------------------------------------------------------------


def test_muon_is_torchs_beside_its_adamw(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    model, twin = tiny().train(), tiny().train()
    choice = CHOICE.model_copy(update={"optimizer": "muon", "max_grad_norm": 0.0})
    ours = Optimizer(model, choice)
    inside = [one for layer in twin.base_model.layers for one in layer.parameters()]
    matrices = [one for one in inside if one.ndim == 2]
    rest = [one for one in twin.parameters() if all(one is not other for other in matrices)]
    assert len(matrices) == 14
    muon = torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [
        {"params": [one for one in rest if one.ndim >= 2], "weight_decay": 0.1},
        {"params": [one for one in rest if one.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    objective, source = causal_objective(model), make_source(rows)
    for step in range(3):
        (batch, *_) = source.batches(0, step)
        with objective.scope(model):
            (objective(model, batch).total / 10).backward()
        other = causal_objective(twin)
        with other.scope(twin):
            (other(twin, batch).total / 10).backward()
        ours.clip()
        ours.step(1e-3)
        for other in (muon, adamw):
            other.step()
            other.zero_grad()
        if step == 1:
            ours.load_state(ours.state())
    assert_equal(weights_of(model), weights_of(twin))
    ours.close()


def test_muon_learns_and_goes_on_after_a_kill(tiny, make_source, make_documents, tmp_path):
    rows = make_documents(14)
    result, whole = train(tiny, make_source(rows), tmp_path / "whole", optimizer="muon", epochs=4)
    assert result.last_loss < 0.9 * result.first_loss
    _, again = cut_and_resumed(tiny, make_source, rows, tmp_path / "cut", optimizer="muon", epochs=4)
    assert_equal(weights_of(again), weights_of(whole))


# -- bf16 without masters, by Kahan --------------------------------------------------------------


def test_kahan_follows_fp32_where_rounding_loses_every_update():
    torch.manual_seed(0)
    start, grads = torch.randn(400).bfloat16(), torch.randn(200, 400) * 0.3 + 1
    found = {}
    for name in ("fp32", "kahan", "chance"):
        weight = torch.nn.Parameter(start.float() if name == "fp32" else start.clone())
        settings = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.01}
        optimizer = (
            torch.optim.AdamW([weight], **settings)
            if name == "fp32"
            else RoundedAdamW([weight], **settings, kahan=name == "kahan")
        )
        for grad in grads:
            weight.grad = grad.to(weight.dtype)
            optimizer.step()
        found[name] = weight.detach().float()
        if name == "kahan":
            exact = found[name] + optimizer.state[weight]["lost"].float()
            assert optimizer.state[weight]["lost"].dtype == torch.bfloat16
    moved = (found["fp32"] - start.float()).abs().mean()
    off = {name: (found[name] - found["fp32"]).abs().mean() / moved for name in ("kahan", "chance")}
    assert (exact - found["fp32"]).abs().mean() / moved < 0.02, "weight and remainder are the fp32 weight"
    assert off["kahan"] < 0.7 * off["chance"]


def test_kahan_goes_on_after_a_kill(tiny, make_source, make_documents, tmp_path):
    rows, options = make_documents(14), {"optimizer": "adamw-bf16-kahan", "bf16": True}
    _, whole = train(tiny, make_source(rows), tmp_path / "whole", **options)
    _, again = cut_and_resumed(tiny, make_source, rows, tmp_path / "cut", **options)
    assert_equal(weights_of(again), weights_of(whole))


# -- updates in the backward pass ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "checkpointing"),
    [
        ("adamw", "none"),
        ("adamw", "full"),
        ("adamw", "offload"),
        ("adamw-bf16-kahan", "none"),
        ("muon", "none"),
    ],
)
def test_updating_in_the_backward_pass_is_updating_after_it(
    tiny, make_source, make_documents, *, tmp_path, optimizer, checkpointing
):
    """Gradients are gone as soon as they are there; weights, losses and norms are those without."""
    rows, found, events = make_documents(14), {}, {True: [], False: []}
    for at_once in (False, True):
        _, model = train(
            tiny, make_source(rows, micro_batch_size=4), tmp_path / str(at_once), bf16=optimizer != "muon",
            optimizer=optimizer, max_grad_norm=0.0, update_in_backward=at_once, events=events[at_once],
            activation_checkpointing=checkpointing, weight_decay=0.0,
        )  # fmt: skip
        found[at_once] = weights_of(model)
    figures = [
        [(event["loss"], event["grad_norm"]) for event in events[kind] if event["kind"] == "step"]
        for kind in events
    ]
    if optimizer == "adamw-bf16-kahan":  # moments are rounded by chance, drawn in another order
        assert [a for a, _ in figures[0]] == pytest.approx([a for a, _ in figures[1]], rel=0.02)
        return
    assert_equal(found[True], found[False])
    assert [loss for loss, _ in figures[0]] == [loss for loss, _ in figures[1]]
    assert [norm for _, norm in figures[0]] == pytest.approx([norm for _, norm in figures[1]], rel=1e-4)


def test_no_gradient_outlives_its_update(tiny, make_source, make_documents):
    model = tiny().train()
    choice = CHOICE.model_copy(update={"update_in_backward": True, "max_grad_norm": 0.0})
    optimizer, objective = Optimizer(model, choice), causal_objective(model)
    most = []
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(
            lambda _: most.append(sum(one.grad is not None for one in model.parameters()))
        )
    optimizer.begin(1e-3)
    with objective.scope(model):
        objective(model, make_source(make_documents(4), micro_batch_size=4).batches(0, 0)[0]).total.backward()
    assert len(most) == len(list(model.parameters()))
    assert set(most) == {0}
    optimizer.close()


def test_a_bad_step_ends_a_training_that_has_updated_already(tiny, make_source, make_documents, tmp_path):
    class Poisoned(CausalObjective):
        def __call__(self, model, batch):
            found = super().__call__(model, batch)
            return found._replace(total=found.total * float("nan"))

    with pytest.raises(TrainingError, match=r"not a number at step 1.*update_in_backward") as error:
        train(
            tiny, make_source(make_documents(8), micro_batch_size=4), tmp_path, update_in_backward=True,
            max_grad_norm=0.0, objective=lambda m: Poisoned(causal_objective(m).head, True),
        )  # fmt: skip
    assert "--resume" in error.value.hint
    assert list((tmp_path / "bad-batches").iterdir())
