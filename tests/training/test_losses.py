"""The loss without the logits against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from luthier.sizing import loss_chunks
from luthier.training.losses import linear_cross_entropy


@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.25, None), (1.0, 3.0), (2.0, 5.0)])
@pytest.mark.parametrize("chunk", [1 << 24, 1])
def test_equals_cross_entropy_on_the_whole_matrix(monkeypatch, multiplier, softcap, chunk):
    monkeypatch.setattr(loss_chunks, "CHUNK_NUMBERS", chunk)
    torch.manual_seed(0)
    hidden = torch.randn(53, 12, requires_grad=True)
    weight = torch.randn(70, 12, requires_grad=True)
    targets = torch.randint(0, 70, (53,))
    logits = multiplier * hidden @ weight.t()
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    wanted = torch.autograd.grad(expected * 0.37, [hidden, weight])
    loss = linear_cross_entropy(hidden, weight, targets, multiplier=multiplier, softcap=softcap)
    found = torch.autograd.grad(loss * 0.37, [hidden, weight])
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-5)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_frozen_head_and_no_gradient():
    torch.manual_seed(0)
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(9, 4)
    targets = torch.tensor([0, 8, 3, 3, 1])
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert hidden.grad.abs().sum() > 0
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(loss.item())
    assert linear_cross_entropy(hidden[:0], weight, targets[:0]).item() == 0


def test_no_more_than_a_chunk_of_logits_is_held(monkeypatch):
    """Largest tensor made while computing: sixteen rows of logits, not four hundred."""
    monkeypatch.setattr(loss_chunks, "CHUNK_NUMBERS", 16 * 1000)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    hidden, weight = torch.randn(400, 8, requires_grad=True), torch.randn(1000, 8)
    with Watch():
        linear_cross_entropy(hidden, weight, torch.zeros(400, dtype=torch.long)).backward()
    assert largest == 16 * 1000
