"""Text generation: completion of prompts and continued or first pretraining on plain text.

Prompts with an expected completion are answered greedily, as chats are. Plain texts have nothing to
answer: base and tuned model are judged by the cross-entropy that they give the held-out text.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luthier.data.collate import collate
from luthier.data.infill import marks_of
from luthier.data.render import prompt_ids, render_rows
from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DataError
from luthier.evaluation.likelihood import SHOWN, text_result
from luthier.models.generate import TorchGenerator
from luthier.models.load import check_model_directory, load_causal, quiet
from luthier.schema.protocols import ChatRow, Generated, Message, Progress, Splits, TokenRow
from luthier.schema.results import EvalResult, ScoredRow
from luthier.tasks.base import Rows, Told
from luthier.tasks.causal import causal_objective
from luthier.tasks.chat import ChatTask
from luthier.training.objective import to_device


class PlainGenerator(TorchGenerator):
    """Continues texts where the model has no chat template: prompt and answer are joined as they are."""

    def generate(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Sequence[dict[str, Any]] | None] | None = None,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Greedy continuations in the order of chats, whose messages are texts."""
        del tools
        plain = [[{**message, "role": "text"} for message in chat] for chat in chats]
        prompts = [prompt_ids(chat, self.tokenizer) for chat in plain]
        found = self.greedy(prompts, max_new_tokens=max_new_tokens, progress=progress)
        return [Generated(self.tokenizer.decode(one.ids), one.ids, one.stopped) for one in found]


class TextTask(ChatTask):
    """Texts and completions: next-token cross-entropy of every trained token."""

    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Completions of the untouched model, or the cross-entropy that it gives the held-out texts."""
        found = super().judge_base(splits, _asked(rows), told=told, cache_dir=cache_dir)
        return found | self._judge_texts(self.base_generator(), _texts(rows), told)

    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """The same of the trained model."""
        found = super().judge_tuned(run_directory, _asked(rows), told=told, cache_dir=cache_dir)
        return found | self._judge_texts(self.tuned_generator(run_directory), _texts(rows), told)

    def _judge_texts(self, generator: TorchGenerator, rows: Rows, told: Told) -> dict[str, EvalResult]:
        return {
            name: self._judge_text(generator, part, name, told(f"{generator.label} on {name}"))
            for name, part in rows.items()
        }

    def _judge_text(
        self, generator: TorchGenerator, rows: Sequence[ChatRow], split: str, progress: Progress
    ) -> EvalResult:
        began = time.perf_counter()
        limit = self.recipe.training.sequence_length
        assert limit is not None
        seen: Counter[str] = Counter()
        scored = []
        tokens = list(render_rows(rows, self.tokenizer, "all"))
        objective = causal_objective(self.model)
        with generator.scope(), objective.scope(self.model):
            for done, (row, rendered) in enumerate(zip(rows, tokens, strict=True), 1):
                nats, count, size = self._nats(objective, rendered, limit)
                seen[row.id] += 1
                scored.append(_scored(row, nats, count, size, again=seen[row.id]))
                progress(done, len(rows))
        if not any(row.figures["tokens"] for row in scored):
            raise DataError(f"the texts of {split} are too short to predict anything in", file=rows[0].file)
        result = text_result(
            scored,
            split=split,
            model=generator.label,
            weights_digest=generator.weights_digest,
            settings={"sequence_length": limit},
        )
        return result.model_copy(update={"seconds": time.perf_counter() - began})

    @torch.inference_mode()
    def _nats(self, objective: Any, row: TokenRow, limit: int) -> tuple[float, int, int]:
        """Cross-entropy of a text in pieces of at most ``limit`` tokens: nats, tokens, bytes.

        The first token of a piece has nothing before it and is not counted.
        """
        nats, count, size = 0.0, 0, 0
        for start in range(0, len(row.ids), limit):
            ids = row.ids[start : start + limit]
            if len(ids) < 2:
                continue
            piece = replace(row, ids=ids, trained=row.trained[start : start + limit])
            batch = to_device(collate([[piece]], pad_id=self.tokenizer.pad_id), self.device)
            loss = objective(self.model, batch)
            nats += float(loss.total)
            count += int(loss.weight)
            size += len(self.tokenizer.decode(ids[1:].tolist(), skip_special=False).encode())
        return nats, count, size

    def _generator(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchGenerator:
        found = super()._generator(label, digest, scope)
        if self.tokenizer.has_chat_template:
            return found
        name = hashlib.sha256(f"{found.weights_digest}\nplain text".encode()).hexdigest()
        return PlainGenerator(
            self.model,
            self.tokenizer,
            label=label,
            weights_digest=name,
            batch_size=found.batch_size,
            scope=scope,
        )


def continue_texts(
    folder: Path,
    texts: Sequence[str],
    *,
    device: str,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    seed: int = 0,
    suffix: str | None = None,
) -> list[dict[str, Any]]:
    """Continuations of texts by a saved model, without a template, to the end of its context at most.

    temperature: 0 takes the likeliest token each time; above that tokens are drawn, by seed. suffix: what
    follows the gap that is to be filled. Raises Unsupported where the model has no marks for a gap.
    """
    settings = check_model_directory(folder)
    stored = str(settings.get("dtype") or settings.get("torch_dtype") or "float32")
    model = load_causal(folder, dtype="bfloat16" if stored == "bfloat16" else "float32", device=device)
    tokenizer = load_tokenizer(folder)
    ends = sorted(tokenizer.eos_ids)
    torch.manual_seed(seed)
    found = []
    marks = None if suffix is None else marks_of(tokenizer)
    for beginning in texts:
        text = beginning if marks is None else marks.prompt(beginning, suffix or "")
        ids = [*tokenizer.prefix_ids, *tokenizer.encode(text)]
        context = getattr(model.config, "max_position_embeddings", None)
        room = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
        if room < 1:
            raise DataError(
                f"the text has {len(ids)} tokens and the model's context {context}: no room to continue",
                hint="give a shorter beginning",
            )
        drawn = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {}
        with torch.inference_mode(), quiet():
            out = model.generate(
                torch.tensor([ids], device=device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                max_new_tokens=room,
                pad_token_id=tokenizer.pad_id,
                eos_token_id=ends or None,
                **({"do_sample": False} | drawn),
            )
        new = out[0, len(ids) :].tolist()
        stopped = bool(new) and new[-1] in tokenizer.eos_ids
        found.append({"text": tokenizer.decode(new), "stopped": stopped})
    return found


def is_text(row: ChatRow) -> bool:
    """Whether a row is one plain text, without anything to answer."""
    return len(row.messages) == 1 and row.messages[0]["role"] == "text"


def _texts(rows: Rows) -> Rows:
    return {name: part for name, part in rows.items() if part and all(is_text(row) for row in part)}


def _asked(rows: Rows) -> Rows:
    texts = _texts(rows)
    return {name: part for name, part in rows.items() if name not in texts}


def _scored(row: ChatRow, nats: float, tokens: int, size: int, *, again: int) -> ScoredRow:
    text = str(row.messages[0]["content"])
    loss = nats / tokens if tokens else 0.0
    bits = nats / math.log(2) / size if size else 0.0
    return ScoredRow(
        id=row.id if again == 1 else f"{row.id}#{again}",
        prompt=text[:SHOWN] + ("..." if len(text) > SHOWN else ""),
        expected="",
        answer=f"{loss:.3f} nats a token",
        scores={"loss": loss, "bits_per_byte": bits},
        group=row.group,
        figures={"nats": nats, "tokens": float(tokens), "bytes": float(size)},
    )
