"""Log-probabilities of continuations from a torch model: what multiple choice is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from luthier.models.heads import Head, head_is_right, head_of
from luthier.schema.protocols import Likelihood, Progress, TextTokenizer

if TYPE_CHECKING:
    from luthier.models.generate import TorchGenerator

BATCH_TOKENS = 2048
"""Tokens that go through the model at once, padding counted."""
LONGEST_TREE = 2048
"""Tokens of context and continuations that share one row: its mask grows with their square."""
HEAD_ROWS = 128
"""Places whose logits exist at the same time."""
DIFFERENCE = 1e-3
"""Nats a token by which a shared row may differ from rows of their own, in fp32."""


class ScoringTokenizer(TextTokenizer, Protocol):
    """A tokenizer that also says what it puts before a plain text."""

    prefix_ids: tuple[int, ...]
    special_tokens: dict[str, str]


@dataclass(frozen=True)
class _Row:
    """One context with the continuations that are scored after it, and where each belongs."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    places: tuple[int, ...]

    @property
    def size(self) -> int:
        return len(self.context) + sum(len(one) - 1 for one in self.continuations)


class TorchScorer:
    """A `Scorer` over a model in this process.

    Tokens are split as lm-evaluation-harness splits them: spaces at a context's end belong to the
    continuation, and the continuation's tokens are those that the whole text has beyond the context's.
    Continuations of one context share one row, in which each sees the context and itself alone, so a
    context is computed once whatever the number of choices; models for which that gives other figures
    (checked on the first row) get a row for each.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: ScoringTokenizer,
        *,
        label: str,
        weights_digest: str,
        scope: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.label, self.weights_digest, self.scope = label, weights_digest, scope
        self.device = next(model.parameters()).device
        head = head_of(model)
        self.head: Head | None = head if head is not None and head_is_right(model, head) else None
        kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._shares: bool | None = None if kinds == {"full_attention"} else False

    @torch.inference_mode()
    def score(
        self, pairs: Sequence[tuple[str, str]], *, progress: Progress | None = None
    ) -> list[Likelihood]:
        """Likelihood of each continuation after its context, in the order of pairs."""
        found: list[Likelihood | None] = [None] * len(pairs)
        done = 0
        self.model.eval()
        with self.scope():
            rows = self._rows([self._encoded(context, rest) for context, rest in pairs])
            # Without a head of closed form every place has logits: then one row at a time.
            for batch in _batches(rows, BATCH_TOKENS if self.head is not None else 1):
                for row, likelihoods in zip(batch, self._batch(batch), strict=True):
                    for place, one in zip(row.places, likelihoods, strict=True):
                        found[place] = one
                    done += len(row.places)
                if progress is not None:
                    progress(done, len(pairs))
        return [one for one in found if one is not None]

    def _encoded(self, context: str, rest: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        tokenizer = self.tokenizer
        if not context:
            whole = tokenizer.encode(rest)
            first = list(tokenizer.prefix_ids[:1]) or [self._begin()]
            if whole[:1] == first and len(whole) > 1:
                whole = whole[1:]
            return self._cut(tuple(first), tuple(whole))
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, rest = context[:-spaces], context[-spaces:] + rest
        before = [*tokenizer.prefix_ids, *tokenizer.encode(context)]
        whole = [*tokenizer.prefix_ids, *tokenizer.encode(context + rest)]
        return self._cut(tuple(before), tuple(whole[len(before) :]))

    def _begin(self) -> int:
        """What a text begins after where the tokenizer puts nothing there: bos, else an end token."""
        bos = self.tokenizer.special_tokens.get("bos_token")
        if bos is not None:
            ids = self.tokenizer.encode(bos)
            if len(ids) == 1:
                return ids[0]
        return min(self.tokenizer.eos_ids, default=self.tokenizer.pad_id)

    def _cut(
        self, context: tuple[int, ...], rest: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The beginning goes where the model has no room for all; the last token needs no place."""
        if self.context is None:
            return context, rest
        rest = rest[-self.context :]
        kept = self.context + 1 - len(rest)
        return context[-kept:], rest

    def _rows(self, encoded: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[_Row]:
        """Rows in the order of length; continuations of equal contexts in one where the model allows it."""
        together: dict[tuple[int, ...], list[int]] = {}
        for place, (context, _) in enumerate(encoded):
            together.setdefault(context, []).append(place)
        rows = []
        for context, places in together.items():
            row = _Row(context, tuple(encoded[place][1] for place in places), tuple(places))
            alone = [_Row(context, (encoded[place][1],), (place,)) for place in places]
            one_token = all(len(one) <= 1 for one in row.continuations)
            if len(places) == 1 or one_token or (row.size <= LONGEST_TREE and self._may_share(row, alone)):
                rows.append(row)
            else:
                rows += alone
        return sorted(rows, key=lambda row: -row.size)

    def _may_share(self, row: _Row, alone: list[_Row]) -> bool:
        if self._shares is None:
            [shared] = self._batch([row])
            apart = [self._batch([one])[0][0] for one in alone]
            half = self.model.dtype in (torch.bfloat16, torch.float16)
            most = DIFFERENCE * (100 if half else 1)
            self._shares = all(
                abs(a.nats - b.nats) <= most * max(a.tokens, 1) for a, b in zip(shared, apart, strict=True)
            )
        return self._shares

    def _batch(self, rows: Sequence[_Row]) -> list[list[Likelihood]]:
        """Likelihoods of every continuation of every row."""
        longest = max(row.size for row in rows)
        ids = torch.full((len(rows), longest), self.tokenizer.pad_id, dtype=torch.long)
        places = torch.zeros(len(rows), longest, dtype=torch.long)
        trees = any(sum(len(one) > 1 for one in row.continuations) > 1 for row in rows)
        seen = torch.zeros(len(rows), longest, longest, dtype=torch.bool) if trees else None
        keep = torch.zeros(len(rows), longest, dtype=torch.long)
        wanted: list[tuple[int, int]] = []
        targets: list[int] = []
        for number, row in enumerate(rows):
            start = len(row.context)
            ids[number, :start] = torch.tensor(row.context)
            places[number, :start] = torch.arange(start)
            keep[number, : row.size] = 1
            if seen is not None:
                seen[number, :start, :start] = torch.ones(start, start, dtype=torch.bool).tril()
                seen[number].fill_diagonal_(True)
            at = start
            for one in row.continuations:
                inner = len(one) - 1
                end = at + max(inner, 0)
                if inner > 0:
                    ids[number, at:end] = torch.tensor(one[:-1])
                    places[number, at:end] = torch.arange(start, start + inner)
                    if seen is not None:
                        seen[number, at:end, :start] = True
                        seen[number, at:end, at:end] = torch.ones(inner, inner, dtype=torch.bool).tril()
                if one:
                    wanted += [(number, start - 1), *((number, place) for place in range(at, end))]
                    targets += one
                at = end
        mask = keep if seen is None else self._additive(seen)
        logs, best = self._logs(ids, places, mask, wanted, targets)
        found, at = [], 0
        for row in rows:
            likelihoods = []
            for one in row.continuations:
                part = slice(at, at + len(one))
                likelihoods.append(Likelihood(sum(logs[part]), len(one), all(best[part])))
                at += len(one)
            found.append(likelihoods)
        return found

    def _additive(self, seen: Tensor) -> Tensor:
        dtype = self.model.dtype
        mask = torch.zeros(seen.shape, dtype=dtype)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def _logs(
        self, ids: Tensor, places: Tensor, mask: Tensor, wanted: list[tuple[int, int]], targets: list[int]
    ) -> tuple[list[float], list[bool]]:
        """Log-probability of each target after its place, and whether it is the likeliest."""
        if not wanted:
            return [], []
        inputs = {
            "input_ids": ids.to(self.device),
            "position_ids": places.to(self.device),
            "attention_mask": mask.to(self.device),
            "use_cache": False,
        }
        rows, columns = torch.tensor(wanted, device=self.device).T
        aims = torch.tensor(targets, device=self.device)
        head = self.head
        if head is None:
            states = self.model(**inputs).logits[rows, columns]
        else:
            states = self.model.base_model(**inputs).last_hidden_state[rows, columns]
        logs: list[float] = []
        best: list[bool] = []
        for start in range(0, len(targets), HEAD_ROWS):
            part, aim = states[start : start + HEAD_ROWS], aims[start : start + HEAD_ROWS]
            logits = part.float() if head is None else head(part).float()
            # Not log_softmax: with a wide vocabulary a second table of logits is what memory is short of.
            chosen = logits.gather(1, aim[:, None]).squeeze(1) - logits.logsumexp(-1)
            logs += chosen.double().tolist()
            best += (logits.argmax(-1) == aim).tolist()
        return logs, best


def scorer_of(generator: TorchGenerator, tokenizer: ScoringTokenizer) -> TorchScorer:
    """The same model, under the same name and scope, as a scorer."""
    return TorchScorer(
        generator.model,
        tokenizer,
        label=generator.label,
        weights_digest=generator.weights_digest,
        scope=generator.scope,
    )


def _batches(rows: Sequence[_Row], most: int) -> list[list[_Row]]:
    """Rows, longest first, in batches of at most that many tokens with their padding, or of one row."""
    batches: list[list[_Row]] = []
    for row in rows:
        if batches and (len(batches[-1]) + 1) * batches[-1][0].size <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
