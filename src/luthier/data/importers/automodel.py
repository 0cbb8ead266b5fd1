"""NeMo Automodel's recipes (keys: github.com/NVIDIA-NeMo/Automodel, examples/llm_finetune)."""

from __future__ import annotations

from typing import Any

from luthier.data.importers.keys import Keys
from luthier.data.importers.shared import (
    ATTENTION,
    DEVICES,
    HOUSE,
    SCHEDULES,
    SPEED,
    no_data,
    source_of,
    targets,
)

_LEFT = {
    **dict.fromkeys(("distributed", "dist_env", "parallelizer", "fsdp", "ci"), DEVICES),
    **dict.fromkeys(("compile", "loss_fn", "model.backend", "kernel", "fp8", "peft.use_triton"), SPEED),
    **dict.fromkeys(("checkpoint", "logger", "wandb.entity", "wandb.name", "wandb.save_dir"), HOUSE),
    "recipe": "the task says it",
    "dataloader": "rows are ordered and laid together by Luthier",
    "validation_dataloader": "rows are ordered and laid together by Luthier",
    "packed_sequence.split_across_pack": "a row is never cut over two sequences",
    "packed_sequence.max_packs": "all rows are packed",
    "optimizer.eps": "AdamW's epsilon is 1e-8",
    "optimizer.foreach": SPEED,
    "optimizer.fused": SPEED,
    "lr_scheduler.min_lr": "the learning rate falls to zero",
    "lr_scheduler.lr_decay_steps": "the learning rate falls over all steps",
    "rng._target_": "one seed stands for all random choices",
    "rng.ranked": "one seed stands for all random choices",
    "step_scheduler.save_checkpoint_every_epoch": "checkpoints are counted in steps",
    "peft.lora_A_init": "adapters begin as in their paper",
    "peft.lora_dtype": "adapters are trained in float32 or the model's dtype",
}  # fmt: skip
_TARGETS = ("model", "peft", "optimizer", "lr_scheduler", "step_scheduler", "dataset", "validation_dataset")
_SCHEDULER = {
    "global_batch_size": "batch_size",
    "local_batch_size": "micro_batch_size",
    "num_epochs": "epochs",
    "max_steps": "max_steps",
    "val_every_steps": "evaluate_every",
    "ckpt_every_steps": "checkpoint_every",
}
_ROLES = {"question": "prompt", "context": "input", "answer": "completion"}


def automodel(keys: Keys) -> None:
    """Fill a recipe from an Automodel YAML file."""
    keys.carry("model.pretrained_model_name_or_path", "model.id")
    keys.carry("model.revision", "model.revision")
    if keys.take("model.trust_remote_code"):
        keys.put("model.trust_remote_code", True, "model.trust_remote_code")
    dtype_key = "model.torch_dtype" if keys.get("model.torch_dtype") else "model.dtype"
    dtype = str(keys.take(dtype_key, "auto")).removeprefix("torch.")
    if dtype in ("bf16", "bfloat16", "float32", "fp32"):
        keys.put("model.dtype", "bfloat16" if dtype.startswith("b") else "float32", dtype_key)
    attention = str(keys.get("model.attn_implementation") or "")
    if attention in ATTENTION:
        keys.take("model.attn_implementation")
        keys.put("model.attention", ATTENTION[attention], "model.attn_implementation")
    keys.leave("model.attn_implementation", SPEED)
    _method(keys)
    _training(keys)
    _data(keys)
    if keys.get("wandb"):
        keys.put("training.trackers", ["wandb"], "wandb")
        keys.take("wandb.project")
    for section in _TARGETS:
        keys.take(f"{section}._target_")
    keys.leave_all(_LEFT)


def _method(keys: Keys) -> None:
    if keys.get("peft") is None:
        keys.put("method.name", "full", default=True)
        return
    four = bool(keys.get("quantization.load_in_4bit"))
    keys.put("method.name", "qlora" if four else "lora", "quantization" if four else "peft")
    keys.take("quantization.load_in_4bit")
    for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage", "bnb_4bit_quant_type"):
        keys.leave(f"quantization.{name}", "four bits are NF4")
    if keys.get("quantization.bnb_4bit_use_double_quant") is not None:
        double = bool(keys.take("quantization.bnb_4bit_use_double_quant"))
        if four:
            keys.put("method.double_quantisation", double, "quantization.bnb_4bit_use_double_quant")
    keys.number("peft.dim", "method.rank", default=8)
    keys.number("peft.alpha", "method.alpha", default=32)
    keys.number("peft.dropout", "method.dropout")
    if keys.take("peft.use_dora"):
        keys.put("method.dora", True, "peft.use_dora")
    if keys.take("peft.match_all_linear"):
        keys.put("method.targets", "all-linear", "peft.match_all_linear")
        keys.leave("peft.target_modules", "match_all_linear takes all")
    else:
        stars = keys.get("peft.target_modules")
        if isinstance(stars, list):
            names = [str(one).removeprefix("*.").removeprefix("*") for one in stars]
            keys.take("peft.target_modules")
            keys.put("method.targets", names, "peft.target_modules")
        else:
            targets(keys, "peft.target_modules")
    keys.leave("peft.exclude_modules", "name the modules to adapt under method.targets")


def _training(keys: Keys) -> None:
    for theirs, ours in _SCHEDULER.items():
        keys.number(f"step_scheduler.{theirs}", f"training.{ours}")
    keys.number("optimizer.lr", "training.learning_rate")
    keys.number("optimizer.weight_decay", "training.weight_decay")
    for norm in ("clip_grad_norm.max_norm", "max_grad_norm"):
        keys.number(norm, "training.max_grad_norm")
    betas = keys.take("optimizer.betas")
    if betas:
        keys.put("training.beta1", float(betas[0]), "optimizer.betas")
        keys.put("training.beta2", float(betas[1]), "optimizer.betas")
    kind = str(keys.get("optimizer._target_") or "torch.optim.AdamW").rsplit(".", 1)[-1]
    if kind not in ("Adam", "AdamW", "FusedAdam"):
        keys.leave("optimizer._target_", "the optimiser is AdamW; its state is kept in full precision")
    decay = str(keys.get("lr_scheduler.lr_decay_style") or "")
    if decay.lower() in SCHEDULES:
        keys.take("lr_scheduler.lr_decay_style")
        keys.put("training.schedule", SCHEDULES[decay.lower()], "lr_scheduler.lr_decay_style")
    else:
        keys.leave("lr_scheduler.lr_decay_style", "schedules are cosine, linear and constant")
        if keys.get("lr_scheduler") is None:
            keys.put("training.schedule", "constant", default=True)
    warm = keys.get("lr_scheduler.lr_warmup_steps")
    total = keys.recipe.get("training", {}).get("max_steps")
    if warm and not total:
        reason = "a recipe says warm-up as a share of all steps: set training.warmup_share"
        keys.leave("lr_scheduler.lr_warmup_steps", reason)
    else:
        keys.take("lr_scheduler.lr_warmup_steps")
        share = round(int(warm) / int(total), 6) if warm and total else 0.0
        keys.put("training.warmup_share", share, "lr_scheduler.lr_warmup_steps", default=not warm)
    keys.number("rng.seed", "seed", default=42)
    keys.number("seed", "seed")


def _data(keys: Keys) -> None:
    packed = keys.take("packed_sequence.packed_sequence_size") or 0
    if int(packed) > 0:
        keys.put("data.packing", True, "packed_sequence.packed_sequence_size")
        keys.put("training.sequence_length", int(packed), "packed_sequence.packed_sequence_size")
    length = keys.take("dataset.seq_length")
    if length and not packed:
        keys.put("training.sequence_length", int(length), "dataset.seq_length")
    source = _source(keys, "dataset")
    if source:
        keys.put("data.train", source, "dataset")
    else:
        no_data(keys, "the data set is named by code only")
    held = _source(keys, "validation_dataset")
    if held:
        keys.put("data.validation", held, "validation_dataset")
    keys.take("validation_dataset.seq_length")
    keys.number("dataset.limit_dataset_samples", "data.max_rows")
    mask = keys.take("dataset.answer_only_loss_mask")
    if mask is False:
        keys.put("data.train_on", "all", "dataset.answer_only_loss_mask")
    keys.take("validation_dataset.answer_only_loss_mask")
    for theirs, column in (keys.take("dataset.column_mapping") or {}).items():
        if theirs in _ROLES:
            keys.put(f"data.columns.{_ROLES[theirs]}", column, "dataset.column_mapping")
        else:
            keys.notes.append(f"dataset.column_mapping.{theirs} ({column}) has no counterpart")
    keys.take("validation_dataset.column_mapping")
    cut = str(keys.take("dataset.truncation", "do_not_truncate")).lower()
    if cut not in ("do_not_truncate", "false", "none"):
        keys.put("data.over_length", "truncate", "dataset.truncation")
    keys.take("validation_dataset.truncation")
    for section in ("dataset", "validation_dataset"):
        keys.leave(f"{section}.padding", "rows of like length are laid together")
        keys.leave(f"{section}.chat_template", "put the template beside the tokenizer as chat_template.jinja")
        keys.leave(f"{section}.start_of_turn_token", "the mask is found in the template itself")
        keys.leave(f"{section}.use_hf_chat_template", "the chat template is always used")
        keys.leave(f"{section}.num_samples_limit", "data.max_rows counts training rows only")
        keys.leave(f"{section}.shuffle_seed", "one seed stands for all random choices")


def _source(keys: Keys, section: str) -> list[str]:
    name: Any = keys.take(f"{section}.path_or_dataset_id") or keys.take(f"{section}.dataset_name")
    config, split = keys.take(f"{section}.name"), keys.take(f"{section}.split")
    if not name:
        return []
    listed = [name] if isinstance(name, str) else list(name)
    return [source_of(str(one), name=config, split=split) for one in listed]
