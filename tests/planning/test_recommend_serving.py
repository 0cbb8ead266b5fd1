"""Serving: the cache against llama.cpp's own figures, and what a target can hold."""

from __future__ import annotations

import pytest

from luthier.catalog.index import model_card
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.recommend.serving import suggest
from luthier.schema.request import Request
from luthier.sizing.serving import CacheType, cache_bytes

MIB = 2**20


@pytest.mark.parametrize(
    ("model", "context", "slots", "cache_type", "mebibytes"),
    [
        # Allocations that llama.cpp reported (see docs/recommend.md).
        ("google/gemma-3-270m-it", 8_192, 1, "f16", 24.0 + 15.0),
        ("google/gemma-3-270m-it", 32_768, 1, "f16", 96.0 + 15.0),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 8_192, 1, "f16", 180.0),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 8_192, 1, "q8_0", 95.6),
    ],
)
def test_cache_is_what_llama_cpp_allocates(
    model: str, context: int, slots: int, cache_type: CacheType, mebibytes: float
) -> None:
    shape = model_card(model).architecture
    assert shape is not None
    assert cache_bytes(shape, context, slots=slots, cache_type=cache_type) / MIB == pytest.approx(
        mebibytes, abs=0.1
    )


def test_a_window_saves_memory() -> None:
    """Gemma-3-12B at 32k holds 2.5 GiB, not the 12 that full attention everywhere would take."""
    shape = model_card("google/gemma-3-12b-it").architecture
    assert shape is not None
    assert cache_bytes(shape, 32_768) / 2**30 == pytest.approx(2.5, abs=0.4)


def test_a_smaller_target_gets_a_smaller_file() -> None:
    card = model_card("Llama-3.1-8B-Instruct")
    large = suggest(card, Request(), parse_hardware("rtx 4090"))
    small = suggest(card, Request(), parse_hardware("vram 8GB"))
    tiny = suggest(card, Request(), parse_hardware("phone:8GB"))
    assert large is not None
    assert small is not None
    assert tiny is not None
    assert large.quantisation == "Q8_0"
    assert small.weights < large.weights
    assert large.fits
    assert small.fits
    assert not tiny.fits
    assert large.tokens_per_second is not None
    assert 60 < large.tokens_per_second.expected < 110


def test_the_context_is_cut_before_the_weights_are_given_up() -> None:
    served = suggest(
        model_card("Llama-3.1-8B-Instruct"), Request(context=131_072), parse_hardware("vram 8GB")
    )
    assert served is not None
    assert served.context < 131_072
    assert served.fits
    assert "cut" in (served.note or "")


def test_what_cannot_be_converted_is_served_otherwise() -> None:
    card = model_card("Qwen3-0.6B").model_copy(update={"gguf": model_card("google/embeddinggemma-2").gguf})
    served = suggest(card, Request(), parse_hardware("rtx 4090"))
    assert served is not None
    assert served.runtime == "transformers"
    encoder = suggest(model_card("bge-m3"), Request(purpose="similarity"), parse_hardware("cpu:16GB"))
    assert encoder is not None
    assert encoder.cache == 0
    assert encoder.fits
