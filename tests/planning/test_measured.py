"""Runs that were measured here correct the next plan of their kind, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.planning.correction import Corrections
from luthier.planning.estimate import estimate_training
from luthier.planning.measured import add_measurement, corrections_for, machine_of, read_measurements, store
from luthier.schema.estimate import Estimate, TrainingShape
from luthier.schema.hardware import Hardware, Processor
from luthier.schema.measurement import Measurement, Prediction
from luthier.schema.recipe import Full, Lora
from luthier.sizing.model_config import architecture_from_config

SMOL = architecture_from_config(
    {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
     "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152,
     "tie_word_embeddings": True, "max_position_embeddings": 8192}
)  # fmt: skip
HERE = Hardware(
    processor=Processor(name="some CPU", cores=2, instruction_sets=("avx2",), bf16=False),
    memory_total=16 << 30,
    memory_free=12 << 30,
    disk_free=10**11,
    versions={"torch": "2.13.0+cpu"},
)
SHAPE = TrainingShape(micro_batch_size=8, sequence_length=128, mean_length=100)
RATE, TOKENS = 1e11, 50_000


def predict(shape: TrainingShape = SHAPE, corrections: Corrections | None = None, **changes: Any) -> Estimate:
    wanted: dict[str, Any] = {"method": Lora(), "hardware": HERE, **changes}
    return estimate_training(
        SMOL, wanted["method"], shape, wanted["hardware"], tokens=TOKENS, device="cpu", dtype="float32",
        matrix_rate=RATE, corrections=corrections,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))


def ran(memory: float, seconds: float, shape: TrainingShape = SHAPE, **changes: Any) -> Measurement:
    """A run that came to so many times what the formula says."""
    formula = predict(shape)
    assert formula.seconds is not None
    return Measurement(
        time=0.0, run="r", model="smol", architecture=SMOL, method=Lora(), shape=shape, dtype="float32",
        machine=machine_of(HERE), matrix_rate=RATE, kernels="", versions={"torch": "2.13.1"}, steps=10,
        tokens=TOKENS, predicted=Prediction(process=formula.process, tensors=formula.tensors),
        peak=round(formula.process.expected * memory), seconds=formula.seconds.expected * seconds,
    ).model_copy(update=changes)  # fmt: skip


def test_three_runs_correct_the_next_plan_and_say_so() -> None:
    for memory, seconds in ((0.9, 1.5), (0.92, 1.7), (0.94, 1.6)):
        add_measurement(ran(memory, seconds))
    plain, told = predict(), predict(corrections=corrections_for(HERE))
    assert plain.seconds is not None
    assert told.seconds is not None
    assert told.process.expected == pytest.approx(0.92 * plain.process.expected, rel=1e-6)
    assert told.seconds.expected == pytest.approx(1.6 * plain.seconds.expected, rel=1e-6)
    assert told.seconds.low == pytest.approx(1.5 * 0.95 * plain.seconds.expected, rel=1e-6)
    assert told.process.high == pytest.approx(0.94 * 1.05 * plain.process.expected, rel=1e-6)
    assert told.basis == "measured"
    assert told.assumptions[-1] == (
        "measured here: 3 runs of this kind, memory 0.92 times, time 1.60 times of the formula's"
    )
    assert told.tokens_per_second is not None
    assert told.tokens_per_second.expected == pytest.approx(TOKENS / told.seconds.expected, rel=1e-6)


def test_one_run_moves_the_band_and_keeps_its_width() -> None:
    add_measurement(ran(1.1, 1.2))
    plain, told = predict(), predict(corrections=corrections_for(HERE))
    assert told.process.low == pytest.approx(1.1 * plain.process.low, rel=1e-6)
    assert told.process.high == pytest.approx(1.1 * plain.process.high, rel=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        {"shape": SHAPE.model_copy(update={"micro_batch_size": 64})},
        {"shape": SHAPE.model_copy(update={"activation_checkpointing": "full"})},
        {"method": Full()},
    ],
)
def test_other_kinds_are_left_alone(other: dict[str, Any]) -> None:
    add_measurement(ran(1.3, 2.0))
    corrections = corrections_for(HERE)
    assert len(corrections.ratios) == 1
    assert predict(corrections=corrections, **other) == predict(**other)


@pytest.mark.parametrize(
    "other",
    [
        HERE.model_copy(update={"processor": HERE.processor.model_copy(update={"cores": 4})}),
        HERE.model_copy(update={"versions": {"torch": "2.14.0"}}),
        HERE.model_copy(update={"hypothetical": True}),
    ],
)
def test_other_machines_have_no_history(other: Hardware) -> None:
    add_measurement(ran(1.3, 2.0))
    assert corrections_for(other).ratios == ()


def test_a_run_that_something_else_slowed_down_teaches_memory_only() -> None:
    add_measurement(ran(1.05, 40.0))
    plain, told = predict(), predict(corrections=corrections_for(HERE))
    assert told.seconds == plain.seconds
    assert told.process.expected == pytest.approx(1.05 * plain.process.expected, rel=1e-6)


def test_a_torn_line_costs_only_itself() -> None:
    add_measurement(ran(1.0, 1.0))
    with store().open("ab") as file:
        file.write(b'{"version": 1, "run": "to\n{"version": 9}\n')
    add_measurement(ran(1.0, 1.0))
    assert len(read_measurements()) == 2


def test_weights_on_the_host_are_a_kind_of_their_own_and_teach_no_time() -> None:
    away = SHAPE.model_copy(update={"activation_checkpointing": "full", "offload_parameters": True})
    stays = away.model_copy(update={"offload_parameters": False})
    for _ in range(3):
        add_measurement(ran(0.9, 1.5, away))
    known = corrections_for(HERE)
    assert predict(stays, known).basis == "formula"
    plain, told = predict(away), predict(away, known)
    assert told.process.expected == pytest.approx(0.9 * plain.process.expected, rel=1e-6)
    assert told.seconds == plain.seconds
