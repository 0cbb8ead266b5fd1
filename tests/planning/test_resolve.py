"""From an open recipe to a plan: every value derived, each with its source."""

from __future__ import annotations

import pytest

from luthier.errors import DoesNotFit, RecipeError, Unsupported
from luthier.planning.estimate import evaluation_seconds, kernels_for
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.resolve import Resolved, resolve
from luthier.planning.solver import memory_budget
from luthier.schema.data import Lengths
from luthier.schema.data_profile import LengthProfile
from luthier.schema.estimate import EvaluationShape
from luthier.schema.hardware import Accelerator, Hardware, Processor
from luthier.schema.model import Architecture
from luthier.schema.recipe import (
    DataChoice,
    Full,
    Lora,
    ModelChoice,
    PreferenceChoice,
    QLora,
    Recipe,
    SimilarityChoice,
    TrainingChoice,
)
from luthier.sizing.training import training_memory

GIB = 1 << 30
SMOL = Architecture(
    model_type="llama",
    layers=30,
    hidden_size=576,
    intermediate_size=1536,
    attention_heads=9,
    kv_heads=3,
    head_dim=64,
    vocab_size=49152,
    tied_embeddings=True,
    max_positions=8192,
)
LLAMA_8B = Architecture(
    model_type="llama",
    layers=32,
    hidden_size=4096,
    intermediate_size=14336,
    attention_heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    tied_embeddings=False,
    max_positions=131072,
)
LAPTOP = Hardware(
    processor=Processor(name="laptop", cores=2, instruction_sets=("avx2",), bf16=False),
    memory_total=24 * GIB,
    memory_free=20 * GIB,
    disk_free=None,
)
RTX_4090 = Hardware(
    processor=LAPTOP.processor,
    memory_total=64 * GIB,
    memory_free=60 * GIB,
    disk_free=None,
    accelerators=(
        Accelerator(
            index=0,
            name="RTX 4090",
            kind="cuda",
            memory_total=24 * GIB,
            memory_free=23 * GIB,
            compute_capability=(8, 9),
            bf16=True,
            bf16_flops=165e12,
            bandwidth=1008e9,
        ),
    ),
)

H100 = parse_hardware("h100")


def lengths(count: int, mean: int, maximum: int) -> Lengths:
    return Lengths(
        count=count,
        total=count * mean,
        minimum=8,
        median=mean,
        p90=maximum,
        p95=maximum,
        p99=maximum,
        maximum=maximum,
    )


PROFILE = LengthProfile(
    train=lengths(800, 90, 125),
    trained_tokens=800 * 30,
    validation=lengths(40, 90, 120),
    prompts=lengths(160, 60, 80),
    answers=lengths(160, 30, 50),
)


def recipe(**changes: object) -> Recipe:
    values: dict[str, object] = {
        "model": ModelChoice(id="org/Some-Model"),
        "data": DataChoice(train=("rows.jsonl",)),
    }
    return Recipe.model_validate(values | changes)


def test_nothing_is_left_open_and_each_value_has_a_source() -> None:
    found = resolve(recipe(), arch=SMOL, hardware=LAPTOP, profile=PROFILE)
    done = found.recipe
    open_keys = [
        f"training.{name}"
        for name, value in done.training
        if value is None
        and name not in ("max_steps", "patience", "recomputed_layers", "ema", "parallel", "cuda_graphs")
        and name != "offload_parameters"
    ]
    assert open_keys == []
    assert done.model.dtype == "float32"
    assert isinstance(done.method, Lora)
    assert done.method.alpha == 32
    assert done.training.sequence_length == 128
    assert done.evaluation.batch_size is not None
    assert done.name == "some-model-rows-lora"
    steps = ("epochs", "learning_rate", "batch_size", "micro_batch_size", "sequence_length")
    rhythm = ("activation_checkpointing", "compile", "evaluate_every", "checkpoint_every")
    rhythm += ("background_checkpoints",)
    others = {
        "model.dtype",
        "model.attention",
        "method.alpha",
        "data.packing",
        "evaluation.batch_size",
        "name",
    }
    derived = others | {f"training.{name}" for name in steps + rhythm}
    assert set(done.sources) == derived
    assert all(len(source) > 10 for source in done.sources.values())
    assert found.device == "cpu"
    assert found.steps == 3 * 100
    assert found.tokens == pytest.approx(3 * 800 * 90, rel=0.02)


def test_the_optimiser_and_a_reference_are_counted() -> None:
    def found(**changes: object) -> Resolved:
        return resolve(recipe(**changes), arch=SMOL, hardware=RTX_4090, profile=PROFILE)

    plain, small = found(method=Full()), found(
        method=Full(), training=TrainingChoice(optimizer="adamw-8bit")
    )  # fmt: skip
    saved = plain.estimate.peak.parts["optimizer"] - small.estimate.peak.parts["optimizer"]
    assert saved == pytest.approx(plain.estimate.trainable_parameters * (8 - 2.03), rel=0.01)
    pairs = found(preference=PreferenceChoice())
    assert (pairs.shape.log_probs, pairs.shape.extra_forwards) == (True, 1.0)
    odds = found(preference=PreferenceChoice(loss="orpo"))
    assert (odds.shape.log_probs, odds.shape.extra_forwards) == (True, 0.0)
    assert pairs.estimate.seconds is not None
    assert odds.estimate.seconds is not None
    assert 1.3 < pairs.estimate.seconds.expected / odds.estimate.seconds.expected < 1.6
    # All weights: the reference answers once, before the first of two epochs.
    whole = found(preference=PreferenceChoice(), method=Full(), training=TrainingChoice(epochs=2))
    assert whole.shape.extra_forwards == 0.5


def test_a_resolved_recipe_resolves_to_itself() -> None:
    once = resolve(recipe(), arch=SMOL, hardware=LAPTOP, profile=PROFILE).recipe
    assert resolve(once, arch=SMOL, hardware=LAPTOP, profile=PROFILE).recipe == once


def test_given_values_stay() -> None:
    wanted = recipe(
        training=TrainingChoice(
            learning_rate=1e-5, batch_size=12, micro_batch_size=3, sequence_length=64, max_steps=7
        )
    )
    found = resolve(wanted, arch=SMOL, hardware=LAPTOP, profile=PROFILE)
    given = found.recipe.training
    assert (given.learning_rate, given.batch_size, given.micro_batch_size, given.sequence_length) == (
        1e-5,
        12,
        3,
        64,
    )
    assert found.steps == 7
    assert "training.learning_rate" not in found.recipe.sources


def test_the_type_follows_the_device() -> None:
    assert (
        resolve(recipe(), arch=LLAMA_8B, hardware=RTX_4090, profile=PROFILE).recipe.model.dtype == "bfloat16"
    )
    slow = resolve(
        recipe(), arch=SMOL, hardware=LAPTOP, profile=PROFILE, matrix_rates={"float32": 50e9, "bfloat16": 1e9}
    )
    assert slow.recipe.model.dtype == "float32"
    assert "bf16 1, fp32 50 GFLOP/s" in slow.recipe.sources["model.dtype"]
    asked = recipe(model=ModelChoice(id="m", dtype="bfloat16"))
    warned = resolve(asked, arch=SMOL, hardware=LAPTOP, profile=PROFILE)
    assert warned.recipe.model.dtype == "bfloat16"
    assert "emulated" in warned.warnings[0]
    old = parse_hardware("T4")
    assert resolve(recipe(), arch=SMOL, hardware=old, profile=PROFILE).recipe.model.dtype == "float32"
    asked_there = resolve(asked, arch=SMOL, hardware=old, profile=PROFILE)
    assert asked_there.recipe.model.dtype == "bfloat16"
    assert "emulated there and slower" in asked_there.warnings[0]


def test_what_fits_is_solved_and_what_does_not_is_said() -> None:
    long = PROFILE.model_copy(update={"train": lengths(800, 1000, 4096)})
    found = resolve(recipe(), arch=LLAMA_8B, hardware=RTX_4090, profile=long)
    assert found.estimate.process.high <= 0.97 * 23 * GIB
    assert found.recipe.training.activation_checkpointing == "full"
    with pytest.raises(DoesNotFit, match="full training with sequences of 4,096 tokens needs") as caught:
        resolve(recipe(method=Full()), arch=LLAMA_8B, hardware=RTX_4090, profile=long)
    assert "method.name=lora" in str(caught.value.hint)
    huge = PROFILE.model_copy(update={"train": lengths(800, 60_000, 120_000)})
    with pytest.raises(DoesNotFit) as too_long:
        resolve(recipe(), arch=LLAMA_8B, hardware=RTX_4090, profile=huge)
    assert "training.sequence_length=" in str(too_long.value.hint)
    assert "then it fits" in str(too_long.value.hint)


def test_contradictions_have_words() -> None:
    odd = recipe(training=TrainingChoice(batch_size=8, micro_batch_size=3))
    with pytest.raises(RecipeError, match=r"not a multiple of training\.micro_batch_size 3"):
        resolve(odd, arch=SMOL, hardware=LAPTOP, profile=PROFILE)
    long = recipe(training=TrainingChoice(sequence_length=10_000))
    with pytest.raises(RecipeError, match="beyond the model's context of 8,192"):
        resolve(long, arch=SMOL, hardware=LAPTOP, profile=PROFILE)


def test_qlora_takes_less_and_layers_are_compiled_on_a_gpu_only() -> None:
    four = resolve(recipe(method=QLora()), arch=LLAMA_8B, hardware=RTX_4090, profile=PROFILE)
    assert four.recipe.method.name == "qlora"
    assert four.recipe.training.compile is (four.steps >= 50)
    here = resolve(recipe(), arch=SMOL, hardware=LAPTOP, profile=PROFILE)
    assert here.recipe.training.compile is False
    assert here.recipe.sources["training.compile"] == "on a GPU with bf16 only"


def test_short_micro_batches_of_small_models_are_launched_at_once() -> None:
    """Where launching kernels one by one takes longer than computing."""
    rows = PROFILE.model_copy(update={"train": lengths(20000, 90, 125)})

    def plan(arch: Architecture, hardware: Hardware = H100, **training: object) -> Resolved:
        asked = recipe(training=TrainingChoice.model_validate({"batch_size": 16} | training))
        return resolve(asked, arch=arch, hardware=hardware, profile=rows)

    small = plan(SMOL)
    assert small.recipe.training.cuda_graphs is True
    assert "to launch them" in small.recipe.sources["training.cuda_graphs"]
    large = plan(LLAMA_8B, batch_size=64, micro_batch_size=64)
    assert large.recipe.training.cuda_graphs is False
    assert plan(SMOL, compile=False).recipe.training.cuda_graphs is False
    assert plan(SMOL, LAPTOP).recipe.training.cuda_graphs is None
    with pytest.raises(Unsupported, match="CUDA only"):
        plan(SMOL, LAPTOP, cuda_graphs=True)
    # What recorded passes leave in place must fit too.
    choice = TrainingChoice(batch_size=16, micro_batch_size=16, activation_checkpointing="none")
    whole = recipe(method=Full(), training=choice)
    found = resolve(whole, arch=SMOL, hardware=H100, profile=rows)
    assert found.recipe.training.cuda_graphs is True
    card = H100.accelerators[0]
    room = round(found.estimate.process.high * 79 / 80 * card.memory_free / memory_budget(H100, "cuda"))
    tight = H100.model_copy(update={"accelerators": (card.model_copy(update={"memory_free": room}),)})
    less = resolve(whole, arch=SMOL, hardware=tight, profile=rows)
    assert less.recipe.training.cuda_graphs is False
    assert "stay from step to step" in less.recipe.sources["training.cuda_graphs"]
    noisy = recipe(method=Lora(dropout=0.1), training=TrainingChoice(cuda_graphs=True))
    with pytest.raises(Unsupported, match="noise is drawn"):
        resolve(noisy, arch=SMOL, hardware=H100, profile=rows)


def test_the_plan_is_of_the_layers_as_they_will_run() -> None:
    """Compiled or not, recomputed or not: shape, estimate and recipe say one thing."""
    long = PROFILE.model_copy(update={"train": lengths(2000, 700, 1024)})

    def plan(**training: object) -> Resolved:
        asked = recipe(training=TrainingChoice.model_validate(training))
        return resolve(asked, arch=LLAMA_8B, hardware=H100, profile=long)

    kept = {"activation_checkpointing": "none", "micro_batch_size": 4}
    compiled, plain = plan(**kept), plan(compile=False, **kept)
    assert compiled.recipe.training.compile
    assert (compiled.shape.compiled, plain.shape.compiled) == (True, False)
    held = {name: found.estimate.tensors.expected for name, found in (("c", compiled), ("p", plain))}
    assert held["c"] < 0.95 * held["p"]
    for found in (compiled, plain):
        training = found.recipe.training
        assert found.shape.micro_batch_size == training.micro_batch_size
        assert found.shape.activation_checkpointing == training.activation_checkpointing
        kernels = kernels_for("cuda", "bfloat16", compiled=found.shape.compiled)
        alone = training_memory(
            LLAMA_8B, found.recipe.method, found.shape, dtype="bfloat16", kernels=kernels, hopper=True
        )
        assert found.estimate.tensors.expected == alone.peak.total
    sizes = [
        max(p.total for p in plan(micro_batch_size=4, **mode).estimate.phases if p.name != "evaluate")
        for mode in (
            {"activation_checkpointing": "none"},
            {"activation_checkpointing": "selective"},
            {"activation_checkpointing": "full", "recomputed_layers": 24},
            {"activation_checkpointing": "full"},
            {"activation_checkpointing": "offload"},
        )
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_texts_that_are_read_as_a_whole_are_padded_and_a_row_s_texts_count_together() -> None:
    arch = SMOL.model_copy(update={"causal": False, "layer_norm": True, "gated_mlp": False})
    pairs = PROFILE.model_copy(update={"inputs": 2.0, "prompts": None, "answers": None})
    chosen = TrainingChoice(batch_size=16, sequence_length=128, epochs=1.0, learning_rate=1e-4)
    wanted = recipe(task="similarity", training=chosen)
    found = resolve(wanted, arch=arch, hardware=LAPTOP, profile=pairs)
    assert found.recipe.training.sequence_length == 128
    assert (found.shape.padded, found.shape.documents, found.shape.sequence_length) == (True, 2, 256)
    assert found.shape.compared == 16 * 16
    one = resolve(recipe(task="reranking", training=chosen), arch=arch, hardware=LAPTOP, profile=PROFILE)
    assert (one.shape.padded, one.shape.documents, one.shape.compared) == (True, 1, 0)
    assert one.estimate.process.expected < found.estimate.process.expected


def test_a_step_s_texts_count_as_long_as_the_data_has_them() -> None:
    arch = SMOL.model_copy(update={"causal": False, "layer_norm": True, "gated_mlp": False})
    few = {"minimum": 10, "median": 40, "p90": 120, "p95": 200, "p99": 400, "maximum": 512}
    train = Lengths.model_validate({"count": 4000, "total": 400_000, **few})
    pairs = PROFILE.model_copy(update={"inputs": 2.0, "prompts": None, "answers": None, "train": train})
    chosen = TrainingChoice(batch_size=64, micro_batch_size=64, epochs=1.0, learning_rate=1e-4)

    def plan(loss: str) -> Resolved:
        wanted = recipe(
            task="similarity", training=chosen, similarity=SimilarityChoice.model_validate({"loss": loss})
        )
        return resolve(wanted, arch=arch, hardware=H100, profile=pairs)

    drawn, classes = plan("in-batch-negatives"), plan("batch-all-triplet")
    assert len(drawn.shape.text_lengths) == 128
    assert max(drawn.shape.text_lengths) == drawn.recipe.training.sequence_length == 512
    assert classes.shape.text_lengths == ()  # several texts of a class: rows are not drawn one by one
    assert drawn.estimate.tensors.expected < 0.6 * classes.estimate.tensors.expected


def test_selective_checkpointing_brings_compiled_layers() -> None:
    few = {"activation_checkpointing": "selective", "max_steps": 3}
    asked = recipe(training=TrainingChoice.model_validate(few))
    found = resolve(asked, arch=LLAMA_8B, hardware=RTX_4090, profile=PROFILE)
    assert found.recipe.training.compile is True
    assert "selective" in found.recipe.sources["training.compile"]
    refused = recipe(training=TrainingChoice.model_validate(few | {"compile": False}))
    with pytest.raises(RecipeError, match="selective needs compiled layers"):
        resolve(refused, arch=LLAMA_8B, hardware=RTX_4090, profile=PROFILE)


def test_frozen_weights_wait_on_the_host_where_nothing_else_fits() -> None:
    big = parse_hardware("a100")
    card = big.accelerators[0].model_copy(update={"memory_free": 10 * GIB})
    tight = big.model_copy(update={"accelerators": (card,)})

    def plan(machine: Hardware, **training: object) -> Resolved:
        asked = recipe(training=training)
        return resolve(asked, arch=LLAMA_8B, hardware=machine, profile=PROFILE)

    roomy = plan(big)
    assert roomy.recipe.training.offload_parameters is None
    found = plan(tight)
    training = found.recipe.training
    assert training.offload_parameters is True
    assert training.activation_checkpointing in ("full", "offload")
    assert training.cuda_graphs is not True
    # Launching would take longer than computing, but copies are not recorded.
    short = plan(tight, sequence_length=64, batch_size=1, compile=True)
    assert short.recipe.training.cuda_graphs is False
    assert "not recorded" in short.recipe.sources["training.cuda_graphs"]
    said = found.recipe.sources["training.offload_parameters"]
    assert "reads the frozen weights twice from the host" in said
    assert found.estimate.tensors.expected < 10 * GIB
    assert any("wait in the host's memory" in one for one in found.estimate.assumptions)
    slow, fast = found.estimate.seconds, roomy.estimate.seconds
    assert slow is not None
    assert fast is not None
    assert slow.expected > fast.expected
    judged, judged_fast = found.evaluation_seconds, roomy.evaluation_seconds
    assert judged is not None
    assert judged_fast is not None
    # Each token of an answer reads 13 GiB over the host's link.
    assert judged.expected > 20 * judged_fast.expected
    with pytest.raises(DoesNotFit):
        plan(tight, offload_parameters=False)
    poor = tight.model_copy(update={"memory_free": 12 * GIB})
    with pytest.raises(DoesNotFit, match="offload_parameters"):
        plan(poor, offload_parameters=True)
    with pytest.raises(DoesNotFit, match="even one row at a time"):
        plan(poor)
    with pytest.raises(Unsupported, match="offload_parameters"):
        plan(LAPTOP, offload_parameters=True)


def test_answers_of_a_four_bit_base_read_more_than_its_bytes() -> None:
    """Weights in four bits are widened for each token: read, written in 16 bits, and read again."""
    asked = EvaluationShape(batch_size=8, prompt_tokens=16, new_tokens=256, rows=8)

    def reading(method: Full | Lora | QLora) -> float:
        found = evaluation_seconds(LLAMA_8B, method, asked, RTX_4090, device="cuda", dtype="bfloat16")
        assert found is not None
        return found.expected

    wide, packed, eight = (reading(method) for method in (Lora(), QLora(), Lora(base="float8")))
    assert reading(Full()) == wide
    assert 1.8 * wide < packed < 2.4 * wide
    assert 0.5 * wide < eight < 0.75 * wide


def test_products_in_eight_bits_are_told_with_what_was_measured() -> None:
    narrow = recipe(method={"name": "full", "products": "float8"})
    found = resolve(narrow, arch=SMOL, hardware=RTX_4090, profile=PROFILE)
    assert any("pays on large models alone" in words for words in found.warnings)
