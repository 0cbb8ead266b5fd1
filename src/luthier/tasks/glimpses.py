"""What the model says while it is trained: a few held-out prompts answered at each evaluation.

Cheap by construction: three short greedy answers at once, no draw of random numbers, and none of it once
answers have taken more than a small share of the training's time. Nothing is answered where layers are
compiled (another graph would be built for it) or where several processes train together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from luthier.errors import LuthierError
from luthier.models.generate import TorchGenerator
from luthier.schema.protocols import TokenRow

ROWS, TOKENS = 3, 48
"""Prompts that are answered, and the longest answer."""
SHARE = 0.03
"""Of the training's time that answers may take; the first ones are always given."""
LONGEST = 512
"""Tokens of a prompt: longer ones are left to the evaluation at the end."""
Told = Callable[[dict[str, Any]], None]


class Glimpses:
    """Listens to a training and answers at its evaluations: passes every event on, adds ``kind: samples``."""

    def __init__(self, model: Any, tokenizer: Any, rows: Sequence[Any], told: Told, *, most: int) -> None:
        self.model, self.tokenizer, self.told = model, tokenizer, told
        self.most = min(TOKENS, most)
        self.rows = list(islice((found for row in rows if (found := _split(row)) is not None), ROWS))
        self.plain = model.config._attn_implementation
        self.began, self.spent, self.last = time.perf_counter(), 0.0, 0.0

    def __call__(self, values: dict[str, Any]) -> None:
        self.told(values)
        if values["kind"] != "validation" or not self.rows:
            return
        began = time.perf_counter()
        if self.last and self.spent + self.last > SHARE * (began - self.began):
            return
        try:
            answers = self._answer()
        except LuthierError as error:  # a prompt that leaves no room in the context, say
            self.rows = []
            self.told({"kind": "note", "text": f"no answers at evaluations: {error}"})
            return
        self.last = time.perf_counter() - began
        self.spent += self.last
        samples = [
            {"row": row.id, "prompt": prompt, "expected": expected, "answer": answer}
            for (row, _, prompt, expected), answer in zip(self._shown(), answers, strict=True)
        ]
        self.told({"kind": "samples", "step": values["step"], "seconds": self.last, "samples": samples})

    def _shown(self) -> Iterator[tuple[TokenRow, list[int], str, str]]:
        for row, length in self.rows:
            ids = row.ids.tolist()
            yield row, ids[:length], self.tokenizer.decode(ids[:length]), self.tokenizer.decode(ids[length:])

    def _answer(self) -> list[str]:
        """Greedy answers of the weights as they are now; the model is left as it was found."""
        with as_plain_model(self.model, self.plain):
            generator = TorchGenerator(self.model, self.tokenizer, label="now", weights_digest="")
            found = generator.greedy([ids for _, ids, _, _ in self._shown()], max_new_tokens=self.most)
        return [self.tokenizer.decode(one.ids) for one in found]


@contextmanager
def as_plain_model(model: Any, attention: str) -> Iterator[None]:
    """Within the block the model answers as outside a training: no dropout, the attention of its own."""
    modes = {module: module.training for module in model.modules()}
    within = model.config._attn_implementation
    model.config._attn_implementation = attention
    try:
        yield
    finally:
        model.config._attn_implementation = within
        for module, mode in modes.items():
            module.training = mode


def _split(row: Any) -> tuple[TokenRow, int] | None:
    """A row and where its last answer begins; of a plain text its second half is the answer."""
    if not isinstance(row, TokenRow) or row.images or len(row.ids) < 2:
        return None
    trained = row.trained.nonzero()[0]
    if not len(trained):
        return None
    place = int(trained[-1])
    while place > 0 and row.trained[place - 1]:
        place -= 1
    if place == 0:
        place = len(row.ids) // 2
    return (row, place) if 0 < place <= LONGEST else None
