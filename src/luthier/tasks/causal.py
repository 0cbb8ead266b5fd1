"""Next-token cross-entropy at trained positions: the objective of chat and text generation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.models.attention import (
    attending_to_documents,
    document_arguments,
    ends_arguments,
    supports_documents,
    varlen_kernel,
    why_not_varlen,
)
from luthier.models.heads import Head, head_is_right, head_of
from luthier.models.varlen import Kernel
from luthier.training.losses import linear_cross_entropy, picked
from luthier.training.objective import (
    IGNORED,
    ROUND,
    Flat,
    Loss,
    MicroBatch,
    Padded,
    flatten,
    full_logits_loss,
    rounded,
    trained_tokens,
    unpack,
)
from luthier.training.preference import token_log_probs


@dataclass(frozen=True)
class CausalObjective:
    """Sum of cross-entropies of the trained tokens, in nats.

    head: the model's head in closed form, then logits exist only at trained places and only a chunk
    at a time; None computes them through the model. documents: whether rows are flattened; else
    they are padded. tensors: whether the model is told where documents end by a tensor (see
    `models.attention.document_arguments`); longest: no document of the run is longer.
    """

    head: Head | None
    documents: bool
    tensors: bool = False
    longest: int | None = None
    kernel: Kernel = "torch"

    def scope(self, model: Any) -> AbstractContextManager[None]:
        return attending_to_documents(model) if self.documents else nullcontext()

    def weight(self, batch: MicroBatch) -> float:
        return float(trained_tokens(batch))

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        flat = flatten(batch)
        weight = float(flat.targets.numel())
        if self.head is None and not self.documents:
            rows = unpack(flat)
            logits = model(**_padded(rows)).logits
            return Loss(full_logits_loss(logits, rows.labels), weight)
        return Loss(self.summed(self.states(model, flat), flat.targets), weight)

    def summed(self, states: Tensor, targets: Tensor) -> Tensor:
        """The sum of losses of what `states` gives, against the trained tokens."""
        if self.head is None:
            return F.cross_entropy(states, targets, reduction="sum")
        return linear_cross_entropy(
            states,
            self.head.weight,
            targets,
            multiplier=self.head.multiplier,
            softcap=self.head.softcap,
            new=self.head.new,
            places=self.head.places,
        )

    def states(self, model: Any, flat: Flat) -> Tensor:
        """What predicts each trained token: hidden states [trained, width], or fp32 logits without a head."""
        if self.documents:
            filled = rounded(flat)
            with self.scope(model):
                inputs = {
                    "input_ids": filled.ids,
                    "position_ids": filled.positions,
                    "use_cache": False,
                    **self.document_arguments(filled),
                }
                if self.head is None:
                    logits: Tensor = model(**inputs, logits_to_keep=flat.sources).logits[0].float()
                    return logits
                hidden: Tensor = model.base_model(**inputs).last_hidden_state[0, flat.sources]
                return hidden
        rows = unpack(flat)
        if self.head is None:
            found: Tensor = model(**_padded(rows)).logits[rows.mask.bool()][flat.sources].float()
            return found
        states: Tensor = model.base_model(**_padded(rows)).last_hidden_state
        return states[rows.mask.bool()][flat.sources]

    def document_arguments(self, flat: Flat) -> dict[str, Any]:
        """What tells the model's attention where documents end."""
        return document_arguments(
            flat.lengths,
            device=flat.ids.device,
            tensors=self.tensors,
            longest=self.longest,
            kernel=self.kernel,
        )

    @property
    def recordable(self) -> bool:
        """Whether `fixed` tensors give the loss: one kernel takes all documents, and the head is known."""
        return self.documents and self.tensors and self.head is not None and self.longest is not None

    def fixed(self, batch: MicroBatch) -> tuple[Tensor, ...]:
        """A micro-batch as ids, positions, ends of documents, sources and targets of few lengths each.

        Filled up with a document of its own, with empty documents, and with targets that do not count.
        """
        flat = flatten(batch)
        tokens, trained = flat.ids.shape[1], flat.targets.numel()
        missing = _few(tokens, parts=8, least=ROUND) - tokens
        lengths = (*flat.lengths, missing) if missing else flat.lengths
        ends = torch.tensor((0, *lengths)).cumsum(0, dtype=torch.int32)
        device = flat.ids.device
        filler = torch.arange(missing, device=device) % (self.longest or 1)
        spare = _few(trained, parts=4, least=ROUND) - trained
        return (
            F.pad(flat.ids, (0, missing)),
            torch.cat((flat.positions, filler[None]), dim=1),
            F.pad(ends, (0, _few(len(ends), parts=2, least=16) - len(ends)), value=int(ends[-1])).to(device),
            # The last token predicts nothing: its state is nobody else's source.
            F.pad(flat.sources, (0, spare), value=tokens + missing - 1),
            F.pad(flat.targets, (0, spare), value=IGNORED),
        )

    def total(self, model: Any, *tensors: Tensor) -> Tensor:
        """The sum of losses of `fixed` tensors."""
        ids, positions, ends, sources, targets = tensors
        assert self.head is not None
        assert self.longest is not None
        with self.scope(model):
            states = model.base_model(
                input_ids=ids,
                position_ids=positions,
                use_cache=False,
                **ends_arguments(ends, self.longest, self.kernel),
            ).last_hidden_state[0]
        return linear_cross_entropy(
            picked(states, sources),
            self.head.weight,
            targets,
            multiplier=self.head.multiplier,
            softcap=self.head.softcap,
            filled=True,
            new=self.head.new,
            places=self.head.places,
        )

    def log_probs(self, model: Any, flat: Flat) -> Tensor:
        """Log-probability of each trained token, with its graph: [trained] in fp32, in nats."""
        states = self.states(model, flat)
        if self.head is None:
            return states.log_softmax(dim=1).gather(1, flat.targets[:, None]).squeeze(1)
        head = self.head
        return token_log_probs(
            states, head.weight, flat.targets, multiplier=head.multiplier, softcap=head.softcap
        )


def _few(count: int, *, parts: int, least: int) -> int:
    """The next of few numbers from a count on: so many between each power of two and the next."""
    step = max(least, (1 << max(0, count.bit_length() - 1)) // parts)
    return max(1, -(-count // step)) * step


def _padded(rows: Padded) -> dict[str, Any]:
    return {
        "input_ids": rows.ids,
        "position_ids": rows.positions,
        "attention_mask": rows.mask,
        "use_cache": False,
    }


def causal_objective(model: Any, *, compiled: bool = False, longest: int | None = None) -> CausalObjective:
    """The leanest objective that the model allows, its head checked against the model's own logits.

    compiled: whether the model's layers will be compiled. longest: tokens of the longest document.
    """
    head = head_of(model)
    if head is not None and not head_is_right(model, head):
        head = None
    return placed(CausalObjective(head, supports_documents(model), longest=longest), model, compiled=compiled)


def placed(objective: CausalObjective, model: Any, *, compiled: bool) -> CausalObjective:
    """The objective with the attention that suits where the model is now."""
    half = model.dtype in (torch.bfloat16, torch.float16)
    one_kernel = next(model.parameters()).is_cuda and half and why_not_varlen(model) is None
    kernel = varlen_kernel(model) if one_kernel else "torch"
    return replace(objective, tensors=objective.documents and (compiled or one_kernel), kernel=kernel)
