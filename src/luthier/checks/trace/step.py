"""One step of our own trainer on tensors without data: its adapters, its loss, its optimiser's states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.checks.trace.events import Timeline
from luthier.checks.trace.fused import own_loss
from luthier.checks.trace.keeping import keep_layers
from luthier.checks.trace.kernels import FLASH, HIDDEN, register
from luthier.checks.trace.marks import layers_of, mark_layers
from luthier.checks.trace.packed import pack_without_data
from luthier.checks.trace.padded import PaddedBatch, padded_model
from luthier.checks.trace.plain import CUBLAS, StatesOnly
from luthier.checks.trace.recorder import Recorder
from luthier.errors import Unsupported
from luthier.models.attention import supports_documents
from luthier.models.experts import router_paths
from luthier.models.heads import Head, head_of
from luthier.models.lora import add_lora
from luthier.schema.base import Record
from luthier.schema.estimate import TrainingShape
from luthier.schema.recipe import Full, Lora, Method, QLora, TrainingChoice
from luthier.sizing.activations import OURS
from luthier.sizing.resident import narrow_gradients
from luthier.sizing.states import BLOCK, LEAST_IN_EIGHT_BITS, LEAST_PAGED
from luthier.training.losses import linear_cross_entropy
from luthier.training.optimizer import Optimizer

IN_EIGHT_BITS = ("adamw-8bit", "paged-adamw-8bit")
_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class StepRequest(Record):
    """A step to trace."""

    config: dict[str, Any]
    """The model's config.json."""
    method: Method
    shape: TrainingShape
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    hopper: bool = False
    """Whether cuBLAS takes its larger workspace."""
    layers: int | None = None
    """Trace only this many layers."""


def trace_step(request: StepRequest) -> Timeline:
    """Events of loading and of two optimiser steps, marked by phase. Errors: Unsupported."""
    if request.shape.activation_checkpointing == "selective" and not request.shape.compiled:
        raise Unsupported(
            "selective checkpointing needs compiled layers", hint="set training.compile: true, or use full"
        )
    if told := _not_traced(request.shape):
        raise Unsupported(f"{told} is not traced", hint="leave out --exact: the formula counts it")
    if request.shape.log_probs:
        raise Unsupported(
            "the loss over pairs of answers is not traced", hint="leave out --exact: the formula counts it"
        )
    if isinstance(request.method, Full) and request.method.products is not None:
        raise Unsupported(
            "products in eight bits are not traced: what is kept of their casts is the compiler's choice",
            hint="leave out --exact: the formula counts them as in 16 bits, with the casts beside",
        )
    if request.shape.padded and packed_kind(request.method) is not None:
        raise Unsupported(
            "padded rows are traced with a base in its own type only",
            hint="leave out --exact: the formula counts them",
        )
    register()
    model, head = _model(request)
    timeline = Timeline()
    recorder = Recorder(timeline, HIDDEN)
    full = isinstance(request.method, Full)
    optimizer = Optimizer(model, _choice(request.shape))
    for parameter in model.parameters():
        recorder.add(parameter.data, "adapters" if parameter.requires_grad and not full else "weights")
    for buffer in model.buffers():
        recorder.add(buffer, "buffers")
    masters = [
        master for name, master in optimizer.masters.items() if master is not optimizer.model_weights[name]
    ]
    for master in masters:
        recorder.add(master.data, "optimizer")
    mark_layers(model, recorder)
    keep_layers(layers_of(model), request.shape, recorder)
    for name, weight in optimizer.model_weights.items():
        named = _name_gradient(recorder, optimizer, optimizer.masters[name])
        weight.register_post_accumulate_grad_hook(named)  # type: ignore[no-untyped-call]
    update = _States(list(optimizer.masters.values()), request.shape.optimizer)
    optimizer.gradients.single = narrow_gradients(OURS, request.shape)
    for _ in range(2):
        timeline.allocate(CUBLAS[request.hopper], "workspace")
    batch = _Batch(request.shape) if head is not None else PaddedBatch(request.shape)
    recorder.add(batch.everything, "buffers")
    for number in (1, 2):
        with recorder:
            _optimiser_step(model, head, optimizer, update, batch, recorder, request, number)
    return timeline


def _not_traced(shape: TrainingShape) -> str | None:
    """What of a step stands in the closed forms alone."""
    if shape.optimizer in ("muon", "adamw-bf16-kahan"):
        return f"training.optimizer: {shape.optimizer}"
    if shape.update_in_backward:
        return "training.update_in_backward"
    if shape.offload_parameters:
        return "training.offload_parameters"
    return "training.ema" if shape.ema else None


class _Batch:
    """A micro-batch of the longest rows, flattened."""

    def __init__(self, shape: TrainingShape) -> None:
        tokens = shape.tokens
        documents = shape.micro_batch_size * shape.documents
        trained = max(1, round(tokens * shape.trained_share) - documents)
        self.ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
        self.positions = torch.zeros((1, tokens), dtype=torch.long, device="meta")
        self.sources = torch.zeros(trained, dtype=torch.long, device="meta")
        self.targets = torch.zeros(trained, dtype=torch.long, device="meta")
        self.lengths = (tokens // documents,) * documents
        # The rows as they were before the flattening: ids, labels, positions and documents.
        self.rows = [torch.zeros((1, tokens), dtype=torch.long, device="meta") for _ in range(4)]

    @property
    def everything(self) -> list[Tensor]:
        return [self.ids, self.positions, self.sources, self.targets, *self.rows]


def _optimiser_step(  # noqa: PLR0917 (private, called once)
    model: Any,
    head: Head | None,
    optimizer: Optimizer,
    update: StatesOnly,
    batch: _Batch | PaddedBatch,
    recorder: Recorder,
    request: StepRequest,
    number: int,
) -> None:
    timeline = recorder.timeline
    for _ in range(_passes(request.shape)):
        recorder.tag = "activations"
        timeline.mark(f"forward{number}")
        if isinstance(batch, PaddedBatch):
            loss = batch.loss(model)
        else:
            assert head is not None
            loss = _loss(model, head, batch, recorder, request)
        recorder.tag = "activations"
        timeline.mark(f"backward{number}")
        (loss / 1.0).backward()  # type: ignore[no-untyped-call]
        del loss
    timeline.mark(f"optimizer{number}")
    recorder.tag = "optimizer"
    if optimizer.gradients.single:
        optimizer.gradients.norm(optimizer.masters.values())
    else:
        optimizer.clip()
    update.step()
    with torch.no_grad():
        optimizer.round_back()
    optimizer.forget()


def _passes(shape: TrainingShape) -> int:
    """Micro-batches that are followed: a second one finds gradients there. What is compared is one."""
    return 1 if shape.compared else min(2, shape.accumulation)


def _loss(model: Any, head: Head, batch: _Batch, recorder: Recorder, request: StepRequest) -> Tensor:
    """Our own loss over the trained tokens of documents laid end to end."""
    hidden = model.base_model(
        input_ids=batch.ids,
        position_ids=batch.positions,
        document_lengths=batch.lengths,
        use_cache=False,
    ).last_hidden_state[0, batch.sources]
    recorder.tag = "logits"
    if request.dtype == "bfloat16":
        return own_loss(hidden, head.weight)
    return linear_cross_entropy(
        hidden, head.weight, batch.targets, multiplier=head.multiplier, softcap=head.softcap
    )


def _name_gradient(recorder: Recorder, optimizer: Optimizer, master: Tensor) -> Any:
    """A hook that names the gradient of a master."""

    def hook(_weight: Tensor) -> None:
        if (grad := optimizer.gradients.of(master)) is not None:
            recorder.rename(grad, "gradients")

    return hook


def _choice(shape: TrainingShape) -> TrainingChoice:
    """The settings of an optimiser that can be made without a GPU and holds the same masters."""
    name = "adamw" if shape.optimizer in IN_EIGHT_BITS else shape.optimizer
    return TrainingChoice(learning_rate=1e-4, optimizer=name)


class _States(StatesOnly):
    """Both moments of each weight, as its optimiser keeps them."""

    def __init__(self, parameters: Iterable[Tensor], name: str) -> None:
        super().__init__(parameters)
        self.name = name

    def step(self) -> None:
        if self.states or self.name not in IN_EIGHT_BITS:
            super().step()
            return
        for weight in self.parameters:
            if weight.numel() < LEAST_IN_EIGHT_BITS:
                self.states += [torch.zeros_like(weight) for _ in range(2)]
                continue
            blocks = -(-weight.numel() // BLOCK)
            self.states += [torch.zeros(blocks, device=weight.device) for _ in range(2)]
            if self.name == "adamw-8bit" or weight.numel() < LEAST_PAGED:
                self.states += [torch.zeros_like(weight, dtype=torch.uint8) for _ in range(2)]


def _model(request: StepRequest) -> tuple[Any, Head | None]:
    """The model on meta, adapted and in training, with its head over the vocabulary where it writes text."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    config = _config(CONFIG_MAPPING, request)
    if request.shape.padded:
        return padded_model(config, request.method, _TYPES[request.dtype], request.shape), None
    config._attn_implementation = FLASH
    config.use_cache = False
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=_TYPES[request.dtype])
    head = head_of(model)
    if head is None or not supports_documents(model):
        raise Unsupported(
            f"{config.model_type} goes through padded rows or whole logits, which the trace does not follow"
        )
    kind = packed_kind(request.method)
    if kind is not None:
        pack_without_data(model, kind, head=head.weight, double=_doubles(request.method))
    if not isinstance(request.method, Full):
        add_lora(model, request.method, whole=router_paths(model) if request.method.router else ())
    return model.train(), head


def packed_kind(method: Method) -> Literal["nf4", "float8"] | None:
    """How the base's linear layers are held, where that is not as they are computed with."""
    if isinstance(method, QLora):
        return "nf4"
    return method.base if isinstance(method, Lora) else None


def _doubles(method: Method) -> bool:
    return isinstance(method, QLora) and method.double_quantisation


def _config(known: Any, request: StepRequest) -> Any:
    values = dict(request.config)
    kind = values.get("model_type")
    if kind not in known:
        raise Unsupported(f"transformers does not know the model type {kind}")
    if request.layers is not None:
        values["num_hidden_layers"] = request.layers
        if values.get("layer_types") is not None:
            values["layer_types"] = values["layer_types"][: request.layers]
    return known[kind](**values)
