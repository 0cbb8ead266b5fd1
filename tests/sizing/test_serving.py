"""File sizes and serving memory against llama.cpp's own figures."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import UsageError
from luthier.schema.model import Architecture
from luthier.sizing.gguf import gguf_bytes
from luthier.sizing.model_config import architecture_from_config
from luthier.sizing.serving import (
    cache_bytes,
    cache_bytes_per_token,
    compute_bytes,
    largest_context,
    serving_memory,
    vllm_pool,
)

MIB = 1 << 20
ROWS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "benchmarks" / "memory" / "llamacpp.json").read_text()
)
SMOL = architecture_from_config(ROWS["models"]["SmolLM2-135M-Instruct"])


def _llama(**changes: Any) -> Architecture:
    values: dict[str, Any] = {
        "model_type": "llama",
        "layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "attention_heads": 32,
        "kv_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tied_embeddings": False,
    }
    return Architecture(**(values | changes))


@pytest.mark.parametrize(
    "row", ROWS["rows"], ids=lambda row: f"{row['model']}-{row['context']}x{row['slots']}"
)
def test_llama_cpp_reports_the_same(row: dict[str, Any]) -> None:
    arch = architecture_from_config(ROWS["models"][row["model"]])
    context = row["context"] // row["slots"]
    cache = cache_bytes(arch, context, slots=row["slots"], cache_type=row["cache_type"], ubatch=row["ubatch"])
    assert cache / MIB == pytest.approx(row["cache"], abs=0.011)
    compute = compute_bytes(arch, context, ubatch=row["ubatch"], flash_attention=row["flash_attention"])
    assert compute / MIB == pytest.approx(row["compute"], rel=0.05)


def test_gguf_files_of_smollm2_to_the_byte() -> None:
    """Sizes of files written by llama.cpp's converter and llama-quantize; their metadata is the same."""
    files = {"F16": 270_885_728, "Q8_0": 144_810_848, "Q5_K_M": 112_103_264, "Q4_K_M": 105_453_920}
    metadata = files["F16"] - gguf_bytes(SMOL, "F16")
    assert 1_000_000 < metadata < 3_000_000
    for kind, size in files.items():
        assert gguf_bytes(SMOL, kind, metadata=metadata) == pytest.approx(size, abs=64), kind


def test_gguf_tensors_of_gemma_3_270m_to_the_byte() -> None:
    gemma = Architecture(
        model_type="gemma3_text",
        layers=18,
        hidden_size=640,
        intermediate_size=2048,
        attention_heads=4,
        kv_heads=1,
        head_dim=256,
        vocab_size=262_144,
        tied_embeddings=True,
        qk_norm=True,
        norms_per_layer=4,
    )
    assert gguf_bytes(gemma, "Q4_K_M") == 246_587_904


def test_llama_8b_at_four_bits() -> None:
    """The file that everybody has: 4.92 GB."""
    assert gguf_bytes(_llama(), "Q4_K_M", metadata=7_900_000) == pytest.approx(4.92e9, rel=0.002)


@pytest.mark.parametrize("kind", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M"])
@pytest.mark.parametrize("hidden", [256, 576])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_the_exporter_plans_the_same_types(kind: str, hidden: int, family: str) -> None:
    """The quantiser's counting of the tensors that it meets, on a header made from the shape."""
    policy = pytest.importorskip("luthier.llamacpp.policy")
    from luthier.llamacpp.gguf_file import Tensor
    from luthier.sizing.gguf import gguf_tensors

    arch = _llama(
        model_type=family,
        layers=9,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        attention_heads=4,
        kv_heads=2,
        head_dim=hidden // 4,
        vocab_size=1000,
    )
    ours = {f"{t.name}.weight": t for t in gguf_tensors(arch, kind)}
    facts = {"block_count": 9, "attention.head_count": 4, "attention.head_count_kv": 2}
    header = SimpleNamespace(
        architecture=family,
        of_architecture=lambda key, default=None: facts.get(key, default),
        get=lambda _key, default=None: default,
        tensors=tuple(Tensor(name, (t.columns, t.rows), "F16", 0) for name, t in ours.items()),
    )
    planned = policy.plan_types(header, kind)
    assert {name: planned.get(name, "F16") for name in ours} == {name: t.type for name, t in ours.items()}


def test_published_cache_sizes() -> None:
    assert cache_bytes_per_token(_llama(), 2) == 128 * 1024
    gemma_12b = _llama(
        layers=48, kv_heads=8, head_dim=256, sliding_window=1024,
        layer_kinds=(("sliding",) * 5 + ("full",)) * 8,
    )  # fmt: skip
    assert cache_bytes(gemma_12b, 32_768) / 2**30 == pytest.approx(2.5, abs=0.04)
    assert cache_bytes(gemma_12b, 32_768, whole_window=True) / 2**30 == pytest.approx(12, abs=0.01)


@given(st.integers(1, 100_000), st.integers(1, 8))
def test_more_context_or_slots_never_need_less(context: int, slots: int) -> None:
    one = serving_memory(SMOL, 10**8, context, slots=slots)
    assert serving_memory(SMOL, 10**8, context + 1, slots=slots).total >= one.total
    assert serving_memory(SMOL, 10**8, context, slots=slots + 1).total > one.total
    assert one.total == one.weights + one.cache + one.compute + one.output


@given(st.integers(10**8, 10**10))
def test_the_largest_context_fits_and_the_next_does_not(budget: int) -> None:
    def need(context: int) -> int:
        return serving_memory(SMOL, 10**8, context).total

    found = largest_context(need, budget, most=8192)
    if found is None:
        assert need(256) > budget
    else:
        assert need(found) <= budget
        assert found == 8192 or need(found + 256) > budget


def test_vllm_pool_of_a_published_report() -> None:
    """vLLM issue 12330: 8B on an A100 40 GB at 0.9, 11.12 GiB for the cache after 9.37 GiB of activations."""
    pool = vllm_pool(_llama(), gpu_memory=round(39.5 * 2**30), context=8192, share=0.9)
    assert pool.tokens == pool.pool // (128 * 1024 * 16) * 16
    assert pool.concurrency == pytest.approx(pool.tokens / 8192)
    assert 11 < pool.pool / 2**30 < 20


def test_nothing_cannot_be_served() -> None:
    with pytest.raises(UsageError, match="a context of 0 tokens"):
        cache_bytes(SMOL, 0)
