"""A plain transformers and PEFT training step, for rows that others measured. See ``step`` for our own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from luthier.checks.trace.events import Timeline
from luthier.checks.trace.kernels import EAGER, EFFICIENT, FLASH, HIDDEN, register
from luthier.checks.trace.marks import mark_layers
from luthier.checks.trace.recorder import Recorder

CUBLAS = {True: 32 << 20, False: 8_519_680}
"""Workspace of a cuBLAS handle on Hopper and before it; forward and autograd thread have one each."""
_ATTENTION = {"eager": EAGER, "efficient": EFFICIENT, "flash": FLASH}
_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_BLOCK = 64


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
    for number in (1, 2):
        with recorder:
            _one(model, optimizer, ids, recorder, number, keeps=step.keeps_logits)
    return timeline


def _one(model: Any, optimizer: Any, ids: Tensor, recorder: Recorder, number: int, *, keeps: bool) -> None:
    timeline = recorder.timeline
    recorder.tag = "gradients"
    optimizer.zero_grad(set_to_none=True)
    recorder.tag = "activations"
    timeline.mark(f"forward{number}")
    out = model(input_ids=ids, labels=ids)
    loss = out.loss
    if not keeps:
        del out
    timeline.mark(f"backward{number}")
    loss.backward()
    del loss
    timeline.mark(f"optimizer{number}")
    recorder.tag = "optimizer"
    optimizer.step()


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
    if step.rank is not None:
        lora = LoraConfig(
            r=step.rank, lora_alpha=2 * step.rank, target_modules=list(step.targets), task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora, autocast_adapter_dtype=step.adapter_dtype == "float32")
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if step.rank is not None:
            model.enable_input_require_grads()
    return model.train()


def _quantise(model: Any, step: PlainStep) -> None:
    """Exchange the linear layers for bitsandbytes' four-bit ones, without data."""
    import bitsandbytes as bnb

    dtype = _TYPES[step.dtype]
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(module, name, _four_bit(bnb, child, dtype, step.double_quantisation))
    model.is_loaded_in_4bit = model.is_quantized = True
    for parameter in model.parameters():
        parameter.requires_grad = False
        if step.prepared and type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(torch.float32)


def _four_bit(bnb: Any, linear: nn.Linear, dtype: torch.dtype, double: bool) -> Any:
    from bitsandbytes.functional import QuantState as State

    make: Any = State

    settings = {"compress_statistics": double, "quant_type": "nf4"}
    with torch.device("meta"):
        layer = bnb.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=dtype,
            **settings,
        )
        numbers = linear.weight.numel()
        blocks = -(-numbers // _BLOCK)
        shared = {"code": torch.empty(16), "blocksize": _BLOCK, "quant_type": "nf4", "dtype": dtype}
        if double:
            inner = make(
                absmax=torch.empty(-(-blocks // 256)),
                code=torch.empty(256),
                blocksize=256,
                dtype=torch.float32,
            )
            state = make(
                absmax=torch.empty(blocks, dtype=torch.uint8),
                shape=linear.weight.shape,
                offset=torch.empty(()),
                state2=inner,
                **shared,
            )
        else:
            state = make(absmax=torch.empty(blocks), shape=linear.weight.shape, **shared)
        layer.weight = bnb.nn.Params4bit(
            torch.empty(((numbers + 1) // 2, 1), dtype=torch.uint8),
            requires_grad=False,
            quant_state=state,
            blocksize=_BLOCK,
            bnb_quantized=True,
            **settings,
        )
        layer.quant_state = state
        if linear.bias is not None:
            layer.bias = nn.Parameter(torch.empty(linear.bias.shape, dtype=dtype), requires_grad=False)
    return layer


def _load(model: Any, step: PlainStep, timeline: Timeline, recorder: Recorder) -> None:
    """Weights, adapters and buffers in the order in which such a script brings them to the GPU."""
    narrow: list[tuple[int, Tensor]] = []
    for parameter in model.parameters():
        tag = "adapters" if parameter.requires_grad and step.rank is not None else "weights"
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            numbers = 1
            for side in state.shape:
                numbers *= side
            shard = timeline.allocate(2 * numbers, "load")
            recorder.add((parameter.data, state.absmax, state.code), tag)
            if state.state2 is not None:
                recorder.add((state.offset, state.state2.absmax, state.state2.code), tag)
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
