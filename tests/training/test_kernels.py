"""Triton's kernels against what they stand for: on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""

import copy
import os
from functools import partial

import pytest
import torch
from torch import nn

from luthier.schema.recipe import TrainingChoice
from luthier.sizing import loss_chunks
from luthier.training import fused, losses, rounding, updates
from luthier.training.optimizer import Optimizer

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = [
    pytest.mark.skipif(
        not (INTERPRETED or torch.cuda.is_available()), reason="needs a CUDA GPU or Triton's interpreter"
    ),
    # Of places that are masked.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
SHAPES = ((300, 70), (5,), (20_001,), (8192,))
NUMBERS = (0.1, 0.001, 0.002, 1e-8, 0.999, -0.01)


@pytest.fixture(scope="module")
def kernels():
    from luthier.training import kernels

    return kernels


def nearest(values):
    """fp32 in bf16, as the kernels round it: the interpreter cuts off."""
    if INTERPRETED:
        values = (values.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return values.bfloat16()


def reference(logits, targets, multiplier, softcap):
    values = logits.float().requires_grad_()
    bent = values * multiplier
    if softcap:
        bent = torch.tanh(bent / softcap) * softcap
    losses = torch.nn.functional.cross_entropy(bent, targets, reduction="none", ignore_index=-100)
    losses.sum().backward()
    return losses.detach(), values.grad


@pytest.mark.parametrize("words", [37, 4096, 9001])
@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.25, None), (1.0, 30.0), (2.0, 5.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cross_entropy(kernels, words, multiplier, softcap, dtype):
    torch.manual_seed(words)
    rows = 6
    logits = (torch.randn(rows, words) * 4).to(DEVICE, dtype)
    logits[0] -= 60  # nothing near zero
    logits[1, 3] = 80  # one certain word
    targets = torch.randint(0, words, (rows,), device=DEVICE)
    targets[1], targets[4], targets[5] = 3, -100, words - 1
    wanted, slope = reference(logits, targets, multiplier, softcap)
    losses = torch.full((rows,), float("nan"), device=DEVICE)
    kernels.cross_entropy_(logits, targets, losses, multiplier=multiplier, softcap=softcap)
    torch.testing.assert_close(losses, wanted, rtol=2e-5, atol=2e-5)
    near = 2**-7 if dtype == torch.bfloat16 else 2**-10
    torch.testing.assert_close(logits.float(), slope, rtol=near, atol=1e-5)


def test_a_row_that_is_no_number_says_so(kernels):
    logits = torch.randn(3, 50, device=DEVICE).bfloat16()
    logits[1, 7] = float("nan")
    targets, losses = torch.tensor([1, 2, 3], device=DEVICE), torch.zeros(3, device=DEVICE)
    kernels.cross_entropy_(logits, targets, losses)
    assert losses.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("words", [64, 67])  # rows that begin anywhere, and where products want them
def test_loss_over_chunks_of_logits(monkeypatch, words):
    """In chunks of sixteen rows, with places that do not count, against the loss in fp32."""
    monkeypatch.setattr(loss_chunks, "CUDA_CHUNK_NUMBERS_WITH_WEIGHT", 1)
    torch.manual_seed(4)
    hidden = torch.randn(50, 32).to(DEVICE, torch.bfloat16)
    weight = (torch.randn(words, 32) * 0.3).to(DEVICE, torch.bfloat16)
    targets = torch.randint(0, words, (50,), device=DEVICE)
    targets[::7] = -100
    places = torch.tensor([3, words - 1], device=DEVICE)
    results = []
    filled = partial(losses._over_fp32, filled=True)
    for over, kind in ((losses._over_16_bits, torch.bfloat16), (filled, torch.float32)):
        found = losses._Found(
            torch.empty_like(hidden, dtype=kind),
            torch.zeros_like(weight, dtype=torch.float32),
            torch.zeros(2, 32, device=DEVICE),
            places,
        )
        total = over(hidden.to(kind), weight.to(kind), targets, (0.5, 20.0), found)
        results.append((total, found))
    (total, found), (wanted, exact) = results
    assert total.item() == pytest.approx(wanted.item(), rel=5e-3)
    for name in ("hidden", "weight", "new"):
        one, other = getattr(found, name).float(), getattr(exact, name)
        assert (one - other).norm() <= 2e-2 * other.norm()
    assert not found.hidden[::7].any()
    torch.testing.assert_close(found.new, found.weight[places], rtol=2e-2, atol=2e-2)


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU's memory")
def test_cross_entropy_beyond_two_thousand_million_logits(kernels):
    """Row starts do not fit 32 bits."""
    words, rows = 151_936, 14_500
    logits = torch.zeros(rows, words, device=DEVICE, dtype=torch.bfloat16)
    targets = torch.zeros(rows, device=DEVICE, dtype=torch.int64)
    losses = torch.empty(rows, device=DEVICE)
    kernels.cross_entropy_(logits, targets, losses)
    assert losses.sub(float(torch.tensor(float(words)).log())).abs().max() < 1e-4
    assert logits[:, 0].float().add(1).abs().max() < 1e-2
    assert logits[-1, 1:].float().sum().item() == pytest.approx(1, abs=2e-2)


@pytest.mark.parametrize("grads", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("follows", [True, False])
def test_adamw_is_torchs(kernels, grads, follows):
    torch.manual_seed(0)
    theirs = [torch.randn(shape, device=DEVICE).requires_grad_() for shape in SHAPES]
    ours = [one.detach().clone() for one in theirs]
    weights = [one.bfloat16() for one in ours] if follows else None
    means, squares = [torch.zeros_like(one) for one in ours], [torch.zeros_like(one) for one in ours]
    settings = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    adamw, table = torch.optim.AdamW(theirs, **settings), kernels.Table()
    for step in range(1, 6):
        new = [torch.randn_like(one).to(grads) for one in ours]
        for one, grad in zip(theirs, new, strict=True):
            one.grad = grad.float() * 0.25
        adamw.step()
        factor = torch.tensor(0.25, device=DEVICE)
        fields = [ours, new, means, squares, *([] if weights is None else [weights])]
        kernels.adamw_(table.fill(fields), factor=factor, done=step, **settings)
    for place, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(means[place], adamw.state[other]["exp_avg"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(squares[place], adamw.state[other]["exp_avg_sq"], rtol=1e-5, atol=1e-9)
        if weights is not None:
            assert torch.equal(weights[place], nearest(one))


def mixed(bits):
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def rounded(value, chance):
    bits = value.contiguous().view(torch.int32)
    return ((bits + chance.to(torch.int32)) & -65536).view(torch.float32).bfloat16()


def draws(kernels, shapes, seed):
    """The kernel's draws for tensors of such shapes, one after the other: three of sixteen bits a number."""
    program = 0
    for shape in shapes:
        size, parts = torch.Size(shape).numel(), []
        for begin in range(0, size, kernels.CHUNK):
            key = mixed(mixed(((seed & 0xFFFFFFFF) + program) & 0xFFFFFFFF) ^ (seed >> 32))
            place = torch.arange(min(kernels.CHUNK, size - begin))
            first = mixed(((place * 0x9E3779B9) & 0xFFFFFFFF) ^ key)
            second = mixed((first + key) & 0xFFFFFFFF)
            parts.append(torch.stack((first & 0xFFFF, first >> 16, second & 0xFFFF)))
            program += 1
        yield torch.cat(parts, dim=1).view(3, *shape).to(DEVICE)


@pytest.mark.parametrize("kahan", [False, True])
def test_rounding_by_chance_on_the_same_draws(kernels, kahan):
    torch.manual_seed(1)
    weights = [torch.randn(shape, device=DEVICE).bfloat16() for shape in SHAPES]
    grads = [torch.randn_like(one) for one in weights]
    means = [torch.randn_like(one) * 0.1 for one in weights]
    squares = [torch.rand_like(one) * 0.01 for one in weights]
    lost = [torch.randn_like(one) * 1e-4 for one in weights] if kahan else None
    seed = 0x1234_5678_9ABC_DEF0
    first, second, there, eps, kept, rate = NUMBERS
    wanted = []
    for place, chance in enumerate(draws(kernels, SHAPES, seed)):
        grad = grads[place].float() * 0.5
        mean = means[place].float() + first * (grad - means[place].float())
        square = squares[place].float() + second * (grad.square() - squares[place].float())
        new = weights[place].float() * kept + rate * (mean / ((square / there).sqrt() + eps))
        found = [rounded(mean, chance[0]), rounded(square, chance[1])]
        if lost is None:
            found.append(rounded(new, chance[2]))
        else:
            new += lost[place].float()
            found += [nearest(new), nearest(new - nearest(new))]
        wanted.append(found)
    factor, drawn = torch.tensor(0.5, device=DEVICE), torch.tensor([seed], device=DEVICE)
    fields = [weights, grads, means, squares, *([] if lost is None else [lost])]
    kernels.rounded_adamw_(kernels.Table().fill(fields), seed=drawn, factor=factor, numbers=NUMBERS)
    for place, found in enumerate(wanted):
        got = [means[place], squares[place], weights[place], *([] if lost is None else [lost[place]])]
        for one, other in zip(got, found, strict=True):
            # The last digit of fp32 decides a draw now and then, and often what rounding has lost.
            assert (one == other).float().mean() > (0.98 if lost and one is lost[place] else 0.999)
            torch.testing.assert_close(one, other, rtol=2**-7, atol=1e-6)


def test_rounding_keeps_the_mean_and_draws_evenly(kernels):
    weights = [torch.full((40_000,), 1.0, device=DEVICE).bfloat16()]
    grads, squares = [torch.ones_like(weights[0])], [torch.ones_like(weights[0])]
    means = [torch.zeros_like(weights[0])]
    seed = torch.tensor([77], device=DEVICE)
    numbers = (
        1.0,
        0.0,
        1.0,
        0.0,
        1.0,
        0.001,
    )  # adds a thousandth, an eighth of a step of bf16
    kernels.rounded_adamw_(
        kernels.Table().fill([weights, grads, means, squares]), seed=seed,
        factor=torch.ones((), device=DEVICE), numbers=numbers,
    )  # fmt: skip
    assert set(weights[0].tolist()) == {1.0, 1.0078125}
    assert weights[0].float().mean().item() == pytest.approx(1.001, abs=1e-4)
    up = (weights[0] > 1).float()
    assert (up[1:] * up[:-1]).mean().item() == pytest.approx(up.mean().item() ** 2, abs=4e-3)


def test_weights_in_fp32_are_not_rounded(kernels):
    torch.manual_seed(2)
    weight, grad = torch.randn(999, device=DEVICE), torch.randn(999, device=DEVICE)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    wanted = weight * 0.999 - 0.01 * (0.1 * grad / ((0.001 * grad.square() / 0.002).sqrt() + 1e-8))
    kernels.rounded_adamw_(
        kernels.Table().fill([[weight], [grad], [mean], [square]]), seed=torch.tensor([1], device=DEVICE),
        factor=torch.ones((), device=DEVICE), numbers=NUMBERS,
    )  # fmt: skip
    torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=1e-6)


def test_tensors_that_begin_anywhere(kernels):
    """Addresses that are no multiple of sixteen bytes."""
    torch.manual_seed(3)
    whole = torch.randn(1001, device=DEVICE)
    ours, theirs = whole[1:], whole[1:].clone()
    grad = torch.randn(1000, device=DEVICE)
    one, other = ([torch.zeros(1000, device=DEVICE)] * 1 for _ in range(2))
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    theirs.requires_grad_().grad = grad.clone()
    torch.optim.AdamW([theirs], **settings).step()
    table = kernels.Table()
    kernels.adamw_(
        table.fill([[ours], [grad], one, other]), factor=torch.ones((), device=DEVICE), done=1, **settings
    )
    assert not table.aligned
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)


@pytest.fixture
def anywhere(monkeypatch):
    """The kernels are taken in the interpreter too."""
    if INTERPRETED:
        for module in (updates, rounding):
            monkeypatch.setattr(module, "fit_for", lambda _: True)


def two_layers():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8)).to(DEVICE, torch.bfloat16)


def backward(model, step, scale=1.0):
    torch.manual_seed(step)
    seen = torch.randn(6, 24).to(DEVICE, torch.bfloat16)
    (model(seen).float().square().sum() * scale).backward()


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("in_backward", [False, True])
def test_masters_follow_torchs_adamw(anywhere, pieces, in_backward):
    """Clipped, from one micro-batch (its gradients stay in bf16) and from two, added up in fp32."""
    if in_backward and pieces == 2:
        pytest.skip("updates in the backward pass come from one micro-batch")
    choice = TrainingChoice(weight_decay=0.1, max_grad_norm=1.0, update_in_backward=in_backward)
    model, other = two_layers(), two_layers()
    ours = Optimizer(model, choice)
    assert isinstance(ours.adamw, fused.FusedAdamW)
    masters = {name: one.detach().float() for name, one in other.named_parameters()}
    plain = [one for name, one in masters.items() if one.ndim < 2]
    rest = [one for name, one in masters.items() if one.ndim >= 2]
    groups = [{"params": rest}, {"params": plain, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1e-2, betas=(choice.beta1, choice.beta2), weight_decay=0.1)
    for step in range(4):
        ours.begin(1e-2)
        ours.gradients.single = ours.takes_single and pieces == 1
        sums = {name: torch.zeros_like(one) for name, one in masters.items()}
        for piece in range(pieces):
            backward(model, 10 * step + piece)
            backward(other, 10 * step + piece)
            for name, one in other.named_parameters():
                sums[name] += one.grad
                one.grad = None
        for name, one in masters.items():
            one.grad = sums[name]
        if pieces == 1 and not in_backward:
            found = [ours.gradients.of(master) for master in ours.masters.values()]
            assert {one.dtype for one in found} == {torch.bfloat16}
        norm = ours.clip().item()
        assert norm == pytest.approx(torch.nn.utils.get_total_norm(list(sums.values())).item(), rel=1e-5)
        if not in_backward:
            torch.nn.utils.clip_grad_norm_(list(masters.values()), 1.0)
        theirs.step()
        ours.step(1e-2)
        for name, master in masters.items():
            torch.testing.assert_close(ours.masters[name].detach(), master, rtol=1e-6, atol=1e-6)
            weight = ours.model_weights[name]
            assert torch.equal(weight, nearest(ours.masters[name].detach()))
            assert weight.grad is None
            other.get_parameter(name).data.copy_(weight.data)
    assert not ours.gradients.own


def test_a_checkpoint_of_torchs_adamw_is_gone_on_from(anywhere):
    """And the other way: the states and the groups are the same."""
    choice = TrainingChoice(weight_decay=0.1)
    whole = two_layers()
    one = Optimizer(whole, choice)
    theirs = torch.optim.AdamW(
        [{"params": group["params"]} for group in one.adamw.param_groups], lr=1e-2, fused=True
    )
    for master in one.masters.values():
        master.grad = torch.randn_like(master)
    theirs.step()
    saved = copy.deepcopy(theirs.state_dict())
    one.adamw.load_state_dict(saved)
    assert {int(state["step"]) for state in one.adamw.state.values()} == {1}
    again = one.adamw.state_dict()
    assert again["state"][0].keys() == saved["state"][0].keys()
    assert again["param_groups"][0].keys() == saved["param_groups"][0].keys()
    one.step(1e-2)
    theirs.load_state_dict(again)
    assert {float(state["step"]) for state in theirs.state.values()} == {2.0}


def test_gradients_that_stay_in_their_places(anywhere):
    """As recorded passes leave them: written over in each step, at zero where a step gives none."""
    model = two_layers()
    ours = Optimizer(model, TrainingChoice())
    ours.gradients.single = True
    backward(model, 1)
    ours.gradients.settle()
    places = {name: ours.gradients.of(one).data_ptr() for name, one in ours.masters.items()}
    ours.step(1e-2)
    ours.gradients.begin()
    assert all(not one.any() for one in ours.gradients.places.values())
    backward(model, 2)
    once = {name: ours.gradients.of(one).clone() for name, one in ours.masters.items()}
    assert {name: ours.gradients.of(one).data_ptr() for name, one in ours.masters.items()} == places
    backward(model, 2)  # a second part is added
    for name, one in ours.masters.items():
        torch.testing.assert_close(ours.gradients.of(one), once[name] * 2)
    ours.step(1e-2)
    ours.gradients.forget(places=True)
    backward(model, 3)
    backward(model, 3)  # two parts without places: added up in fp32
    assert all(one.grad.dtype == torch.float32 for one in ours.masters.values())


@pytest.mark.parametrize("name", ["adamw-bf16", "adamw-bf16-kahan"])
def test_chance_goes_on_from_its_state_and_clips(anywhere, name):
    def run(steps, model, optimizer):
        for step in steps:
            backward(model, step, scale=100.0)
            torch.manual_seed(step)
            assert optimizer.clip() > 1
            optimizer.step(1e-3)

    choice = TrainingChoice(optimizer=name, max_grad_norm=1.0)
    whole, part = two_layers(), two_layers()
    one, two = Optimizer(whole, choice), Optimizer(part, choice)
    run(range(6), whole, one)
    run(range(3), part, two)
    again = two_layers()
    three = Optimizer(again, choice)
    three.load_weights({name: weight.detach().clone() for name, weight in two.weights().items()})
    three.load_state(copy.deepcopy(two.state()))
    run(range(3, 6), again, three)
    assert torch.equal(again[0].weight, whole[0].weight)
    assert not torch.equal(again[0].weight, part[0].weight)
    largest = max(state["mean"].abs().max().item() for state in one.adamw.state.values())
    assert 0 < largest <= 1  # clipped: no gradient is larger
