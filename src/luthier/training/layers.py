"""How each layer of a model runs in training: compiled or not, and what it keeps for its backward pass.

``none`` keeps what the backward pass reads. ``selective`` keeps the results of matrix products and of
attention and computes the rest again, which costs no matrix product. ``full`` keeps a layer's input
alone and runs the layer again. ``offload`` is ``full`` with the inputs in the host's memory.

A layer whose frozen weights wait in the host's memory has them on the device while it runs, forwards and
backwards (``streamed``, see `Held`). What it keeps for its backward pass would hold them there, so that only
``full`` and ``offload`` go with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from luthier.errors import RecipeError, Unsupported
from luthier.schema.recipe import TrainingChoice
from luthier.training.guard import host_place

Keeping = Literal["none", "selective", "full", "offload"]
Say = Callable[[str], None]

# Results that are kept by ``selective``: every matrix product and every kind of attention.
KEPT = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_scaled_mm",
    "aten::_grouped_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_flash_attention_forward",
    "torch_attn::_varlen_attn",
    "luthier::linear",
    "luthier::varlen_attention",
)
_GRAPHS = 64
"""Graphs of one layer at most: kinds of layers x modes."""


class Held(Protocol):
    """Where a layer's frozen weights are: on the device within the blocks (`models.streamed`)."""

    def forward(self, *, again: bool = False) -> AbstractContextManager[None]: ...
    def backward(self) -> AbstractContextManager[None]: ...


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The model's repeated layers in order, as transformers marks them; none where it marks none."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[nn.Module] = []
    paths: list[str] = []
    for path, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and not any(
            path.startswith(outer + ".") for outer in paths
        ):
            found.append(module)
            paths.append(path)
    return found


def train_all_but(model: Any, frozen_layers: int) -> None:
    """Let all weights be trained but those of the first layers, and of the embeddings below these."""
    model.requires_grad_(True)
    if not frozen_layers:
        return
    layers = layers_of(model)
    if frozen_layers >= len(layers):
        raise RecipeError(
            f"training.frozen_layers: of {len(layers)} layers {frozen_layers} frozen leave nothing to train",
            hint=f"freeze at most {max(0, len(layers) - 1)}",
        )
    model.get_input_embeddings().requires_grad_(False)
    for layer in layers[:frozen_layers]:
        layer.requires_grad_(False)


@dataclass
class CompileClock:
    """Seconds that went into making kernels, how many graphs there are, and whether the compiler gave up."""

    say: Say | None = None
    seconds: float = 0.0
    graphs: int = 0
    failed: bool = False

    def give_up(self, error: Exception, keeping: Keeping) -> None:
        """Compile nothing from now on, and say so."""
        self.failed = True
        if self.say is not None:
            words = " ".join(str(getattr(error, "inner_exception", error)).split())[:200]
            what = f"torch's compiler failed on these layers ({words}): they run as they are, and"
            self.say(f"{what} {_cost_of_plain(keeping)}")


@contextmanager
def prepared(
    model: nn.Module,
    *,
    keeping: Keeping = "none",
    recomputed: int | None = None,
    compiled: bool = False,
    say: Say | None = None,
    backend: str = "inductor",
) -> Iterator[CompileClock]:
    """Within the block the model's layers run as asked; afterwards as before.

    keeping: what the backward pass finds kept (see above). recomputed: how many layers, from the first,
    that holds for; all when None, and the others keep everything. compiled: one graph for all layers of
    a kind, whatever the number of tokens; only where gradients are asked for, so that an evaluation
    makes no graphs of its own. backend: torch.compile's. A model that marks no layers runs as it is,
    which ``say`` is told. Raises Unsupported where weights wait on the host and a layer keeps anything.
    """
    layers = layers_of(model)
    clock = CompileClock(say)
    if not layers and (compiled or keeping != "none") and say is not None:
        say(f"{type(model).__name__} marks no layers: nothing is compiled and nothing recomputed")
    before = [(layer._compiled_call_impl, layer.__dict__.get("forward")) for layer in layers]
    many = len(layers) if recomputed is None else min(recomputed, len(layers))
    with _graphs(compiled):
        for index, layer in enumerate(layers):
            kept: Keeping = keeping if index < many else "none"
            held: Held | None = layer.__dict__.get("streamed")
            if held is not None and kept not in ("full", "offload"):
                raise Unsupported(
                    "training.offload_parameters: what a layer keeps for its backward pass would hold its "
                    "weights on the device",
                    hint="set training.activation_checkpointing: full (or offload), for all layers",
                )
            if not compiled and kept == "none":
                continue
            if hasattr(layer, "set_modules_to_forward_prefetch"):
                # FSDP gathers the layer's weights in hooks, which are neither compiled nor run again.
                layer.forward = _Call(layer.forward, kept, backend if compiled else None, clock)
            else:
                # The slot that nn.Module.compile fills: it is called in place of the layer's own forward,
                # whichever way a version of transformers puts its own recomputation around that.
                run = layer._call_impl
                layer._compiled_call_impl = _Call(run, kept, backend if compiled else None, clock, held)
        try:
            yield clock
        finally:
            for layer, (was, forward) in zip(layers, before, strict=True):
                layer._compiled_call_impl = was
                layer.__dict__.pop("forward", None)
                if forward is not None:
                    layer.forward = forward


def why_not_compiled(device: torch.device) -> str | None:
    """What is missing to compile layers there, with its command; None where nothing is."""
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "triton is not there (pip install triton)"
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "there is no C++ compiler (apt install g++)"
    return None


def layers_as(choice: TrainingChoice, model: nn.Module, say: Say) -> AbstractContextManager[CompileClock]:
    """`prepared` as a recipe asks for it. Raises Unsupported where selective is asked of plain layers.

    Layers that cannot be compiled here run as they are, which is said with what it costs.
    """
    keeping, compiled = choice.activation_checkpointing or "none", bool(choice.compile)
    if compiled and (missing := why_not_compiled(next(model.parameters()).device)) is not None:
        say(f"layers are not compiled, for {missing}: {_cost_of_plain(keeping)}")
        keeping, compiled = "full" if keeping == "selective" else keeping, False
        return prepared(model, keeping=keeping, recomputed=choice.recomputed_layers, say=say)
    if keeping == "selective" and not compiled:
        raise Unsupported(
            "training.activation_checkpointing: selective needs compiled layers",
            hint="set training.compile: true, or training.activation_checkpointing: full",
        )
    return prepared(model, keeping=keeping, recomputed=choice.recomputed_layers, compiled=compiled, say=say)


def _cost_of_plain(keeping: Keeping) -> str:
    """What a step costs whose layers are not compiled, where they were to keep that."""
    again = ", with whole layers computed again (about a third more)" if keeping == "selective" else ""
    return f"a step takes up to 1.5 times as long{again}"


@contextmanager
def _graphs(compiled: bool) -> Iterator[None]:
    """Room for a graph for each kind of layer and mode."""
    if not compiled:
        yield
        return
    from torch._dynamo import config  # takes a second to import, and plain layers need none of it

    with config.patch(recompile_limit=_GRAPHS, accumulated_recompile_limit=8 * _GRAPHS):
        yield


class _Call:
    """What runs in a layer's place."""

    def __init__(
        self,
        plain: Callable[..., Any],
        keeping: Keeping,
        backend: str | None,
        clock: CompileClock,
        held: Held | None = None,
    ) -> None:
        self.plain, self.keeping, self.clock, self.held = plain, keeping, clock, held
        run = uncompiled = plain
        if keeping in ("selective", "full") and held is None:
            run = partial(_recomputed, plain, keeping == "selective")
            uncompiled = partial(_recomputed, plain, False)
        if backend is not None:
            run = torch.compile(run, backend=backend)
        if keeping == "offload" or held is not None:
            run = partial(_offloaded, run, held, keeping == "offload")
            uncompiled = partial(_offloaded, plain, held, keeping == "offload")
        self.run, self.uncompiled, self.compiled = run, uncompiled, backend is not None

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            with nullcontext() if self.held is None else self.held.forward(again=True):
                return self.plain(hidden, *args, **kwargs)
        if not self.compiled or self.clock.failed:
            return self.uncompiled(hidden, *args, **kwargs)
        if not hidden.requires_grad:
            # Above frozen embeddings; one graph for all layers is worth this layer's gradient.
            hidden = hidden.detach().requires_grad_(True)
        _mark((hidden, args, kwargs), hidden.shape)
        began, graphs = time.perf_counter(), _graph_count()
        try:
            out = self.run(hidden, *args, **kwargs)
        except (
            torch._dynamo.exc.BackendCompilerFailed,
            torch._dynamo.exc.TorchRuntimeError,  # an operation that cannot be traced, or does fail
        ) as error:  # before anything of the layer has run
            self.clock.give_up(error, self.keeping)
            return self.uncompiled(hidden, *args, **kwargs)
        if made := _graph_count() - graphs:
            self.clock.seconds += time.perf_counter() - began
            self.clock.graphs += made
        return out


def _mark(values: Any, shape: torch.Size) -> None:
    """Tell the compiler that the numbers of rows, tokens and documents vary, so that one graph serves all.

    Not by ``dynamic=True``: that makes variables of the layers' own constants too.
    """
    from torch._dynamo import maybe_mark_dynamic

    mark: Any = maybe_mark_dynamic
    if isinstance(values, Tensor):
        for place, size in enumerate(values.shape):
            if size > 1 and (size in shape[:2] or values.ndim == 1):
                mark(values, place)
    elif isinstance(values, dict):
        _mark(tuple(values.values()), shape)
    elif isinstance(values, tuple):
        for value in values:
            _mark(value, shape)


def _graph_count() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"].get("unique_graphs", 0))


def _recomputed(run: Callable[..., Any], selective: bool, *args: Any, **kwargs: Any) -> Any:
    """Run a layer keeping its input, or also the results of its products."""
    if selective:
        kwargs["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(run, *args, use_reentrant=False, **kwargs)


def _policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    del ctx, args, kwargs
    return (
        CheckpointPolicy.MUST_SAVE if op.name().split(".")[0] in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
    )


class _Offloaded(torch.autograd.Function):
    """A layer that the backward pass runs again; its input waits for that, in the host's memory if ``away``.

    held: where the layer's frozen weights are meanwhile, if not on the device.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 (autograd passes by place)
        ctx: Any,
        hidden: Tensor,
        anchor: Tensor,
        run: Callable[[Tensor], Tensor],
        held: Held | None,
        away: bool,
    ) -> Tensor:
        del anchor
        ctx.run, ctx.device, ctx.held = run, hidden.device, held
        ctx.generators = torch.get_rng_state(), _cuda_state(hidden.device)
        kept = hidden
        if away:
            kept = host_place(hidden)
            kept.copy_(hidden, non_blocking=True)
        ctx.save_for_backward(kept)
        with torch.no_grad(), nullcontext() if held is None else held.forward():
            return run(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kept,) = ctx.saved_tensors
        hidden = kept.detach().to(ctx.device, non_blocking=True).requires_grad_(True)
        states = torch.get_rng_state(), _cuda_state(ctx.device)
        _set_states(ctx.device, *ctx.generators)
        with nullcontext() if ctx.held is None else ctx.held.backward():
            try:
                with torch.enable_grad():
                    out = ctx.run(hidden)
            finally:
                _set_states(ctx.device, *states)
            torch.autograd.backward(out, grads[0])
        return hidden.grad, None, None, None, None


def _cuda_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_states(device: torch.device, host: Tensor, cuda: Tensor | None) -> None:
    torch.set_rng_state(host)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda, device)


def _offloaded(
    run: Callable[..., Any], held: Held | None, away: bool, hidden: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Run a layer keeping its input alone; layers return one tensor or a tuple of one."""
    shape: list[bool] = []

    def only(states: Tensor) -> Tensor:
        out = run(states, *args, **kwargs)
        shape[:] = [isinstance(out, tuple)]
        first: Tensor = out[0] if isinstance(out, tuple) else out
        return first

    # The weights inside are leaves of their own: an input that asks for a gradient is what makes autograd
    # call the backward pass, also for the first layer above frozen embeddings.
    anchor = torch.empty(0, device=hidden.device, requires_grad=True)
    apply: Any = _Offloaded.apply
    out = apply(hidden, anchor, only, held, away)
    return (out,) if shape[0] else out
