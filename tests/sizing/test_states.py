"""What optimisers keep, as the formula counts it, beside what they make."""

from __future__ import annotations

import pytest

from luthier.planning.estimate import estimate_training
from luthier.planning.hypothetical import parse_hardware
from luthier.schema.estimate import TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method, OptimizerName
from luthier.sizing import states
from luthier.sizing.activations import OURS
from luthier.sizing.parameters import count_parameters, lora_parameters, with_new_tokens
from luthier.sizing.reductions import column_sum_bytes
from luthier.sizing.resident import narrow_gradients
from luthier.sizing.states import checkpoint_bytes, moments, paged_bytes, trained_tensors, update_bytes
from luthier.sizing.training import training_memory

ARCH = Architecture(
    model_type="llama",
    layers=4,
    hidden_size=512,
    intermediate_size=1024,
    attention_heads=8,
    kv_heads=4,
    head_dim=64,
    vocab_size=8000,
    tied_embeddings=False,
)
BERT = ARCH.model_copy(
    update={
        "model_type": "bert", "layer_norm": True, "gated_mlp": False, "causal": False, "qkv_bias": True,
        "output_bias": True, "mlp_bias": True, "position_embeddings": 512, "token_types": 2, "pooler": True,
    }
)  # fmt: skip


@pytest.mark.parametrize("arch", [ARCH, BERT], ids=["decoder", "encoder"])
def test_every_trained_number_is_in_one_tensor(arch: Architecture) -> None:
    whole = sum(times * size for times, size in trained_tensors(arch, Full()))
    assert whole == pytest.approx(count_parameters(arch).backbone, abs=arch.hidden_size)
    adapters = sum(times * size for times, size in trained_tensors(arch, Lora(rank=8)))
    assert adapters == lora_parameters(arch, 8)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_new_tokens_are_trained_in_each_table(tied: bool) -> None:
    arch = ARCH.model_copy(update={"tied_embeddings": tied})
    grown = with_new_tokens(arch, [8000, 8001, 8002])
    tables = 1 if tied else 2
    rows = tables * 3 * arch.hidden_size
    assert grown.vocab_size == 8003
    assert with_new_tokens(arch, [7990]).vocab_size == 8000
    lora = Lora(rank=8)
    assert sum(times * size for times, size in trained_tensors(grown, lora)) == rows + lora_parameters(
        arch, 8
    )
    shape = TrainingShape(micro_batch_size=1, sequence_length=8)
    before, after = (training_memory(one, lora, shape, dtype="bfloat16") for one in (arch, grown))
    assert after.trainable - before.trainable == rows
    assert after.total - before.total == 2 * rows  # in the frozen tables, and beside them
    for part, size in (("adapters", 4), ("optimizer", 8), ("gradients", 4)):
        assert after.phases[-1].parts[part] - before.phases[-1].parts[part] == size * rows, part  # type: ignore[index]
    full = training_memory(grown, Full(), shape, dtype="bfloat16")
    assert full.trainable == count_parameters(grown).backbone


def _step(method: Method, optimizer: OptimizerName, dtype: str = "bfloat16") -> dict[str, int]:
    shape = TrainingShape(micro_batch_size=1, sequence_length=8, optimizer=optimizer)
    return dict(training_memory(ARCH, method, shape, dtype=dtype).phases[-1].parts)  # type: ignore[arg-type]


def test_bytes_of_each_optimiser_for_a_trained_weight() -> None:
    total = count_parameters(ARCH).total
    held = {name: _step(Full(), name) for name in ("adamw", "adamw-8bit", "paged-adamw-8bit", "adamw-bf16")}  # type: ignore[arg-type]
    assert held["adamw"]["optimizer"] == 12 * total
    # An fp32 master, and two moments of a byte with a scale for each 256 of them; norms stay in fp32.
    assert held["adamw-8bit"]["optimizer"] / total == pytest.approx(4 + 2 + 2 * 4 / 256, abs=0.01)
    assert held["paged-adamw-8bit"]["optimizer"] / total == pytest.approx(4 + 2 * 4 / 256, abs=0.02)
    assert held["adamw-bf16"]["optimizer"] == 4 * total
    assert held["adamw-bf16"]["gradients"] == 2 * total
    assert held["adamw"]["gradients"] == 2 * total, "of one micro-batch"
    assert all(held[name]["gradients"] == 4 * total for name in ("adamw-8bit", "paged-adamw-8bit"))
    assert paged_bytes(ARCH, Full()) / total == pytest.approx(2, abs=0.01)


def test_small_adapters_stay_in_fp32() -> None:
    trained = lora_parameters(ARCH, 4)
    # Rank 4 beside 512 columns are 2,048 numbers: too few for eight bits. 1,024 columns are just enough.
    inside = sum(t * s for t, s in trained_tensors(ARCH, Lora(rank=4)) if s >= 4096)
    assert 0 < inside < trained
    expected = 8 * (trained - inside) + inside * (2 + 8 / 256)
    assert moments(ARCH, Lora(rank=4), "adamw-8bit", wide=4) == pytest.approx(expected)
    assert _step(Lora(rank=4), "adamw-8bit")["optimizer"] == pytest.approx(expected)


def test_adapters_in_bf16_have_masters() -> None:
    wide, narrow = (_step(Lora(rank=8, adapter_dtype=kind), "adamw") for kind in ("float32", "bfloat16"))  # type: ignore[arg-type]
    trained = lora_parameters(ARCH, 8)
    assert (wide["adapters"], wide["gradients"], wide["optimizer"]) == (4 * trained, 4 * trained, 8 * trained)
    assert (narrow["adapters"], narrow["gradients"], narrow["optimizer"]) == (
        2 * trained, 2 * trained, 12 * trained,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_what_an_update_makes_is_what_the_formula_says(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from luthier.checks.trace.allocator import replay
    from luthier.checks.trace.events import Timeline
    from luthier.checks.trace.recorder import Recorder
    from luthier.training import rounding

    numbers = 1 << 20
    weight = torch.nn.Parameter(torch.empty(numbers, dtype=getattr(torch, kind), device="meta"))
    weight.grad = torch.empty_like(weight)
    optimizer = rounding.RoundedAdamW([weight], lr=1e-3, betas=(0.9, 0.999))
    optimizer.step()
    element = weight.element_size()
    timeline = Timeline()
    recorder = Recorder(timeline)
    recorder.add([weight, weight.grad, *optimizer.state[weight].values()], "x")
    with recorder:
        optimizer.step()
    made = replay(timeline.events).allocated / numbers - 4 * element
    assert made == pytest.approx(states.UPDATE_BYTES[element], abs=0.1)
    monkeypatch.setattr(rounding, "UPDATE_NUMBERS", numbers // 8)
    cut = Timeline()
    recorder = Recorder(cut)
    recorder.add([weight, weight.grad, *optimizer.state[weight].values()], "x")
    with recorder:
        optimizer.step()
    # One part, and what its names still hold of the one before.
    assert replay(cut.events).allocated / numbers - 4 * element < 0.2 * made
    largest = max(size for _, size in trained_tensors(ARCH, Full()))
    assert update_bytes(ARCH, Full(), "adamw-bf16", wide=element) == largest * states.UPDATE_BYTES[element]
    huge = ARCH.model_copy(update={"vocab_size": 200_000})
    assert update_bytes(huge, Full(), "adamw-bf16", wide=element, fused=True) == 0
    assert update_bytes(huge, Full(), "adamw-bf16", wide=element) == (
        states.UPDATE_NUMBERS * states.UPDATE_BYTES[element]
    )


def test_a_reference_and_chunks_take_time() -> None:
    machine = parse_hardware("a100")  # on a Hopper card so small a model waits for the host
    shape = TrainingShape(micro_batch_size=2, sequence_length=512, batch_size=8)

    def seconds(**changed: object) -> float:
        found = estimate_training(
            ARCH,
            Lora(),
            shape.model_copy(update=changed),
            machine,
            tokens=10**6,
            device="cuda",
            dtype="bfloat16",
        )
        assert found.seconds is not None
        return found.seconds.expected

    plain = seconds()
    pairs = seconds(log_probs=True)
    dpo = seconds(log_probs=True, extra_forwards=1.0)
    assert 1.0 < pairs / plain < 1.35
    # A frozen weight costs a forward pass and half of a backward pass: a third pass is half as much again.
    assert 1.4 < dpo / pairs < 1.55
    assert seconds(compared=64) > 1.3 * plain
    assert seconds(compared=64, batch_size=2) == plain


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-bf16", "adamw-bf16-kahan", "muon"])
def test_states_are_as_large_as_those_of_the_optimiser(optimizer: OptimizerName) -> None:
    """Counted on the states that the trainer's own optimiser makes for a model of that shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.schema.recipe import TrainingChoice
    from luthier.training.optimizer import Optimizer

    arch = ARCH.model_copy(
        update={"hidden_size": 64, "intermediate_size": 128, "head_dim": 8, "vocab_size": 300}
    )
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    made = Optimizer(model, TrainingChoice(optimizer=optimizer, learning_rate=1e-3))
    for master in made.masters.values():
        master.grad = torch.ones_like(master)
    made.step(1e-3)
    values = [one for state in made.adamw.state.values() for one in state.values()]
    held = sum(one.numel() * one.element_size() for one in values if torch.is_tensor(one) and one.ndim)
    wide = 2 if optimizer.startswith("adamw-bf16") else 4
    assert moments(arch, Full(), optimizer, wide=wide) == held
    saved = sum(one.numel() * one.element_size() for one in made.weights().values()) + held
    assert checkpoint_bytes(arch, Full(), optimizer, element=2) == saved


def test_an_average_and_updates_in_the_backward_pass() -> None:
    total = count_parameters(ARCH).total
    shape = TrainingShape(micro_batch_size=1, sequence_length=8)  # one micro-batch: gradients in 16 bits

    def parts(**changes: object) -> dict[str, int]:
        changed = shape.model_copy(update=changes)
        return dict(training_memory(ARCH, Full(), changed, dtype="bfloat16").phases[-1].parts)  # type: ignore[arg-type]

    plain, averaged, at_once = parts(), parts(ema=True), parts(update_in_backward=True)
    assert averaged["optimizer"] - plain["optimizer"] == 4 * total
    assert plain["gradients"] == 2 * total
    assert at_once["gradients"] == 2 * ARCH.vocab_size * ARCH.hidden_size, "the largest one alone"


def test_muons_products_are_in_the_time() -> None:
    """Five iterations of three products; counted for one square matrix by hand."""
    one = ARCH.model_copy(update={"layers": 1})
    matrices = {(512, 512): 2, (512, 256): 2, (512, 1024): 3}
    flops = sum(
        times * 5 * (2 * 2 * min(a, b) ** 2 * max(a, b) + 2 * min(a, b) ** 3)
        for (a, b), times in matrices.items()
    )
    assert states.update_flops(one, "muon") == flops
    assert states.update_flops(one, "adamw") == 0


def test_a_sum_over_rows_leaves_its_parts_by_blocks() -> None:
    """Reduce.cuh's launch for 10,240 x 1,536 on 132 processors: 160 blocks a group of columns."""
    assert column_sum_bytes(10240, 1536) == 4 * 1536 * 160 * 128
    assert column_sum_bytes(512, 1536) == 0
    assert max(column_sum_bytes(2**n, 4096) for n in range(8, 17)) < 140e6


def test_texts_that_are_compared_leave_their_gradients_as_they_are_in_any_number_of_pieces() -> None:
    """BERT-base, 128 texts in four pieces: 0.22 GB of gradients on an H200, not the 0.44 of micro-batches."""
    shape = TrainingShape(micro_batch_size=32, sequence_length=128, padded=True, compared=1024)
    assert narrow_gradients(OURS, shape)
    assert narrow_gradients(OURS, shape.model_copy(update={"batch_size": 64}))
    for more in ({"compared": 0}, {"added_up": True}, {"shard": 2}):
        assert not narrow_gradients(OURS, shape.model_copy(update={"batch_size": 64, **more}))
