"""Tune a model that sees on chats with images: LoRA on its language part, its tower frozen or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luthier.data.batching import Step
from luthier.data.collate import collate
from luthier.data.image_tokens import ImageTokens
from luthier.data.images import image_parts
from luthier.data.seeing import SeeingTokenizer, load_seeing, measure
from luthier.data.store import row_lengths
from luthier.models.generate import Asked, TorchGenerator
from luthier.models.heads import Head, head_is_right, head_of
from luthier.models.load import check_model_directory, quiet
from luthier.models.lora import adapter_paths
from luthier.models.vision import (
    Pixels,
    below,
    image_processor,
    joined,
    load_seeing_model,
    parts_of,
    read_pixels,
    token_kinds,
)
from luthier.schema.protocols import Generated, Message, Progress, Splits, TokenRow
from luthier.schema.recipe import Lora, VisionChoice
from luthier.tasks.batches import RowBatches
from luthier.tasks.chat import ChatTask
from luthier.tasks.planned import by_length
from luthier.training.losses import linear_cross_entropy
from luthier.training.objective import IGNORED, Loss, MicroBatch, Objective, full_logits_loss

FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""What a saved model that sees needs beside tokenizer and weights."""
AT_ONCE = 8
"""Prompts with images that are answered at once where the recipe does not say."""


@dataclass(frozen=True)
class VisionBatch:
    """Rows with images, padded on the right. Tensors are [rows, length]; pixels: those of each row."""

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor
    pixels: tuple[Pixels, ...]

    @property
    def pieces(self) -> int:
        """How many things it can be cut between: its rows."""
        return len(self.pixels)

    def cut(self, most: int) -> list[VisionBatch]:
        """Batches of at most so many of the rows, in order."""
        found = []
        for start in range(0, self.pieces, most):
            rows = slice(start, start + most)
            width = max(1, int((self.document_ids[rows] > 0).sum(1).max()))
            found.append(
                VisionBatch(
                    self.input_ids[rows, :width].clone(),
                    self.labels[rows, :width].clone(),
                    self.position_ids[rows, :width].clone(),
                    self.document_ids[rows, :width].clone(),
                    self.pixels[rows],
                )
            )
        return found

    def to(self, device: torch.device) -> VisionBatch:
        """The batch on that device."""
        return VisionBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            self.document_ids.to(device),
            tuple({name: value.to(device) for name, value in row.items()} for row in self.pixels),
        )


@dataclass(frozen=True)
class Eyes:
    """Image files into pixels, by the model's own processor and the run's settings."""

    processor: Any
    layout: ImageTokens

    def __call__(self, files: Sequence[str]) -> Pixels:
        return read_pixels(self.processor, files, self.layout.settings) if files else {}


def vision_batch(rows: Sequence[TokenRow], eyes: Eyes, *, pad_id: int) -> VisionBatch:
    """Rows side by side with their pixels. Errors: FileProblem for an image that cannot be decoded."""
    batch = collate([[row] for row in rows], pad_id=pad_id)
    pixels = tuple(eyes(row.images) for row in rows)
    return VisionBatch(batch.input_ids, batch.labels, batch.position_ids, batch.document_ids, pixels)


class VisionBatches(RowBatches):
    """A `training.source.BatchSource` over rows with images; pixels are read when a step needs them."""

    def __init__(self, rows: Sequence[TokenRow], eyes: Eyes, **settings: Any) -> None:
        super().__init__(rows, packing=False, **settings)
        self.eyes = eyes

    def batches(self, epoch: int, step: int) -> list[VisionBatch]:  # type: ignore[override]
        chosen: Step = self.plan(epoch)[step]
        return [
            vision_batch(
                [self.tokens[row] for packed in micro for row in packed], self.eyes, pad_id=self.pad_id
            )
            for micro in chosen
        ]


class HeldOut(Sequence[Any]):
    """Validation batches; pixels are read when a batch is asked for."""

    def __init__(
        self, rows: Sequence[TokenRow], groups: Sequence[Sequence[int]], eyes: Eyes, pad_id: int
    ) -> None:
        self.rows, self.groups, self.eyes, self.pad_id = rows, groups, eyes, pad_id

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        return vision_batch([self.rows[row] for row in self.groups[index]], self.eyes, pad_id=self.pad_id)

    def __len__(self) -> int:
        return len(self.groups)


@dataclass(frozen=True)
class VisionObjective:
    """Sum of cross-entropies of the trained tokens of rows with images, in nats."""

    head: Head | None
    soft_id: int

    def scope(self, model: Any) -> AbstractContextManager[None]:
        del model
        return nullcontext()

    def weight(self, batch: MicroBatch) -> float:
        return float((batch.labels[:, 1:] != IGNORED).sum())

    def __call__(self, model: Any, batch: MicroBatch) -> Loss:
        assert isinstance(batch, VisionBatch)
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": (batch.document_ids > 0).long(),
            "use_cache": False,
            **joined(batch.pixels),
            **token_kinds(model, batch.input_ids, self.soft_id),
        }
        weight = self.weight(batch)
        if self.head is None:
            return Loss(full_logits_loss(model(**inputs).logits, batch.labels), weight)
        states: Tensor = model.base_model(**inputs).last_hidden_state
        trained = batch.labels[:, 1:] != IGNORED
        total = linear_cross_entropy(
            states[:, :-1][trained],
            self.head.weight,
            batch.labels[:, 1:][trained],
            multiplier=self.head.multiplier,
            softcap=self.head.softcap,
        )
        return Loss(total, weight)


class SeeingGenerator(TorchGenerator):
    """Greedy answers to chats with images; chats of text alone are answered as by any model."""

    eyes: Eyes

    def answers(self, asked: Sequence[Asked], most: int, progress: Progress | None = None) -> list[Generated]:
        """As every model's. Errors: DataError, FileProblem for images that are gone."""
        seeing = [place for place, (chat, _) in enumerate(asked) if image_parts(chat)]
        blind = [place for place in range(len(asked)) if place not in set(seeing)]
        found: dict[int, Generated] = {}
        if blind:
            found |= dict(zip(blind, super().answers([asked[place] for place in blind], most), strict=True))
        at_once = self.batch_size or AT_ONCE
        with self.scope():
            for start in range(0, len(seeing), at_once):
                places = seeing[start : start + at_once]
                part = [asked[place] for place in places]
                found |= dict(zip(places, self._seen(part, most), strict=True))
                if progress is not None:
                    progress(len(blind) + start + len(places), len(asked))
        return [found[place] for place in range(len(asked))]

    @torch.inference_mode()
    def _seen(self, part: Sequence[Asked], most: int) -> Iterator[Generated]:
        """Answers to one batch, padded on the left."""
        tokenizer = self.tokenizer
        assert isinstance(tokenizer, SeeingTokenizer)
        prompts = [
            tokenizer.encode(tokenizer.render(chat, tools=tools, add_generation_prompt=True))
            for chat, tools in part
        ]
        longest = max(map(len, prompts))
        ids = torch.tensor([[tokenizer.pad_id] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        pixels = joined([self.eyes([one["image"] for one in image_parts(chat)]) for chat, _ in part])
        inputs = {"input_ids": ids, "attention_mask": mask, **pixels}
        inputs |= token_kinds(self.model, ids, tokenizer.soft_id)
        with quiet():
            out = self.model.generate(
                **{name: value.to(self.device) for name, value in inputs.items()},
                max_new_tokens=most,
                do_sample=False,
                pad_token_id=tokenizer.pad_id,
                eos_token_id=sorted(tokenizer.eos_ids) or None,
            )
        for row in out[:, longest:].tolist():
            ends = [place for place, token in enumerate(row) if token in tokenizer.eos_ids]
            kept = row[: ends[0]] if ends else row
            yield Generated(tokenizer.decode(kept), tuple(kept), bool(ends))


class VisionTask(ChatTask):
    """Chats with images: cross-entropy of the assistant's tokens, judged by greedy answers."""

    @property
    def choice(self) -> VisionChoice:
        """The recipe's section."""
        return self.recipe.vision or VisionChoice()

    @property
    def seeing(self) -> SeeingTokenizer:
        """The tokenizer, which lays images out."""
        assert isinstance(self.tokenizer, SeeingTokenizer)
        return self.tokenizer

    def prepare(self) -> None:
        self.eyes = Eyes(image_processor(self.directory), self.seeing.images)

    def load_model(self) -> Any:
        choice = self.recipe.model
        assert choice.dtype is not None
        return load_seeing_model(
            self.directory, dtype=choice.dtype, device=self.device, attention=choice.attention
        )

    def fresh_modules(self) -> tuple[str, ...]:
        return parts_of(self.model)[2] if self.choice.projector else ()

    def adapted_modules(self) -> frozenset[str] | None:
        method = self.recipe.method
        assert isinstance(method, Lora)
        language, towers, projectors = parts_of(self.model)
        parts = (language, *towers) if self.choice.tower == "adapters" else (language,)
        return frozenset(
            path
            for path in adapter_paths(self.model, method)
            if below(path, parts) and not below(path, projectors)
        )

    def objective(self) -> Objective:
        head = head_of(self.model)
        if head is not None and not head_is_right(self.model, head):
            head = None
        return VisionObjective(head, self.seeing.soft_id)

    def source(self, splits: Splits) -> VisionBatches:
        choice = self.recipe.training
        return VisionBatches(
            splits.train,
            self.eyes,
            batch_size=choice.batch_size,
            micro_batch_size=choice.micro_batch_size,
            sequence_length=choice.sequence_length,
            seed=self.recipe.seed,
            pad_id=self.tokenizer.pad_id,
        )

    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        choice = self.recipe.training
        assert choice.micro_batch_size is not None
        assert choice.sequence_length is not None
        groups = by_length(row_lengths(splits.validation), choice.micro_batch_size * choice.sequence_length)
        return HeldOut(splits.validation, groups, self.eyes, self.tokenizer.pad_id)

    def save_extra(self, directory: Path) -> None:
        copy_settings(self.directory, directory)

    def _generator(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchGenerator:
        plain = super()._generator(label, digest, scope)
        found = SeeingGenerator(
            self.model,
            self.tokenizer,
            label=label,
            weights_digest=plain.weights_digest,
            batch_size=plain.batch_size,
            scope=scope,
        )
        found.eyes = self.eyes
        return found


def copy_settings(source: Path, target: Path) -> None:
    """What says how images are read, byte for byte."""
    for name in FILES:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def answer_about(
    folder: Path,
    asked: Sequence[dict[str, Any]],
    *,
    device: str,
    max_new_tokens: int = 256,
    system: str | None = None,
    max_pixels: int | None = None,
) -> list[dict[str, Any]]:
    """Answers of a saved model to questions about images: ``{"text", "images": [files]}`` each.

    Errors: DataError for an image that cannot be read, Unsupported for a model that does not see.
    """
    tokenizer = load_seeing(folder, max_pixels=max_pixels)
    settings = check_model_directory(folder)
    stored = str(settings.get("dtype") or settings.get("torch_dtype") or "float32")
    model = load_seeing_model(folder, dtype="bfloat16" if stored == "bfloat16" else "float32", device=device)
    generator = SeeingGenerator(model, tokenizer, label=folder.name, weights_digest="")
    generator.eyes = Eyes(image_processor(folder), tokenizer.images)
    chats = [_question(one["text"], one["images"], system) for one in asked]
    found = generator.generate(chats, max_new_tokens=max_new_tokens)
    return [{"text": one.text, "stopped": one.stopped} for one in found]


def _question(text: str, images: Sequence[str], system: str | None) -> list[Message]:
    parts: list[dict[str, Any]] = []
    for file in images:
        width, height = measure(Path(file))
        parts.append({"type": "image", "image": file, "width": width, "height": height})
    turns: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*turns, {"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
