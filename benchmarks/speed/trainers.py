"""Steps of trainers that take a model from a folder: Unsloth, and TRL with Liger's kernels.

    python benchmarks/speed/trainers.py OUT.jsonl FOLDERS unsloth lora=2,3 lora+gc=16 qlora+gc=8
    python benchmarks/speed/trainers.py OUT.jsonl FOLDERS trl full=1,8,16 full+gc=8

FOLDERS: where models with random weights of the real shapes are written once, and read from. One trainer a
process, since both patch what they import. Each following word is a method with the micro-batches (rows of
2,048 tokens, no padding) to try; ``+gc``: with gradient checkpointing (Unsloth's own offloading one). lora
and qlora are Llama-3.1-8B with r=16 on all linear layers, full is Qwen2.5-0.5B and full3b Qwen2.5-3B, both in
bf16. Three warm-up steps, the median of four. The package flash_attn has no wheel for this torch, and this
script puts nothing in its place. Rows of h100_trainers.jsonl were taken with a package of that name on the
path, whose functions call the FlashAttention-2 inside torch; those of h200_unsloth.jsonl without one, so that
attention there is whatever Unsloth takes then (torch's scaled_dot_product_attention).
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "UNSLOTH_DISABLE_STATISTICS"):
    os.environ.setdefault(name, "1")
if "unsloth" in sys.argv:
    import unsloth  # patches what the lines below import

import torch  # noqa: E402 (after what patches it)
from datasets import Dataset, disable_progress_bars  # noqa: E402
from folders import folder_of  # noqa: E402
from shapes import SHAPES, flops  # noqa: E402
from transformers import AutoModelForCausalLM, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402

LENGTH, WARM, TIMED = 2048, 3, 4
DATASHEET = 989.4e12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS = {"lora": "llama-3.1-8b", "qlora": "llama-3.1-8b", "full": "qwen2.5-0.5b", "full3b": "qwen2.5-3b"}


class Clock(TrainerCallback):
    """When each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        del args, state, control
        torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def loaded(trainer: str, method: str, folder: Path, *, checkpointing: bool) -> tuple[Any, Any]:
    """Model and tokenizer as the trainer's documentation loads them."""
    if trainer == "trl":
        from transformers import AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cuda"})
        return model, AutoTokenizer.from_pretrained(folder)
    full = method.startswith("full")
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        str(folder), max_seq_length=LENGTH, load_in_4bit=method == "qlora", full_finetuning=full,
        local_files_only=True,
    )  # fmt: skip
    if not full:
        model = unsloth.FastLanguageModel.get_peft_model(
            model, r=16, target_modules=TARGETS, lora_alpha=32, lora_dropout=0, bias="none",
            use_gradient_checkpointing="unsloth" if checkpointing else False, random_state=0,
        )  # fmt: skip
    return model, tokenizer


def step_of(  # noqa: PLR0917
    trainer: str, model: Any, tokenizer: Any, folders: Path, method: str, rows: int, *, checkpointing: bool
) -> list[float]:
    """Seconds of the timed steps."""
    vocab = SHAPES[MODELS[method]].vocab_size
    ids = torch.randint(
        300, vocab, (rows * (WARM + TIMED + 1), LENGTH), generator=torch.Generator().manual_seed(0)
    )
    data: dict[str, Any] = {"input_ids": ids.tolist()}
    options: dict[str, Any] = {}
    if trainer == "unsloth":
        data |= {"labels": data["input_ids"], "attention_mask": [[1] * LENGTH] * len(ids)}
        unsloth.FastLanguageModel.for_training(
            model, use_gradient_checkpointing="unsloth" if checkpointing else False
        )
        if not checkpointing:
            model.gradient_checkpointing_disable()
            options = {"gradient_checkpointing": False}
        options |= {"optim": "adamw_torch_fused", "dataset_num_proc": 1}
    else:
        options = {"gradient_checkpointing": checkpointing, "use_liger_kernel": True}
    clock = Clock()
    SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(folders / "trained"),
            max_length=LENGTH,
            per_device_train_batch_size=rows,
            max_steps=WARM + TIMED,
            gradient_accumulation_steps=1,
            report_to="none",
            save_strategy="no",
            bf16=True,
            learning_rate=1e-5,
            disable_tqdm=True,
            logging_steps=100,
            **options,
        ),
        train_dataset=Dataset.from_dict(data),
        processing_class=tokenizer,
        callbacks=[clock],
    ).train()
    return [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)][WARM - 1 :]


def main() -> None:
    out, folders, trainer = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    disable_progress_bars()

    def put(record: dict[str, Any]) -> None:
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(json.dumps(record), flush=True)

    versions = {}
    for name in (
        "torch",
        "transformers",
        "peft",
        "trl",
        "unsloth",
        "unsloth_zoo",
        "liger-kernel",
        "bitsandbytes",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    put({"trainer": trainer, "card": torch.cuda.get_device_name(), "versions": versions})
    model, last = None, ""
    for word in sys.argv[4:]:
        named, _, sizes = word.partition("=")
        method, _, checkpointing = named.partition("+")
        name = MODELS[method]
        if named != last:  # Unsloth decides on checkpointing when it loads
            model = None
            gc.collect()
            torch.cuda.empty_cache()
            model, tokenizer = loaded(
                trainer, method, folder_of(name, folders), checkpointing=bool(checkpointing)
            )
            last = named
        for rows in map(int, sizes.split(",")):
            asked = {
                "peer": trainer,
                "model": name,
                "method": method,
                "rows": rows,
                "checkpointing": bool(checkpointing),
            }
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                seconds = step_of(
                    trainer, model, tokenizer, folders, method, rows, checkpointing=bool(checkpointing)
                )
                took = statistics.median(seconds)
                work = flops(name, [LENGTH] * rows, method.removesuffix("3b"))
                # Unsloth may go on recomputing although it was told not to.
                asked["recomputing"] = sum(
                    bool(getattr(part, "gradient_checkpointing", False)) for part in model.modules()
                )
                put({
                    **asked, "tokens_per_second": rows * LENGTH / took, "step_ms": took * 1e3,
                    "spread": [round(one * 1e3, 1) for one in seconds],
                    "mfu_datasheet": work / took / DATASHEET,
                    "allocated_gb": torch.cuda.max_memory_allocated() / 1e9,
                    "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
                })  # fmt: skip
            except Exception as error:  # the other rows are wanted all the same
                put({**asked, "error": f"{type(error).__name__}: {error}"[:600]})


if __name__ == "__main__":
    main()
