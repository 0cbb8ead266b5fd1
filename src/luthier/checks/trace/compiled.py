"""A compiled layer on tensors without data: the graph that Inductor would get, with its fusions.

Dynamo and AOT autograd make the graph and decide what is kept for the backward pass, by the very rule
that Inductor uses (min-cut rematerialisation). Of what is computed between two kernels that are not
generated (products, attention, custom operations) only their inputs come into being.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import CheckpointPolicy

from luthier.checks.trace.marks import replace_forward
from luthier.checks.trace.recorder import Recorder

_BOUGHT = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_grouped_mm", "_scaled_mm")
"""Operations that Inductor leaves to libraries."""


Policy = Callable[[str], CheckpointPolicy]
"""From an operation's name to whether its result is kept, inside a graph that computes the rest again."""


def compile_layers(layers: Iterable[nn.Module], recorder: Recorder, policy: Policy | None = None) -> None:
    """Compile the forward method of each layer for the trace, in place; alike layers share a graph.

    policy: what is kept of a layer whose checkpoint lies inside of its graph; None: torch's own choice.
    """
    known: dict[Any, Callable[..., Any]] = {}

    def compiled(forward: Any) -> Any:
        layer: nn.Module = forward.__self__
        # torch.compile stands aside while operations are recorded: the graph is made and run by hand.
        return lambda hidden, *args, **kwargs: _call(
            layer, forward, (_asking(hidden), *args), kwargs, recorder, known, policy
        )

    replace_forward(layers, compiled)


def _asking(hidden: Tensor) -> Tensor:
    """A layer's input, asking for its gradient also above frozen embeddings, as `training.layers` has it."""
    if hidden.requires_grad or not torch.is_grad_enabled():
        return hidden
    return hidden.detach().requires_grad_(True)


def _call(  # noqa: PLR0917 (private, called once)
    layer: nn.Module,
    forward: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    recorder: Recorder,
    known: dict[Any, Callable[..., Any]],
    policy: Policy | None,
) -> Any:
    named = dict((*layer.named_parameters(), *layer.named_buffers()))
    names, weights = list(named), list(named.values())
    inputs, spec = tree_flatten((args, kwargs))
    places = [number for number, value in enumerate(inputs) if isinstance(value, Tensor)]
    flat = [*weights, *(inputs[place] for place in places)]
    key = (
        type(layer),
        str(spec),
        torch.is_grad_enabled(),
        *((tuple(t.shape), t.dtype, t.requires_grad) for t in flat),
    )
    if key not in known:
        with _disable_current_modes():
            # The graph outlives this call, so that it may hold none of the tensors.
            others = [None if isinstance(value, Tensor) else value for value in inputs]
            whole = _Flat(layer, forward, names, others, places, spec)
            known[key] = _graph_of(whole, flat, recorder, policy)
    found = known[key](*flat)
    return found[0]


class _Flat(nn.Module):
    """A layer as a function of its weights and of the tensors among its arguments."""

    def __init__(  # noqa: PLR0917 (private, called once)
        self,
        layer: nn.Module,
        forward: Any,
        names: list[str],
        inputs: list[Any],
        places: list[int],
        spec: TreeSpec,
    ) -> None:
        super().__init__()
        self.call = partial(_with_weights, layer, forward, names, inputs, places, spec)

    def forward(self, *flat: Tensor) -> tuple[Any]:
        return (self.call(flat),)


def _with_weights(  # noqa: PLR0917 (private, called once)
    layer: nn.Module,
    forward: Any,
    names: list[str],
    inputs: list[Any],
    places: list[int],
    spec: TreeSpec,
    flat: tuple[Tensor, ...],
) -> Any:
    values = list(inputs)
    for place, value in zip(places, flat[len(names) :], strict=True):
        values[place] = value
    args, kwargs = tree_unflatten(values, spec)
    weights = dict(zip(names, flat, strict=False))
    with _reparametrize_module(layer, weights):
        return forward(*args, **kwargs)


def _tag(graph: fx.Graph, policy: Policy) -> None:
    """Say of each result of the forward pass whether it is kept, as a checkpoint inside a graph does."""
    backward: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder":
            if "tangents" in str(node.target):
                backward.add(node)
        elif any(source in backward for source in node.all_input_nodes):
            backward.add(node)
        elif node.op == "call_function":
            whole = node.all_input_nodes[0] if node.target is operator.getitem else node
            target = whole.target
            name = target._schema.name if isinstance(target, torch._ops.OpOverload) else ""
            node.meta["recompute"], node.meta["ac_graph_id"] = policy(name), 0


def _graph_of(
    module: _Flat, flat: list[Tensor], recorder: Recorder, policy: Policy | None
) -> Callable[..., Any]:
    from torch._functorch.aot_autograd import aot_module_simplified
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    def interpret(graph: fx.GraphModule, _inputs: Any) -> Callable[[list[Any]], Any]:
        hasten(graph)
        wait_for_readers(graph, passing_nodes(graph))
        passing = passing_nodes(graph)

        def run(arguments: list[Any]) -> Any:
            recorder.inside = True
            try:
                return _Interpreter(graph, recorder, passing).boxed_run(arguments)
            finally:
                recorder.inside = False

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def part(joint: fx.GraphModule, inputs: Any, **settings: Any) -> Any:
        if policy is not None:
            _tag(joint.graph, policy)
        return min_cut_rematerialization_partition(joint, inputs, **settings)

    compiler: Any = interpret
    found: Callable[..., Any] = aot_module_simplified(
        cast("Any", module),
        flat,
        fw_compiler=compiler,
        bw_compiler=compiler,
        partition_fn=part,
        decompositions=select_decomp_table(),
    )
    return found


class _Interpreter(fx.Interpreter):
    """Runs a graph node by node; what a generated kernel holds in registers is not noted.

    What a kernel reads lives until the kernel has run, not until the first of the nodes that it was
    fused from; an input that nobody else reads is written over.
    """

    def __init__(self, graph: fx.GraphModule, recorder: Recorder, passing: set[fx.Node]) -> None:
        super().__init__(graph)
        self.recorder, self.passing = recorder, passing
        self.kernels = _kernels(graph, passing)
        self.user_to_last_uses = _last_uses(graph, passing, self.kernels)

    def run_node(self, n: fx.Node) -> Any:
        before = self.recorder.blind
        self.recorder.blind = n in self.passing
        if n in self.kernels:
            self._write_over(n)
        try:
            return super().run_node(n)
        finally:
            self.recorder.blind = before

    def _write_over(self, node: fx.Node) -> None:
        """Let go of one dying input as large as the result, before the result is made.

        Inductor does so (`decide_inplace_update`) where of all that its kernel makes this alone reads it.
        What is made of another result of the kernel reads what that one does, for that is worked out anew,
        unless it had to be there before.
        """
        value, end = node.meta.get("val"), self.kernels[node]
        if not isinstance(value, Tensor):
            return
        size = value.untyped_storage().nbytes()
        uses = self.user_to_last_uses.get(end, ())
        dying = [n for n in uses if isinstance(self.env.get(n), Tensor)]
        staying = self._storages(n for n in self.env if n not in dying)
        others = {n for n, last in self.kernels.items() if last is end} - {node}
        through = self.passing | {n for n in (*others, node) if not _stands(n)}
        staying |= self._storages(source for n in others for source in _sources(n, through))
        read = self._storages(_sources(node, self.passing)) - staying
        for candidate in dying:
            storage = cast("Tensor", self.env[candidate]).untyped_storage()
            if storage.nbytes() != size or storage._cdata not in read or not self._is_own(candidate):
                continue
            before, self.recorder.blind = self.recorder.blind, True
            for alias in dying:
                if self.env[alias].untyped_storage()._cdata == storage._cdata:
                    self.env[alias] = torch.empty_like(self.env[alias])
            for several in uses:  # an operation's results, of which each has been taken by now
                if isinstance(self.env.get(several), tuple) and all(n in self.env for n in several.users):
                    self.env[several] = ()
            self.recorder.blind = before
            return

    def _is_own(self, node: fx.Node) -> bool:
        """Whether what it shows is the graph's: made here, or kept for it by the forward pass."""
        made = _maker(node)
        given = made.op == "placeholder" and str(made.target).startswith(("primals", "tangents"))
        return made not in self.passing and not given

    def _storages(self, nodes: Iterable[fx.Node]) -> set[int]:
        held = (self.env.get(node) for node in nodes)
        return {value.untyped_storage()._cdata for value in held if isinstance(value, Tensor)}


def _kernels(graph: fx.GraphModule, passing: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Generated node -> the last of those that run together with it: all between two bought kernels."""
    kernel: dict[fx.Node, fx.Node] = {}
    end = None
    for node in reversed(graph.graph.nodes):
        if node.op != "call_function" or _is_bought(node):
            end = None
        elif node not in passing and not _is_view(node):
            end = end or node
            kernel[node] = end
    return kernel


def _last_uses(
    graph: fx.GraphModule, passing: set[fx.Node], kernel: dict[fx.Node, fx.Node]
) -> dict[fx.Node, list[fx.Node]]:
    """Node -> those that nobody needs once it has run; what a passing node reads waits for its readers."""
    place = {node: number for number, node in enumerate(graph.graph.nodes)}
    last: dict[fx.Node, fx.Node] = {}
    for node in reversed(graph.graph.nodes):
        found = node
        for user in node.users:
            until = last[user] if user in passing else kernel.get(user, user)
            found = max(found, until, key=place.__getitem__)
        last[node] = found
    uses: dict[fx.Node, list[fx.Node]] = {}
    for node, end in last.items():
        if node.op == "output":
            continue
        uses.setdefault(end, []).append(node)
    return uses


def hasten(graph: fx.GraphModule) -> None:
    """Move what is generated to where its inputs are there, as Inductor fuses it with what made them."""
    level: dict[fx.Node, int] = {}
    for place, node in enumerate(graph.graph.nodes):
        inputs = max((level[n] for n in node.all_input_nodes), default=0)
        fixed = node.op in ("placeholder", "output", "get_attr") or _is_bought(node) or not inputs
        level[node] = (0 if node.op == "placeholder" else place) if fixed else inputs
    order = sorted(level, key=level.__getitem__)  # stable: alike places stay in order
    for before, node in pairwise(order):
        before.append(node)


def wait_for_readers(graph: fx.GraphModule, passing: set[fx.Node]) -> None:
    """Move what is generated to the kernel that reads the same and more, as Inductor fuses them: what both
    read and write is then there at once.

    So a layer that runs again in its backward pass makes the MLP's product with its factors' gradients.
    """
    kernels = [n for n in graph.graph.nodes if n.op == "call_function" and n not in passing and _is_made(n)]
    reads = {node: _read(node, passing) for node in kernels}
    for place, node in enumerate(kernels):
        if not reads[node]:
            continue
        after = _descendants(node)
        for later in kernels[place + 1 :]:
            if reads[node] < reads[later] and _numbers(node) == _numbers(later) and later not in after:
                _move(graph, node, later, after)
                break


def _move(graph: fx.GraphModule, node: fx.Node, kernel: fx.Node, after: set[fx.Node]) -> None:
    """Put a node before a kernel, and those that need it behind what is generated there."""
    nodes = list(graph.graph.nodes)
    between = [n for n in nodes[nodes.index(node) + 1 : nodes.index(kernel)] if n in after]
    end = kernel
    for following in nodes[nodes.index(kernel) + 1 :]:
        if following.op != "call_function" or _is_bought(following) or following in after:
            break
        end = following
    kernel.prepend(node)
    for waiting in reversed(between):
        end.append(waiting)


def _descendants(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    left = [node]
    while left:
        for user in left.pop().users:
            if user not in found:
                found.add(user)
                left.append(user)
    return found


def _read(node: fx.Node, passing: set[fx.Node]) -> set[fx.Node]:
    """What a generated node reads of what is there: through views, and through what passes by."""
    return {source for source in _sources(node, passing) if not _leads_on(source, passing)}


def _sources(node: fx.Node, passing: set[fx.Node]) -> set[fx.Node]:
    """The same with the views between."""
    found: set[fx.Node] = set()
    left = [node]
    while left:
        for source in left.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                left += [source] * _leads_on(source, passing)
    return found


def _maker(node: fx.Node) -> fx.Node:
    """The node whose storage a view shows."""
    while _is_view(node) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _stands(node: fx.Node) -> bool:
    """Whether Inductor makes it before what is made of it: where it, or a view of it, is read by several of
    which one is bought (``needs_realized_inputs``).
    """
    shown = [node]
    while shown:
        users = list(shown.pop().users)
        if len(users) > 1 and any(map(_is_bought, users)):
            return True
        shown += filter(_is_view, users)
    return False


def _leads_on(node: fx.Node, passing: set[fx.Node]) -> bool:
    """Whether its value is another's, or never comes into being."""
    return node in passing or (_is_view(node) and bool(node.all_input_nodes))


def _is_made(node: fx.Node) -> bool:
    """Whether its result is of a generated kernel."""
    return not _is_bought(node) and not _is_view(node)


def _numbers(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return int(value.numel()) if isinstance(value, Tensor) else None


def passing_nodes(graph: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose result never comes into being: read by generated kernels alone."""
    real: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        reads_real = node.op == "output" or _is_bought(node) or (_is_view(node) and node in real)
        if reads_real:
            real.update(node.all_input_nodes)
    return {
        node
        for node in graph.graph.nodes
        if node.op == "call_function" and node not in real and not _is_bought(node)
    }


def _is_bought(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    return target.namespace not in ("aten", "prims") or target._opname in _BOUGHT


def _is_view(node: fx.Node) -> bool:
    target = node.target
    if node.op != "call_function":
        return False
    if not isinstance(target, torch._ops.OpOverload):
        return True  # getitem
    returns = target._schema.returns
    return bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
