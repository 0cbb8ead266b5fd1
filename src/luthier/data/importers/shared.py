"""What several trainers share: the names of schedules, optimisers, methods and Hugging Face's arguments."""

from __future__ import annotations

from typing import Any

from luthier.data.importers.keys import Keys
from luthier.data.sources import FORMATS

SCHEDULES = {
    "cosine": "cosine",
    "cosine_annealing": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
DEVICES = "Luthier lays a run out over its devices itself"
SPEED = "Luthier chooses its kernels itself"
HOUSE = "a run keeps its files and logs in its own folder"
PARALLEL = {"deepspeed": DEVICES, "fsdp": DEVICES, "fsdp_config": DEVICES, "ddp_timeout": DEVICES}
ATTENTION = {"sdpa": "sdpa", "eager": "eager"}


def source_of(path: str, *, name: Any = None, split: Any = None) -> str:
    """A path as it stands, or ``hub:name[config]/split`` for what is no file."""
    local = path.startswith((".", "/", "~")) or any(path.lower().endswith(suffix) for suffix in _SUFFIXES)
    if local or path.count("/") != 1:
        return path
    config = f"[{name}]" if name else ""
    return f"hub:{path}{config}" + (f"/{split}" if split else "")


_SUFFIXES = tuple(f"{suffix}{packed}" for suffix in FORMATS for packed in ("", ".gz", ".zst"))


def batch(keys: Keys, micro: str, accumulate: str, *, default: int) -> None:
    """Rows at once, and rows a step as their product with the accumulated ones."""
    at_once, steps = int(keys.take(micro, default)), int(keys.take(accumulate, 1))
    keys.put("training.micro_batch_size", at_once, micro, default=keys.get(micro) is None)
    keys.put("training.batch_size", at_once * steps, micro, accumulate)
    keys.notes.append(
        f"training.batch_size is {at_once} x {steps} for one device; Luthier counts a step's rows over all "
        "devices, so multiply it by the devices of the old run"
    )


def schedule(keys: Keys, source: str, *, default: str) -> None:
    """The shape of the learning rate."""
    written = keys.get(source)
    if written is None:
        keys.put("training.schedule", default, default=True)
    elif str(written).lower() in SCHEDULES:
        keys.take(source)
        keys.put("training.schedule", SCHEDULES[str(written).lower()], source)
    else:
        keys.leave(source, f"schedules are cosine, linear and constant; {default} was taken")
        keys.put("training.schedule", default, default=True)


def warmup(keys: Keys, ratio: str, steps: str) -> None:
    """Warm-up as a share of all steps. A number of steps needs their total."""
    total = keys.recipe.get("training", {}).get("max_steps")
    if keys.get(steps):
        if total:
            keys.put("training.warmup_share", round(int(keys.take(steps)) / int(total), 6), steps)
        else:
            keys.leave(steps, "a recipe says warm-up as a share of all steps: set training.warmup_share")
    elif keys.get(ratio) is None:
        keys.put("training.warmup_share", 0.0, default=True)
    keys.take(steps)
    keys.number(ratio, "training.warmup_share")


def optimizer(keys: Keys, source: str) -> None:
    """Every kind of AdamW is AdamW."""
    written = str(keys.get(source) or "adamw").lower()
    if written.startswith(("adamw_torch", "adamw_hf", "adamw_apex")) or written in ("adamw", "adam"):
        keys.take(source)
    else:
        keys.leave(source, "the optimiser is AdamW; its state is kept in full precision")


def precision(keys: Keys, bf16: str, *others: str) -> None:
    """bf16 as the model's dtype; half precision without its range is not trained in."""
    if keys.take(bf16) is True:
        keys.put("model.dtype", "bfloat16", bf16)
    for other in others:
        keys.leave(other, "weights are bfloat16 or float32, whichever the device does fast")


def lora(keys: Keys, names: dict[str, str], *, quantised: bool, rank: int | None = None) -> None:
    """A LoRA or QLoRA method. names: our setting -> their key."""
    keys.put("method.name", "qlora" if quantised else "lora", names.get("method", "adapter"))
    keys.number(names["rank"], "method.rank", default=rank)
    keys.number(names["alpha"], "method.alpha")
    keys.number(names["dropout"], "method.dropout")
    for ours in ("rslora", "dora"):
        if ours in names and keys.take(names[ours]):
            keys.put(f"method.{ours}", True, names[ours])


def targets(keys: Keys, source: str) -> None:
    """Modules to adapt: all linear ones, or by name."""
    written = keys.take(source)
    if written is None:
        return
    listed = [one.strip() for one in written.split(",")] if isinstance(written, str) else list(written)
    everything = not listed or any(one in ("all", "all-linear", "all_linear") for one in listed)
    keys.put("method.targets", "all-linear" if everything else listed, source)


def trainer_arguments(keys: Keys) -> None:
    """What Hugging Face's TrainingArguments name, as LLaMA-Factory, TRL and ms-swift take them."""
    batch(keys, "per_device_train_batch_size", "gradient_accumulation_steps", default=8)
    keys.number("learning_rate", "training.learning_rate", default=5e-5)
    keys.number("num_train_epochs", "training.epochs", default=3)
    if int(keys.get("max_steps") or 0) > 0:
        keys.number("max_steps", "training.max_steps")
        keys.recipe["training"].pop("epochs", None)
    keys.take("max_steps")
    schedule(keys, "lr_scheduler_type", default="linear")
    warmup(keys, "warmup_ratio", "warmup_steps")
    optimizer(keys, "optim")
    precision(keys, "bf16", "fp16", "pure_bf16")
    trainer_settings(keys)
    trackers(keys, "report_to")
    keys.leave_all(
        {
            **PARALLEL,
            "adam_epsilon": "AdamW's epsilon is 1e-8",
            "group_by_length": "rows of like length are batched together wherever nothing is packed",
            **dict.fromkeys(
                (
                    "output_dir", "overwrite_output_dir", "logging_steps", "logging_dir", "save_only_model",
                    "plot_loss", "run_name", "logging_first_step", "resume_from_checkpoint",
                ),
                HOUSE,
            ),
            **dict.fromkeys(
                ("eval_strategy", "evaluation_strategy", "save_strategy"),
                "evaluations and checkpoints are counted in steps",
            ),
            **dict.fromkeys(
                (
                    "dataloader_num_workers", "preprocessing_num_workers", "dataset_num_proc",
                    "dataloader_pin_memory",
                ),
                "rows are prepared before the run; data.processes says by how many",
            ),
            "per_device_eval_batch_size": "Luthier sizes its evaluation batches itself",
            "do_train": "a recipe is for training",
            "do_eval": "the test split is always judged, before and after",
            "push_to_hub": "a run ships to its own folder; `luthier export` goes on from there",
        }
    )  # fmt: skip


def trainer_settings(keys: Keys) -> None:
    """Those of TrainingArguments that axolotl hands on under the same names."""
    for theirs, ours in (
        ("weight_decay", "weight_decay"), ("adam_beta1", "beta1"), ("adam_beta2", "beta2"),
        ("max_grad_norm", "max_grad_norm"), ("save_total_limit", "keep_last"),
        ("neftune_noise_alpha", "neftune_alpha"),
    ):  # fmt: skip
        keys.number(theirs, f"training.{ours}")
    steps(keys, "eval_steps", "save_steps")
    if keys.get("load_best_model_at_end") is not None:
        best = "best" if keys.take("load_best_model_at_end") else "last"
        keys.put("training.select", best, "load_best_model_at_end")
    if keys.get("gradient_checkpointing") is not None:
        full = "full" if keys.take("gradient_checkpointing") else "none"
        keys.put("training.activation_checkpointing", full, "gradient_checkpointing")
    keys.carry("seed", "seed", default=42)


def steps(keys: Keys, evaluate: str, save: str) -> None:
    """Steps between evaluations and checkpoints; shares of an epoch have no counterpart."""
    for theirs, ours in ((evaluate, "evaluate_every"), (save, "checkpoint_every")):
        value = keys.get(theirs)
        if isinstance(value, int) and value >= 1:
            keys.carry(theirs, f"training.{ours}")
        else:
            keys.leave(theirs, "evaluations and checkpoints are counted in whole steps")


def trackers(keys: Keys, source: str) -> None:
    """Where metrics go besides the run's own files."""
    written = keys.get(source)
    listed = [written] if isinstance(written, str) else list(written or ())
    known = [one for one in listed if one in ("tensorboard", "wandb", "mlflow", "trackio")]
    if known:
        keys.put("training.trackers", known, source)
    if not set(listed) - {*known, "none"}:
        keys.take(source)
    else:
        keys.leave(source, "trackers are tensorboard, wandb, mlflow and trackio")


def no_data(keys: Keys, why: str) -> None:
    """Leave the place of the training rows to be filled in."""
    keys.recipe.setdefault("data", {})["train"] = ["FILL_IN.jsonl"]
    keys.origins["data", "train"] = "to fill in"
    keys.missing.append(f"data.train: {why}")
