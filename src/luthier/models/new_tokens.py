"""Embeddings of new tokens: rows made from the pieces that a token was, trained beside frozen tables.

The table holds the values, rounded to its own type, so that whoever reads it has them: the head in closed
form, an embedding with a scale of its own, a generator. The trained rows lie apart in full precision, are
written into the table at the beginning of each forward pass, and get their gradients past it. The adapter
is what PEFT calls ``trainable_token_indices``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from luthier.errors import Unsupported

AT_ONCE = 1024
"""New tokens whose gradients are added up by one product."""
NAME = "new_tokens"
"""What the rows are called in the embedding that they belong to."""


class NewRows(nn.Module):
    """Trained rows of one frozen table [vocabulary, width].

    rows: [new, width], in a type of their own; places: [new], where they stand in the table; slots:
    [vocabulary], which of them a token is, or -1; start: their values before training, in the table's type.
    """

    def __init__(self, table: Tensor, ids: Sequence[int], *, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        places = torch.tensor(ids, device=table.device)
        slots = torch.full((table.shape[0],), -1, dtype=torch.int32, device=table.device)
        slots[places] = torch.arange(len(ids), dtype=torch.int32, device=table.device)
        start = table.detach().index_select(0, places)
        self.rows = nn.Parameter(start.clone().to(dtype))
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("start", start, persistent=False)
        self.scale, self.enabled = scale, True
        self.handles: list[Any] = []

    places: Tensor
    slots: Tensor
    start: Tensor

    @torch.no_grad()
    def write(self, table: Tensor) -> None:
        """Give the table the rows' values, or those of before training where adapters are off."""
        values = self.rows if self.enabled else self.start
        table.data.index_copy_(0, self.places, values.detach().to(table.dtype))

    @property
    def watched(self) -> bool:
        """Whether a forward pass must lead gradients to the rows."""
        return self.enabled and self.rows.requires_grad and torch.is_grad_enabled()

    def extra_repr(self) -> str:
        return f"{self.rows.shape[0]} of {self.slots.shape[0]}"


class _Embedded(torch.autograd.Function):
    """What an embedding gave, with a way back to the rows of new tokens."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, rows: Tensor, slots: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.like, ctx.scale = rows.detach(), scale
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (slots,) = ctx.saved_tensors
        found = torch.empty_like(ctx.like)
        flat, which = grad.reshape(-1, grad.shape[-1]), slots.reshape(1, -1)
        # A product with ones adds up in fp32 whatever the type, and always in the same order.
        for start in range(0, found.shape[0], AT_ONCE):
            wanted = torch.arange(start, min(start + AT_ONCE, found.shape[0]), device=grad.device)
            found[start : start + AT_ONCE] = (which == wanted[:, None]).to(grad.dtype) @ flat
        return grad if ctx.needs_input_grad[0] else None, found.mul_(ctx.scale), None, None


class _Logits(torch.autograd.Function):
    """What a frozen head gave, with a way back to the rows of new tokens."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, rows: Tensor, hidden: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, places)
        ctx.dtype = rows.dtype
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, places = ctx.saved_tensors
        new = grad.index_select(-1, places).reshape(-1, places.shape[0])
        found = (new.t() @ hidden.reshape(-1, hidden.shape[-1])).to(ctx.dtype)
        return grad if ctx.needs_input_grad[0] else None, found, None, None


def grow(model: Any, pieces: Mapping[int, Sequence[int]]) -> None:
    """Give each new token a row in the model's tables: the mean of the rows of its pieces.

    pieces: id of a new token -> ids of the tokens that stood for its text before (none: the mean of all
    rows). A table that ends before the largest id is made longer; one with rows to spare keeps its length.
    Errors: Unsupported for a model whose tables cannot be found.
    """
    tables = _tables(model)
    old = tables[0].weight.shape[0]
    with torch.no_grad():
        means = [_means(table.weight, pieces, old) for table in tables]
        biases = [None if (bias := _bias(table)) is None else _means(bias, pieces, old) for table in tables]
        if (needed := max(pieces) + 1) > old:
            model.resize_token_embeddings(needed, mean_resizing=False)
        for table, rows, shifts in zip(_tables(model), means, biases, strict=True):
            places = torch.tensor(list(pieces), device=table.weight.device)
            table.weight.data.index_copy_(0, places, rows)
            if shifts is not None:
                table.bias.data.index_copy_(0, places, shifts)


def _means(table: Tensor, pieces: Mapping[int, Sequence[int]], old: int) -> Tensor:
    rows = [
        table[[piece for piece in parts if piece < old]].float().mean(0) if parts else table.float().mean(0)
        for parts in pieces.values()
    ]
    return torch.stack(rows).to(table.dtype)


def _bias(table: Any) -> Tensor | None:
    bias: Tensor | None = getattr(table, "bias", None)
    return bias


def _tables(model: Any) -> list[Any]:
    """The input embedding and, where it has a table of its own, the head. Errors: Unsupported."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or head is None or not hasattr(head, "weight"):
        raise Unsupported(
            f"model.new_tokens: the embeddings of {type(model).__name__} are not kept in one table",
            hint="choose a model whose head is a linear layer, or leave model.new_tokens out",
        )
    return [embedding] if head.weight is embedding.weight else [embedding, head]


def train_rows(model: Any, ids: Sequence[int], *, dtype: torch.dtype = torch.float32) -> None:
    """Train the rows of these tokens, in the input embedding and the head, and leave all others frozen.

    Where both are one table the rows are one as well. dtype: the type that they are held and updated in.
    """
    tables, head = _tables(model), model.get_output_embeddings()
    for table in tables:
        table.weight.requires_grad_(False)
        scale = _scale_of(table) if isinstance(table, nn.Embedding) else 1.0
        table.add_module(NAME, NewRows(table.weight, ids, scale=scale, dtype=dtype))
    embedding = tables[0]
    handles = embedding.new_tokens.handles
    handles.append(embedding.register_forward_pre_hook(partial(_write, tuple(tables))))
    handles.append(embedding.register_forward_hook(_embedded))
    handles.append(head.register_forward_hook(partial(_answered, tables[-1])))


def _scale_of(embedding: nn.Embedding) -> float:
    """What an embedding multiplies its rows with (Gemma 3: the root of the width). Errors: Unsupported."""
    scale = float(getattr(embedding, "embed_scale", 1.0))
    ids = torch.arange(min(8, embedding.num_embeddings), device=embedding.weight.device)
    with torch.no_grad():
        out, rows = embedding(ids).float(), embedding.weight[ids].float()
    if not torch.allclose(out, rows * scale, rtol=2e-2, atol=1e-6 * scale):
        raise Unsupported(
            f"model.new_tokens: {type(embedding).__name__} does more than look rows up",
            hint="leave model.new_tokens out, or use method.name: full",
        )
    return scale


def _write(tables: tuple[Any, ...], _module: nn.Module, _args: Any) -> None:
    for table in tables:
        table.new_tokens.write(table.weight)


def _embedded(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    own: NewRows = module.new_tokens
    if not own.watched:
        return out
    found: Tensor = _Embedded.apply(out, own.rows, own.slots[args[0]], own.scale)  # type: ignore[no-untyped-call]
    return found


def _answered(table: Any, _head: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    own: NewRows = table.new_tokens
    if not own.watched:
        return out
    found: Tensor = _Logits.apply(out, own.rows, args[0], own.places)  # type: ignore[no-untyped-call]
    return found


def trained_rows(model: nn.Module) -> Iterator[tuple[str, Any, NewRows]]:
    """Every table with trained rows: its path, the module that holds it, and the rows."""
    for path, module in model.named_modules():
        if isinstance(own := getattr(module, NAME, None), NewRows):
            yield path, module, own


def rows_of_head(model: Any) -> NewRows | None:
    """The trained rows of the head, which are the embedding's where both are one table."""
    head = model.get_output_embeddings()
    tables = {id(module.weight): own for _, module, own in trained_rows(model)}
    return None if head is None else tables.get(id(getattr(head, "weight", None)))


def settle(model: nn.Module) -> None:
    """Leave the trained rows' values in their tables, as any other row, and take the rest away."""
    for _, module, own in list(trained_rows(model)):
        own.enabled = True
        own.write(module.weight)
        for handle in own.handles:
            handle.remove()
        delattr(module, NAME)
