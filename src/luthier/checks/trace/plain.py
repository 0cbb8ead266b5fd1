"""A plain transformers and PEFT training step, for rows that others measured. See ``step`` for our own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.checks.trace.autocast import Autocast, cast_layers
from luthier.checks.trace.compiled import compile_layers
from luthier.checks.trace.events import Timeline
from luthier.checks.trace.fourbit import FourBit
from luthier.checks.trace.fused import fuse_layers, linear_loss, rotating_in_place, tiled_loss
from luthier.checks.trace.kernels import EAGER, EFFICIENT, FLASH, HIDDEN, register
from luthier.checks.trace.marks import layers_of, mark_layers
from luthier.checks.trace.recorder import Recorder

CUBLAS = {True: 32 << 20, False: 8_519_680}
"""Workspace of a cuBLAS handle on Hopper and before it; forward and autograd thread have one each."""
_ATTENTION = {"eager": EAGER, "efficient": EFFICIENT, "flash": FLASH}
_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class PlainStep:
    """One step as such a script runs it."""

    config: dict[str, Any]
    """A Hugging Face config.json."""
    micro_batch: int
    sequence: int
    rank: int | None
    """None trains all weights."""
    targets: tuple[str, ...] = ()
    dtype: Literal["float16", "bfloat16", "float32"] = "bfloat16"
    adapter_dtype: Literal["bfloat16", "float32"] = "float32"
    adapters: Literal["peft", "bare"] = "peft"
    """bare: two plain products beside the frozen one, without PEFT's casts and wrappers."""
    quantisation: Literal["nf4"] | None = None
    double_quantisation: bool = False
    prepared: bool = True
    """Whether prepare_model_for_kbit_training made the unquantised weights fp32."""
    attention: Literal["eager", "efficient", "flash"] = "flash"
    checkpointing: bool = True
    foreach: bool = False
    fused: bool = False
    """Whether the optimiser's step needs no temporary: its states are made and nothing else."""
    hopper: bool = False
    keeps_logits: bool = True
    """Whether the caller holds the model's output through the backward pass."""
    loss: Literal["logits", "liger", "tiles"] = "logits"
    """transformers' own over all logits, Liger's fused one, or TRL's in tiles."""
    liger: bool = False
    """Whether norms, rotary embedding and gated MLP are Liger's."""
    autocast: bool = False
    """Whether the forward pass runs under autocast to bf16."""
    compiled: bool = False
    """Whether each layer is compiled."""
    clips: bool = False
    """Whether the gradients' norm is clipped."""
    layers: int | None = None
    """Trace only this many layers."""


def trace_plain(step: PlainStep) -> Timeline:
    """Events of loading, and of two steps (the second has the optimiser's states) marked by phase."""
    register()
    model = _model(step)
    timeline = Timeline()
    recorder = Recorder(timeline, HIDDEN)
    _load(model, step, timeline, recorder)
    mark_layers(model, recorder)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = (
        StatesOnly(parameters) if step.fused else torch.optim.AdamW(parameters, foreach=step.foreach)
    )
    ids = torch.zeros((step.micro_batch, step.sequence), dtype=torch.long, device="meta")
    recorder.add(ids, "buffers")
    for _ in range(2):
        timeline.allocate(CUBLAS[step.hopper], "workspace")
    autocast = Autocast(torch.bfloat16) if step.autocast else None
    if autocast is not None:
        cast_layers(layers_of(model), autocast)
    if step.compiled:
        compile_layers(layers_of(model), recorder)
    with rotating_in_place(model) if step.liger else nullcontext():
        for number in (1, 2):
            with recorder:
                _one(model, optimizer, ids, recorder, step, number, autocast)
    return timeline


def _one(  # noqa: PLR0917 (private, called once)
    model: Any,
    optimizer: Any,
    ids: Tensor,
    recorder: Recorder,
    step: PlainStep,
    number: int,
    autocast: Autocast | None,
) -> None:
    timeline = recorder.timeline
    recorder.tag = "gradients"
    optimizer.zero_grad(set_to_none=True)
    recorder.tag = "activations"
    timeline.mark(f"forward{number}")
    with autocast.region() if autocast is not None else nullcontext():
        out, loss = _forward(model, ids, step, recorder)
    if not step.keeps_logits:
        del out
    timeline.mark(f"backward{number}")
    loss.backward()  # type: ignore[no-untyped-call]
    del loss
    timeline.mark(f"optimizer{number}")
    recorder.tag = "optimizer"
    if step.clips:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        del grads, norm
    optimizer.step()


def _forward(model: Any, ids: Tensor, step: PlainStep, recorder: Recorder) -> tuple[Any, Tensor]:
    """What the model returns, and the loss."""
    if step.loss == "logits":
        out = model(input_ids=ids, labels=ids)
        return out, out.loss
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.model(input_ids=ids).last_hidden_state
    recorder.tag = "logits"
    weight = base.lm_head.weight
    flat = hidden.flatten(0, 1)
    del hidden
    fused = step.loss == "liger"
    loss = linear_loss(flat, weight) if fused else tiled_loss(flat, weight, torch.bfloat16)
    recorder.tag = "activations"
    return None, loss


class StatesOnly:
    """An optimiser whose kernel updates in place: only its states appear."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.states: list[Tensor] = []

    def zero_grad(self, *, set_to_none: bool) -> None:
        assert set_to_none
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        if not self.states:
            self.states = [torch.zeros_like(p) for p in self.parameters for _ in range(2)]


def _model(step: PlainStep) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    values = {**step.config, "max_position_embeddings": 131072}
    if step.layers is not None:
        values["num_hidden_layers"] = step.layers
    config = CONFIG_MAPPING[values["model_type"]](**values)
    config._attn_implementation = _ATTENTION[step.attention]
    config.use_cache = False
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=_TYPES[step.dtype])
    if step.quantisation is not None:
        _quantise(model, step)
    if step.adapters == "bare":
        _add_bare_adapters(model, step)
    elif step.rank is not None:
        lora = LoraConfig(
            r=step.rank, lora_alpha=2 * step.rank, target_modules=list(step.targets), task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora, autocast_adapter_dtype=step.adapter_dtype == "float32")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(_TYPES[step.adapter_dtype])
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if step.rank is not None and (step.checkpointing or step.adapters == "bare"):
        model.enable_input_require_grads()
    if step.liger:
        fuse_layers(model)
    return model.train()


class _BareAdapter(nn.Module):
    """A frozen layer with a low-rank update beside it, as a short script writes it."""

    def __init__(self, base: Any, rank: int) -> None:
        super().__init__()
        self.base = base
        settings: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
        self.low = nn.Parameter(torch.empty(rank, base.in_features, **settings))
        self.high = nn.Parameter(torch.empty(base.out_features, rank, **settings))

    def forward(self, states: Tensor) -> Tensor:
        update = nn.functional.linear(nn.functional.linear(states, self.low), self.high) * 2.0
        out: Tensor = self.base(states) + update
        return out


def _add_bare_adapters(model: Any, step: PlainStep) -> None:
    if step.rank is None:
        return
    for parameter in model.parameters():
        parameter.requires_grad = False
    for layer in layers_of(model):
        for module in list(layer.modules()):
            for name, child in list(module.named_children()):
                if name in step.targets:
                    setattr(module, name, _BareAdapter(child, step.rank))


def _quantise(model: Any, step: PlainStep) -> None:
    """Exchange the linear layers for four-bit ones, without data."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                layer = FourBit(
                    child,
                    _TYPES[step.dtype],
                    double=step.double_quantisation,
                    cloned=step.adapters == "peft" and name in step.targets,
                )
                setattr(module, name, layer)
    for parameter in model.parameters():
        parameter.requires_grad = False
        if step.prepared and parameter.dtype != torch.uint8:
            parameter.data = parameter.data.to(torch.float32)


def _load(model: Any, step: PlainStep, timeline: Timeline, recorder: Recorder) -> None:
    """Weights, adapters and buffers in the order in which such a script brings them to the GPU."""
    narrow: list[tuple[int, Tensor]] = []
    packed = {id(layer.weight): layer for layer in model.modules() if isinstance(layer, FourBit)}
    for parameter in model.parameters():
        tag = "adapters" if parameter.requires_grad and step.rank is not None else "weights"
        if (layer := packed.get(id(parameter))) is not None:
            shard = timeline.allocate(2 * layer.in_features * layer.out_features, "load")
            recorder.add(tuple(layer.parts()), tag)
            timeline.free(shard)
        elif step.quantisation is not None and tag == "weights" and step.prepared:
            narrow.append((timeline.allocate(2 * parameter.numel(), "load"), parameter))
        else:
            recorder.add(parameter.data, tag)
    for block, parameter in narrow:
        recorder.add(parameter.data, "weights")
        timeline.free(block)
    for buffer in model.buffers():
        recorder.add(buffer, "buffers")
