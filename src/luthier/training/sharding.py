"""Weights divided over the processes that train together, with torch's ``fully_shard`` (FSDP2).

Each process keeps a part of every tensor, with its gradient and the optimiser's states. A layer's weights
are gathered shortly before it runs; its gradients are added up over all processes and divided as soon as
they are there. Both go on beside the computation of the neighbouring layers. ``training.parallel.reshard``
says when gathered weights are let go:

- layer: after each pass through the layer (``reshard_after_forward``, ZeRO-3): two gathers a micro-batch.
- backward: after the layer's backward pass: one gather a micro-batch.
- step: after that of a step's last micro-batch (ZeRO-2): one gather a step. Gradients are added up where
  they are made until then, and between the processes once.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luthier.errors import Unsupported
from luthier.schema.recipe import Reshard
from luthier.training.layers import layers_of
from luthier.training.world import World

Through = Callable[..., Any]
"""``through(work, *args)`` is ``work(*args)`` with the model's weights at hand: a loss that is then sent
backward, or, under ``torch.no_grad``, anything."""
LEAST_DIVIDED = 1024
"""Numbers of a packed weight's part that is divided; smaller parts, such as code tables, are held whole."""


def at_once(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """What every use of a model that one process holds goes through."""
    return work(*args, **named)


class _Whole(nn.Module):
    """What FSDP takes for the model: its forward pass is any work with it, the loss included.

    Trained weights outside of the layers (embeddings, head, last norm) are gathered for the whole of that
    work, so that a loss may read the head's weight itself.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


def divide(model: nn.Module, world: World, *, masters: bool) -> Divided:
    """Divide the model's weights along shard, in place, layer by layer; only one at a time is whole there.

    They stay gathered as long as ``world.parallel.reshard`` says.

    masters: hold trained weights in fp32 and gather them in their own type, where all of a layer have one;
    else they keep their type. Returns what every use of the model must go through, in every process at the
    same time. Gradients are sums over all parts of a step, not means.

    Raises Unsupported where the model marks no layers or where its trained weights are of several types.
    """
    layers = layers_of(model)
    if not layers:
        raise Unsupported(
            f"{type(model).__name__} marks no layers, so its weights cannot be divided over devices",
            hint="leave training.parallel.shard at 1",
        )
    mesh, dtype = world.side("replicate", "shard"), next(model.parameters()).dtype
    assert mesh is not None
    assert world.parallel is not None
    reshard = world.parallel.reshard or "layer"
    for layer in layers:
        layer.to(world.device)
        again = reshard == "layer" and layer is not layers[-1]
        _divide_part(layer, mesh, masters=masters, again=again)
    whole = _Whole(model)
    # These are at hand all the time that a pass takes: frozen ones would be gathered beside a part of them.
    kept = {weight for weight in model.parameters() if not weight.requires_grad and not is_divided(weight)}
    for weight in kept:
        weight.data = weight.data.to(world.device)
    _divide_part(whole, mesh, masters=masters, again=None, kept=kept)
    _prefetch(whole, layers)
    return Divided(whole, layers, dtype, reshard, groups=world.sizes["replicate"])


class Divided:
    """The way to a model whose weights are divided (`Through`). groups: how many models there are in all."""

    def __init__(
        self, whole: Any, layers: list[nn.Module], dtype: torch.dtype, reshard: Reshard, *, groups: int
    ) -> None:
        self.whole, self.dtype, self.reshard, self.groups = whole, dtype, reshard, groups
        self.parts: list[Any] = [whole, *layers]

    def begin(self, *, last: bool) -> None:
        """Before a micro-batch goes forward and backward. last: whether it is the last one of its step."""
        if self.reshard == "step":
            self.whole.set_reshard_after_backward(last)
            self.whole.set_requires_gradient_sync(last)
        elif self.groups > 1:
            self.whole.set_requires_all_reduce(
                last
            )  # between the groups, whose links may be slow, once a step

    def __call__(self, work: Callable[..., Any], *args: Any, **named: Any) -> Any:
        # One closure: FSDP looks into arguments for tensors, and would take a head's weight for an input.
        found = self.whole(partial(work, *args, **named))
        if not torch.is_grad_enabled():
            # No backward pass follows that would let go of what was gathered.
            for part in self.parts:
                part.reshard()
        return found


def _divide_part(
    module: nn.Module,
    mesh: Any,
    *,
    masters: bool,
    again: bool | None,
    kept: AbstractSet[nn.Parameter] = frozenset(),
) -> None:
    """Divide what is not divided yet of a module. again: whether the backward pass gathers it again.

    kept: what stays whole.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    _parts_as_weights(module)
    own = [weight for weight in module.parameters() if weight not in kept and not is_divided(weight)]
    trained = [weight for weight in own if weight.requires_grad]
    if len(types := {weight.dtype for weight in trained}) > 1:
        raise Unsupported(
            f"trained weights of {type(module).__name__} are of several types "
            f"({', '.join(sorted(map(str, types)))}), which cannot be divided over devices together",
            hint="set model.dtype: float32, or leave training.parallel.shard at 1",
        )
    narrow = {weight.dtype for weight in own} == {torch.bfloat16}
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if masters and narrow and trained:
        for weight in trained:
            weight.data = weight.data.float()
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    place: Any = fully_shard(
        module, mesh=mesh, reshard_after_forward=again, mp_policy=policy, ignored_params=set(kept)
    )
    place.set_gradient_divide_factor(1.0)
    place.set_force_sum_reduction_for_comms(True)


def _parts_as_weights(module: nn.Module) -> None:
    """Let the parts of packed weights be weights that nothing trains: only these are divided.

    Bytes lie there as numbers in bf16, which nobody computes with: fully_shard of torch 2.11 makes a weight
    that asks for a gradient of every part, before it takes that back, and bytes can have none.
    """
    for layer in module.modules():
        for name in getattr(layer, "base_names", ()):
            part = layer._buffers.get(name)
            if part is None or part.numel() < LEAST_DIVIDED:
                continue
            if not part.is_floating_point():
                if part.numel() % 2:
                    continue
                part = part.reshape(-1).view(torch.bfloat16)
            del layer._buffers[name]
            layer.register_parameter(name, nn.Parameter(part, requires_grad=False))


def _prefetch(whole: Any, layers: list[Any]) -> None:
    """Gather the next layer while one runs, in both directions."""
    whole.set_modules_to_forward_prefetch([layers[0]])
    for here, after in pairwise(layers):
        here.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([here])


def parameters_of(model: nn.Module) -> int:
    """Numbers in all weights of a model, parts of packed ones not counted, divided or not."""
    found = {
        id(weight): weight.numel()
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if name == "weight" or name not in getattr(module, "base_names", ())
    }
    return sum(found.values())


def is_divided(weight: Tensor) -> bool:
    """Whether a weight is a part of one that several processes hold together."""
    return hasattr(weight, "placements")


def own_part(weight: Tensor) -> Tensor:
    """What this process holds of a weight or of its gradient, without a graph; itself where it is whole."""
    if not is_divided(weight):
        return weight
    place: Any = weight
    part: Tensor = place.detach().to_local()
    return part


def part_of(whole: Tensor, weight: Tensor) -> Tensor:
    """What this process holds of values for a whole weight, a copy on its device."""
    if not is_divided(weight):
        return whole
    from torch.distributed.tensor import distribute_tensor

    like: Any = weight
    laid = distribute_tensor(whole.to(weight.device), like.device_mesh, like.placements, src_data_rank=None)
    return laid.to_local().clone()


def whole_of(part: Tensor, weight: Tensor) -> Tensor:
    """The whole of values of which each process holds a part as it does of the weight, on the host.

    All processes call it together; only the first is given the numbers, the others an empty tensor.
    """
    if not is_divided(weight):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = weight
    laid: Any = DTensor.from_local(
        part.detach(), like.device_mesh, like.placements,
        run_check=False, shape=weight.shape, stride=weight.stride(),
    )  # fmt: skip
    whole: Tensor = laid.full_tensor()
    return whole.cpu() if dist.get_rank() == 0 else torch.empty(0, dtype=whole.dtype)
