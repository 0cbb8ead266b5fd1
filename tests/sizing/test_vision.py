"""What a vision tower adds: trained parameters exactly, memory and time in the right direction."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.models.load import quiet
from luthier.models.lora import adapter_paths, add_lora
from luthier.models.vision import below, load_seeing_model, parts_of
from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture, Tower
from luthier.schema.recipe import Lora, VisionChoice
from luthier.sizing.activations import OURS
from luthier.sizing.model_config import architecture_of
from luthier.sizing.parameters import count_parameters
from luthier.sizing.resident import resident
from luthier.sizing.training import training_memory
from luthier.sizing.vision import tower_flops, with_tower
from seeing import FAMILIES, save_seeing_model

TUNED = VisionChoice(tower="adapters", projector=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_parameters_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    with quiet():
        folder = save_seeing_model(tmp_path / family, family)
    arch = architecture_of(folder)
    assert arch.tower is not None
    assert arch.tower.parameters + arch.tower.projector == arch.extra_parameters
    for choice in (VisionChoice(), TUNED):
        model, lora = load_seeing_model(folder, dtype="float32"), Lora(rank=4)
        language, towers, projectors = parts_of(model)
        parts = (language, *towers) if choice.tower == "adapters" else (language,)
        paths = [p for p in adapter_paths(model, lora) if below(p, parts) and not below(p, projectors)]
        add_lora(model, lora, only=frozenset(paths), whole=projectors if choice.projector else ())
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        planned = with_tower(arch, choice)
        assert resident(planned, count_parameters(planned), lora, "float32", OURS).trainable == trained


def test_images_cost_memory_and_time_and_an_adapted_tower_more() -> None:
    tower = Tower(layers=24, hidden_size=1024, intermediate_size=4096, patch=588, parameters=300_000_000)
    arch = Architecture(
        model_type="llama", layers=2, hidden_size=64, intermediate_size=128, attention_heads=2, kv_heads=2,
        head_dim=32, vocab_size=100, tied_embeddings=True, extra_parameters=300_000_000, tower=tower,
    )  # fmt: skip
    shape = TrainingShape(micro_batch_size=2, sequence_length=128)
    seen = shape.model_copy(update={"patches": 4096, "patches_per_token": 4.0})

    def peak(one: Architecture, at: TrainingShape) -> int:
        return training_memory(one, Lora(), at, dtype="bfloat16").peak.total

    adapted = with_tower(arch, TUNED)
    assert peak(arch, shape) < peak(arch, seen) < peak(adapted, seen)
    # Two rows of 4,096 patches: pixels in fp32 and one layer's MLP with its stream.
    grown = 2 * 4096 * (588 * 4 + (3 * 1024 + 2 * 4096) * 2)
    assert peak(arch, seen) - peak(arch, shape) == pytest.approx(grown, rel=0.05)
    assert tower_flops(arch, shape) == 0
    assert tower_flops(adapted, seen) == 3 * tower_flops(arch, seen) == 3 * 2 * 300e6 * 4


def test_an_exact_trace_of_a_model_that_sees_is_refused() -> None:
    from luthier.checks.trace.run import trace_training
    from luthier.errors import Unsupported

    shape = TrainingShape(micro_batch_size=1, sequence_length=64)
    with pytest.raises(Unsupported, match="models that see are not traced"):
        trace_training({"model_type": "gemma3", "vision_config": {}}, Lora(), shape)
