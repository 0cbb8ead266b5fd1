"""Log-probabilities in chunks, and the losses over pairs."""

import math

import pytest
import torch
from torch.nn import functional as F

from luthier.sizing import loss_chunks
from luthier.training.preference import dpo, log_odds_ratio, odds_ratio, token_log_probs


def case(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 8, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(23, 8, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(0, 23, (50,), generator=generator)
    weighing = torch.randn(50, generator=generator, dtype=dtype)
    return hidden, weight, targets, weighing


@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (0.5, 2.0)])
def test_chunks_give_the_log_softmax_and_its_gradients(monkeypatch, multiplier, softcap):
    monkeypatch.setattr(loss_chunks, "CHUNK_NUMBERS", 23 * 16)
    hidden, weight, targets, weighing = case(torch.float32)
    found = token_log_probs(hidden, weight, targets, multiplier=multiplier, softcap=softcap)
    # Weights that differ by token: what a pair's loss gives each of its tokens.
    (found * weighing).sum().backward()
    mine = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.t() * multiplier
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    plain = logits.log_softmax(dim=1).gather(1, targets[:, None]).squeeze(1)
    (plain * weighing).sum().backward()
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[0], hidden.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[1], weight.grad, atol=1e-5, rtol=1e-5)


def test_only_what_asks_for_a_gradient_gets_one():
    hidden, weight, targets, _ = case(torch.float32)
    token_log_probs(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_dpo_is_a_logistic_loss_of_the_margin_over_the_reference():
    chosen, rejected, reference = torch.tensor([-3.0]), torch.tensor([-5.0]), torch.tensor([0.5])
    assert dpo(chosen, rejected, reference, beta=0.2).item() == pytest.approx(math.log1p(math.exp(-0.3)))
    smooth = dpo(chosen, rejected, reference, beta=0.2, label_smoothing=0.1).item()
    assert smooth == pytest.approx(0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3)))
    # A model that is its own reference prefers nothing.
    assert dpo(chosen, rejected, chosen - rejected, beta=7.0).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("chosen", [-1e-7, -1e-3, -0.69, -0.71, -4.0, -40.0])
def test_log_odds_are_exact_near_both_ends(chosen):
    rejected = -1.3
    exact = torch.tensor([chosen, rejected], dtype=torch.float64)
    odds = exact - torch.log(-torch.expm1(exact))
    found = log_odds_ratio(torch.tensor([chosen]), torch.tensor([rejected]))
    assert found.item() == pytest.approx((odds[0] - odds[1]).item(), rel=1e-5)


def test_certain_answers_keep_a_finite_gradient():
    chosen = torch.tensor([0.0, -1e-9], requires_grad=True)
    rejected = torch.tensor([-2.0, -120.0], requires_grad=True)
    odds_ratio(chosen, rejected, beta=0.1).sum().backward()
    assert torch.isfinite(chosen.grad).all()
    assert torch.isfinite(rejected.grad).all()


def test_the_odds_ratio_falls_as_the_chosen_answer_gets_likelier():
    rejected = torch.full((5,), -1.0)
    losses = odds_ratio(torch.linspace(-3, -0.2, 5), rejected, beta=0.1)
    assert (losses.diff() < 0).all()
    torch.testing.assert_close(odds_ratio(rejected, rejected, beta=0.1), -0.1 * F.logsigmoid(torch.zeros(5)))
