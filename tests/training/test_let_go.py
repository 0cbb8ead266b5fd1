"""A trained model is gone from memory as soon as nobody asks for it any more."""

import gc
import weakref

import pytest
import torch

from luthier.errors import Interrupted
from luthier.models.lora import add_lora
from luthier.schema.recipe import Lora, TrainingChoice
from luthier.tasks.causal import causal_objective
from luthier.training.layers import prepared
from luthier.training.loop import fit

CHOICE = TrainingChoice(
    max_steps=3, learning_rate=3e-3, batch_size=4, micro_batch_size=2, sequence_length=64, evaluate_every=2,
    checkpoint_every=2, activation_checkpointing="none", max_skipped_steps=0,
)  # fmt: skip


def parts_of(model):
    """Weak references to a model, one of its layers, and every weight."""
    layer = model.get_submodule("model.layers.0")
    return [weakref.ref(part) for part in (model, layer, *model.parameters())]


def alive(parts):
    gc.collect()
    return sum(part() is not None for part in parts)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"activation_checkpointing": "full"},
        {"activation_checkpointing": "offload"},
        {"update_in_backward": True, "max_grad_norm": 0.0},
        {"ema": 0.9},
        {"neftune_alpha": 5.0},
    ],
    ids=lambda changes: ",".join(changes) or "plain",
)
@pytest.mark.parametrize("way", ["lora", "bf16"])
@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_holds_a_trained_model(tiny, make_source, make_documents, *, tmp_path, changes, way, stopped):
    def train():
        model = tiny()
        if way == "lora":
            add_lora(model, Lora(rank=4), seed=1)
        else:
            model.to(torch.bfloat16)
        parts = parts_of(model)
        source = make_source(make_documents(14), micro_batch_size=4)
        choice = CHOICE.model_copy(update=changes)
        try:
            fit(
                model, causal_objective(model), source, source.batches(0, 0), choice=choice, seed=5,
                directory=tmp_path, recipe_digest="r", device=torch.device("cpu"),
                on_metrics=lambda event: None, control=lambda: "stop" if stopped else None,
            )  # fmt: skip
        except Interrupted:
            assert stopped
        assert alive(parts) == len(parts)
        return parts

    assert alive(train()) == 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own tracing
def test_compiled_layers_do_not_hold_their_model(tiny, make_source, make_documents):
    def train():
        model = tiny()
        objective = causal_objective(model, compiled=True, longest=64)
        parts = parts_of(model)
        source = make_source(make_documents(8))
        with prepared(model, compiled=True, backend="aot_eager") as clock:
            for step in range(2):
                for batch in source.batches(0, step):
                    objective(model, batch).total.backward()
        assert clock.graphs
        return parts

    assert alive(train()) == 0
