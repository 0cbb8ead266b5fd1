"""The kernel for documents of different lengths: loaded only where it runs, and known to the compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("torch")

import torch

from luthier.models import varlen
from luthier.models.varlen import Kernel, faster_kernel, kernel_for, varlen_attention


def test_the_module_does_not_load_torchs_compiler() -> None:
    code = "import sys, luthier.models.attention; sys.exit('torch.nn.attention.varlen' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kernel", ["torch", "flash4"])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_shapes_with_fewer_key_heads_and_under_the_compiler(kv_heads: int, kernel: Kernel) -> None:
    query = torch.empty(32, 4, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    key = torch.empty(32, kv_heads, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    ends = torch.empty(3, dtype=torch.int32, device="meta")

    def attend(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return varlen_attention(query, key, key, ends, 16, kernel=kernel)

    for run in (attend, torch.compile(attend, fullgraph=True, backend="eager")):
        out = run(query, key)
        assert out.shape == (32, 4, 64)
        grads = torch.autograd.grad(out.sum(), (query, key))
        assert [grad.shape for grad in grads] == [query.shape, key.shape]


@pytest.mark.parametrize(
    ("capability", "width", "there", "kernel", "said"),
    [
        ((9, 0), 128, True, "flash4", False),
        ((9, 0), 128, False, "torch", True),
        ((9, 0), 256, False, "torch", False),
        ((8, 0), 128, False, "torch", False),
    ],
)
def test_a_missing_kernel_is_said_with_what_it_costs(
    monkeypatch: pytest.MonkeyPatch,
    *,
    capability: tuple[int, int],
    width: int,
    there: bool,
    kernel: Kernel,
    said: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(varlen, "find_spec", lambda name: name if there else None)
    device = torch.device("cuda", 0)
    assert kernel_for(device, width) == kernel
    text = faster_kernel(device, width)
    assert (text is not None) == said
    assert text is None or ("twice as fast" in text and "pip install" in text)
