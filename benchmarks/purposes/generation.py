"""Chats and pairs of answers trained by Luthier and by TRL's SFTTrainer and DPOTrainer; see ``run.py``.

LoRA of rank 16 on all linear layers, merged by each tool and judged by the same code in fp32. Chats:
questions as they were spoken are to be put fluently (disfl_qa). Pairs: the best and the worst ranked
answer (oasst1_en).
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from side_by_side import DEVICE, Job, Row, clock, fitted, read, trainer_words, training_words

from luthier.data.load import load_splits
from luthier.data.preferences import load_preferences
from luthier.data.tokenizer import load_tokenizer
from luthier.schema.recipe import Recipe
from luthier.tasks.chat import ChatTask
from luthier.tasks.preference import PreferenceTask

RANK, BETA, LENGTH = 16, 0.1, 768
ASK = "Rewrite the question so that it reads fluently. Answer with the question alone.\n\n"
Asked = tuple[list[Row], str]
"""Messages before an answer, and the answer."""


def loaded(folder: Path) -> tuple[Any, Any]:
    """A saved decoder as everybody loads it, in fp32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def written(tokenizer: Any, messages: list[Row]) -> str:
    """A prompt as the chat template writes it."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


@torch.inference_mode()
def log_probs(model: Any, tokenizer: Any, asked: Sequence[Asked]) -> list[tuple[float, int]]:
    """Log-probability and tokens of each answer with its end, in nats."""
    pairs = []
    for messages, answer in asked:
        ids = tokenizer(written(tokenizer, messages), add_special_tokens=False)["input_ids"]
        own = tokenizer(answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        pairs.append((ids, own))
    order = sorted(range(len(pairs)), key=lambda place: sum(map(len, pairs[place])))
    found: list[tuple[float, int]] = [(0.0, 0)] * len(pairs)
    for start in range(0, len(order), 8):
        places = order[start : start + 8]
        rows = [torch.tensor([*pairs[place][0], *pairs[place][1]]) for place in places]
        batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(DEVICE)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        each = model(input_ids=batch, attention_mask=mask.to(DEVICE)).logits[:, :-1].float().log_softmax(-1)
        each = each.gather(2, batch[:, 1:, None]).squeeze(2).cpu()
        for row, place in enumerate(places):
            before, own = (len(part) for part in pairs[place])
            found[place] = (float(each[row, before - 1 : before - 1 + own].sum()), own)
    return found


@torch.inference_mode()
def answered(model: Any, tokenizer: Any, asked: Sequence[Asked]) -> list[str]:
    """Greedy answers."""
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found = []
    for start in range(0, len(asked), 100):
        texts = [written(tokenizer, messages) for messages, _ in asked[start : start + 100]]
        batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(DEVICE)
        out = model.generate(**batch, max_new_tokens=48, do_sample=False)
        new = out[:, batch["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(new, skip_special_tokens=True)
    return found


def rewriting(held: list[Row]) -> Callable[[Path], dict[str, float]]:
    """Cross-entropy of the held-out answers, and how many are answered exactly."""
    asked = [(row["messages"][:-1], row["messages"][-1]["content"]) for row in held]

    def judge(folder: Path) -> dict[str, float]:
        model, tokenizer = loaded(folder)
        told = log_probs(model, tokenizer, asked)
        given = answered(model, tokenizer, asked)
        right = [text.strip() == answer for text, (_, answer) in zip(given, asked, strict=True)]
        nats = -sum(total for total, _ in told) / sum(count for _, count in told)
        return {"nats": nats, "exact": sum(right) / len(right)}

    return judge


def preferring(held: list[Row], base: Path) -> Callable[[Path], dict[str, float]]:
    """Share of held-out pairs whose chosen answer gets the higher reward, and the mean margin."""
    asked = [(row["prompt"], row[side]) for row in held for side in ("chosen", "rejected")]

    @cache
    def untouched() -> list[tuple[float, int]]:
        return log_probs(*loaded(base), asked)

    def judge(folder: Path) -> dict[str, float]:
        told = log_probs(*loaded(folder), asked)
        gains = [after - before for (after, _), (before, _) in zip(told, untouched(), strict=True)]
        margins = [
            BETA * (chosen - rejected) for chosen, rejected in zip(gains[::2], gains[1::2], strict=True)
        ]
        chosen = told[::2]
        return {
            "accuracy": sum(margin > 0 for margin in margins) / len(margins),
            "margin": sum(margins) / len(margins),
            "dpo": sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins),
            "chosen_nats": -sum(total for total, _ in chosen) / sum(count for _, count in chosen),
        }

    return judge


def jobs(data: Path, model: Path, tiny: bool) -> list[Job]:
    """Cuts: 2,000 questions train and 200 are held out; pairs of up to 768 tokens, 134 of them held out."""
    chats = [
        {
            "messages": [
                {"role": "user", "content": ASK + row["anchor"]},
                {"role": "assistant", "content": row["positive"]},
            ]
        }
        for row in read(data / "disfl_qa" / "train.jsonl")
    ]
    random.Random(0).shuffle(chats)
    tokenizer = load_tokenizer(model)

    def fits(row: Row) -> bool:
        sides = [[*row["prompt"], {"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")]
        return all(len(tokenizer.encode(tokenizer.render(side))) <= LENGTH for side in sides)

    pairs, held = (
        [
            {name: row[name] for name in ("prompt", "chosen", "rejected")}
            for row in read(data / "oasst1_en" / f"preferences_{split}.jsonl")
            if fits(row) and row["chosen"].strip() != row["rejected"].strip()
        ]
        for split in ("train", "validation")
    )
    cut, batch = (6, 2) if tiny else (200, 16)
    train = chats[200:2200][: 12 if tiny else None]
    # Few validation pairs are this short: more are taken from those that would train.
    pairs, held = (pairs[:8], held[:4]) if tiny else (pairs[100:], held + pairs[:100])
    words = {"judges_base": True}
    return [
        Job(
            "chat",
            "chat",
            train,
            "sft",
            batch,
            2 if tiny else 60,
            5e-4,
            256,
            rewriting(chats[:cut]),
            **words,
        ),
        Job(
            "preference",
            "chat",
            pairs,
            "dpo",
            2 if tiny else 8,
            2 if tiny else 40,
            5e-5,
            LENGTH,
            preferring(held, model),
            **words,
        ),
    ]


def ours(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with Luthier; the merged folder is out."""
    rows = out.parent / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in job.rows))
    pairs = job.loss == "dpo"
    recipe = Recipe.model_validate(
        {
            "task": "chat",
            "model": {"id": str(model), "dtype": dtype, "attention": "sdpa"},
            "method": {"name": "lora", "rank": RANK, "alpha": 2 * RANK},
            "data": {
                "train": str(rows),
                "test": str(rows),
                "validation_share": 0,
                "packing": None if pairs else False,
            },
            "training": {**training_words(job), "activation_checkpointing": "none"},
            "preference": {"loss": "dpo", "beta": BETA} if pairs else None,
            "seed": seed,
        }
    )
    tokenizer = load_tokenizer(model)
    load = load_preferences if pairs else load_splits
    data = load(recipe, tokenizer, base=Path("/"), sequence_length=job.length)
    kind = PreferenceTask if pairs else ChatTask
    return fitted(lambda: kind(recipe, model, tokenizer, device=DEVICE), data.splits, out, job)


def theirs(job: Job, model: Path, seed: int, out: Path, dtype: str) -> dict[str, float]:
    """Train with TRL, both answers and all activations in memory as ours; the merged folder is out."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    torch.manual_seed(seed)
    words = trainer_words(job, seed, out, dtype) | {
        "per_device_train_batch_size": job.batch_size,
        "gradient_checkpointing": False,
        "max_length": job.length,
    }
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    with clock() as took:
        model_ = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        shared = {"model": model_, "processing_class": tokenizer, "peft_config": lora}
        began = time.perf_counter()
        if job.loss == "dpo":
            rows = [
                {"prompt": row["prompt"]}
                | {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
                for row in job.rows
            ]
            trainer = DPOTrainer(
                args=DPOConfig(beta=BETA, **words), train_dataset=Dataset.from_list(rows), **shared
            )
        else:
            rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in job.rows]
            trainer = SFTTrainer(args=SFTConfig(**words), train_dataset=Dataset.from_list(rows), **shared)
        trainer.train()
        trained = time.perf_counter() - began
    trainer.model.merge_and_unload().save_pretrained(out)
    tokenizer.save_pretrained(out)
    return {**took, "train_seconds": trained}
