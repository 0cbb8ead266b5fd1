"""torchtune's configurations (keys: github.com/pytorch/torchtune, recipes/configs and torchtune/datasets)."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.data.importers.keys import Keys
from luthier.data.importers.shared import DEVICES, HOUSE, SPEED, batch, no_data, source_of
from luthier.errors import Unsupported

_LEFT = {
    **dict.fromkeys(
        (
            "device", "fsdp_cpu_offload", "fsdp_reshard_after_forward", "custom_sharded_layers",
            "tensor_parallel_dim", "tensor_parallel_plan", "data_parallel_shard_dim",
            "data_parallel_replicate_dim", "context_parallel_dim", "memory_efficient_fsdp_wrap",
        ),
        DEVICES,
    ),
    **dict.fromkeys(
        ("compile", "chunked_output", "optimizer.fused", "optimizer.foreach", "ac_mode", "ac_option"), SPEED
    ),
    **dict.fromkeys(
        (
            "output_dir", "profiler", "log_every_n_steps", "log_peak_memory_stats", "log_level",
            "resume_from_checkpoint", "save_adapter_weights_only",
            "enable_async_checkpointing", "keep_last_n_checkpoints",
        ),
        HOUSE,
    ),
    "optimizer.eps": "AdamW's epsilon is 1e-8",
    "optimizer_in_bwd": "gradients of a step are added up before the optimiser moves",
    "lr_scheduler.num_cycles": "the learning rate falls once, to zero",
    "quantizer": "weights are trained as they are; `luthier export` quantises afterwards",
    "model.apply_lora_to_output": "the output layer is not adapted",
    "epochs_to_save": HOUSE,
    "batch_size_val": "Luthier sizes its evaluation batches itself",
    "ignore_index": "padding never carries loss",
}  # fmt: skip
_ATTENTION = {"output_proj": "o_proj"}
_PROJECTIONS = ("gate_proj", "down_proj", "up_proj")
_OUTPUTS = ["q_proj", "k_proj", "v_proj", "o_proj"]
_LOGGERS = {"WandBLogger": "wandb", "TensorBoardLogger": "tensorboard"}
_KNOWN: dict[str, tuple[str, dict[str, str]]] = {
    "alpaca_dataset": ("tatsu-lab/alpaca", {}),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", {}),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", {}),
    "samsum_dataset": ("Samsung/samsum", {"prompt": "dialogue", "completion": "summary"}),
    "grammar_dataset": ("liweili/c4_200m", {"prompt": "input", "completion": "output"}),
    "hh_rlhf_helpful_dataset": ("RLHFlow/HH-RLHF-Helpful-standard", {}),
    "stack_exchange_paired_dataset": (
        "lvwerra/stack-exchange-paired",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
}
"""Builders that know their source -> it, and the columns that they read."""
_GENERAL = ("instruct_dataset", "chat_dataset", "text_completion_dataset", "preference_dataset")
_ON_INPUT = ("alpaca_dataset", "alpaca_cleaned_dataset")
"""Builders that train on the prompt too where nothing is said."""
_ROLES = {"input": "prompt", "output": "completion", "chosen": "chosen", "rejected": "rejected"}
_FILE_KINDS = ("json", "csv", "parquet", "arrow", "text")


def torchtune(keys: Keys) -> None:
    """Fill a recipe from a torchtune configuration."""
    keys.values = _resolved(keys.values, keys.values)
    if keys.get("teacher_model") is not None:
        raise Unsupported(
            "distillation from a teacher is not there", file=keys.file, hint="fine-tuning and DPO are"
        )
    _model(keys)
    _method(keys)
    _loss(keys)
    _training(keys)
    _data(keys)
    logger = _component(keys, "metric_logger")
    if logger in _LOGGERS:
        keys.put("training.trackers", [_LOGGERS[logger]], "metric_logger._component_")
        keys.take("metric_logger._component_")
    keys.leave_all(_LEFT)
    keys.leave_rest("tokenizer", "the tokenizer and chat template beside the model are used")
    keys.leave_rest("checkpointer", HOUSE)
    keys.leave_rest("metric_logger", HOUSE)


def _resolved(value: Any, whole: dict[str, Any]) -> Any:
    """``${output_dir}/logs`` with the value that it names; others (``${now:...}``) stay as they are."""

    def named(found: re.Match[str]) -> str:
        here: Any = whole
        for part in found[1].split("."):
            here = here.get(part) if isinstance(here, dict) else None
        return found[0] if here is None or isinstance(here, (dict, list)) else str(here)

    if isinstance(value, dict):
        return {key: _resolved(one, whole) for key, one in value.items()}
    if isinstance(value, list):
        return [_resolved(one, whole) for one in value]
    return re.sub(r"\$\{([\w.]+)\}", named, value) if isinstance(value, str) else value


def _component(keys: Keys, section: str) -> str:
    """Last part of the name of a section's class or builder."""
    return str(keys.get(f"{section}._component_") or "").rsplit(".", 1)[-1]


def _model(keys: Keys) -> None:
    folder = keys.take("checkpointer.checkpoint_dir")
    hub = re.search(r"tune download (\S+/\S+)", Path(keys.file).read_text(encoding="utf-8"))
    if hub and not (folder and Path(str(folder)).is_dir()):
        keys.put("model.id", hub[1], "checkpointer.checkpoint_dir")
        keys.notes.append(f"the model is the one that the comments download; there is no folder {folder}")
    elif folder:
        keys.put("model.id", str(folder), "checkpointer.checkpoint_dir")
    dtype = str(keys.take("dtype", ""))
    if dtype in ("bf16", "fp32"):
        keys.put("model.dtype", "bfloat16" if dtype == "bf16" else "float32", "dtype")
    if "Meta" in _component(keys, "checkpointer"):
        keys.missing.append("model.id: the folder of the same model in Hugging Face's format")
    for name in ("_component_", "checkpoint_files", "model_type", "output_dir"):
        keys.leave(f"checkpointer.{name}", "the folder's own index names its files")
    for name in ("recipe_checkpoint", "adapter_checkpoint"):
        keys.leave(f"checkpointer.{name}", "a run starts from a base model or from a checkpoint of its own")


def _method(keys: Keys) -> None:
    builder = _component(keys, "model")
    if "lora" not in builder and keys.get("model.lora_rank") is None:
        keys.put("method.name", "full", "model._component_")
        keys.take("model._component_")
        return
    four = builder.startswith("qlora") or bool(keys.get("model.quantize_base"))
    keys.put("method.name", "qlora" if four else "lora", "model._component_", "model.quantize_base")
    keys.take("model._component_")
    keys.take("model.quantize_base")
    keys.number("model.lora_rank", "method.rank", default=8)
    keys.number("model.lora_alpha", "method.alpha", default=16)
    keys.number("model.lora_dropout", "method.dropout", default=0)
    if keys.take("model.use_dora"):
        keys.put("method.dora", True, "model.use_dora")
    listed = [_ATTENTION.get(one, one) for one in keys.take("model.lora_attn_modules", [])]
    names = list(dict.fromkeys(listed))
    if keys.take("model.apply_lora_to_mlp"):
        names += _PROJECTIONS
    everything = set(names) >= {*_OUTPUTS, *_PROJECTIONS}
    if names:
        origins = ("model.lora_attn_modules", "model.apply_lora_to_mlp")
        keys.put("method.targets", "all-linear" if everything else names, *origins)


def _loss(keys: Keys) -> None:
    loss = _component(keys, "loss")
    if loss == "DPOLoss":
        keys.put("preference.loss", "dpo", "loss._component_")
        keys.number("loss.beta", "preference.beta", default=0.1)
        keys.number("loss.label_smoothing", "preference.label_smoothing", default=0)
    elif loss and not any(one in loss for one in ("CrossEntropy", "CEWithChunked")):
        raise Unsupported(f"loss: {loss} is not there", file=keys.file, hint="cross-entropy and DPOLoss are")
    keys.take("loss._component_")
    keys.leave("loss.num_output_chunks", SPEED)


def _training(keys: Keys) -> None:
    batch(keys, "batch_size", "gradient_accumulation_steps", default=1)
    epochs = keys.number("epochs", "training.epochs", default=1)
    most = keys.take("max_steps_per_epoch")
    if most:
        keys.put("training.max_steps", int(most) * int(epochs or 1), "max_steps_per_epoch", "epochs")
        keys.recipe["training"].pop("epochs", None)
        keys.origins.pop(("training", "epochs"), None)
    keys.number("optimizer.lr", "training.learning_rate")
    keys.number("optimizer.weight_decay", "training.weight_decay", default=0.01)
    for theirs, ours in zip(keys.take("optimizer.betas", []), ("beta1", "beta2"), strict=False):
        keys.put(f"training.{ours}", float(theirs), "optimizer.betas")
    if _component(keys, "optimizer") in ("AdamW", "Adam", ""):
        keys.take("optimizer._component_")
    else:
        keys.leave("optimizer._component_", "the optimiser is AdamW; its state is kept in full precision")
    _schedule(keys)
    if keys.number("clip_grad_norm", "training.max_grad_norm") is None:
        keys.notes.append("torchtune clipped no gradients; Luthier clips them at training.max_grad_norm (1)")
    on, offload = keys.take("enable_activation_checkpointing"), keys.take("enable_activation_offloading")
    if on is not None or offload:
        kind = "offload" if offload else "full" if on else "none"
        origins = ("enable_activation_checkpointing", "enable_activation_offloading")
        keys.put("training.activation_checkpointing", kind, *origins)
    if keys.get("run_val_every_n_steps") is not None:
        keys.number("run_val_every_n_steps", "training.evaluate_every")
    keys.carry("seed", "seed")


def _schedule(keys: Keys) -> None:
    scheduler = _component(keys, "lr_scheduler")
    if not scheduler:
        keys.put("training.schedule", "constant", default=True)
        keys.put("training.warmup_share", 0.0, default=True)
        return
    if "cosine" in scheduler:
        keys.take("lr_scheduler._component_")
        keys.put("training.schedule", "cosine", "lr_scheduler._component_")
    else:
        keys.leave("lr_scheduler._component_", "schedules are cosine, linear and constant; cosine was taken")
    warm, total = keys.get("lr_scheduler.num_warmup_steps"), keys.recipe["training"].get("max_steps")
    if warm and not total:
        reason = "a recipe says warm-up as a share of all steps: set training.warmup_share"
        keys.leave("lr_scheduler.num_warmup_steps", reason)
    else:
        keys.take("lr_scheduler.num_warmup_steps")
        share = round(int(warm) / total, 6) if warm else 0.0
        keys.put("training.warmup_share", share, "lr_scheduler.num_warmup_steps", default=not warm)


def _data(keys: Keys) -> None:
    length = keys.take("tokenizer.max_seq_len")
    if length:
        keys.put("training.sequence_length", int(length), "tokenizer.max_seq_len")
        keys.put("data.over_length", "truncate", default=True)
    for section, target in (("dataset", "data.train"), ("dataset_val", "data.validation")):
        written = keys.take(section)
        entries = written if isinstance(written, list) else [written] if written else []
        places = [(section, str(n)) if isinstance(written, list) else (section,) for n in range(len(entries))]
        found = [_dataset(keys, entry, place) for entry, place in zip(entries, places, strict=True)]
        sources = [one for part in found for one in part]
        if len(found) > 1:
            keys.notes.append(f"{section}: columns, system prompt and train_on of each data set hold for all")
        if sources:
            keys.put(target, sources, section)
        elif section == "dataset":
            no_data(keys, "the data set is named by code only")
    if keys.take("packed"):
        keys.put("data.packing", True, "packed")
    if keys.take("shuffle") is False:
        keys.notes.append("rows are always shuffled, by the seed")


def _dataset(keys: Keys, entry: Any, place: tuple[str, ...]) -> list[str]:
    """Sources of one data set; what else it says goes into the recipe or is named."""
    name = ".".join(place)
    lines = {path[len(place) :]: line for path, line in keys.lines.items() if path[: len(place)] == place}
    here = Keys(keys.file, keys.tool, entry if isinstance(entry, dict) else {}, lines)
    builder = str(here.take("_component_", "")).rsplit(".", 1)[-1]
    source, columns = _KNOWN.get(builder, ("", {}))
    source = str(here.take("source", source))
    files = here.take("data_files")
    split, config = here.take("split", "train"), here.take("name")
    if files and source in _FILE_KINDS:
        sources = [files] if isinstance(files, str) else [str(one) for one in files]
    elif source and builder in (*_KNOWN, *_GENERAL):
        sources = [source_of(source, name=config, split=re.sub(r"\[.*\]$", "", str(split)))]
    else:
        sources = []
    if "[" in str(split):
        keys.notes.append(f"{name}.split is {split}: all its rows are read; data.max_rows takes fewer")
    given = {
        _ROLES[theirs]: column
        for theirs, column in (here.take("column_map") or {}).items()
        if theirs in _ROLES
    }
    for column, role in (("conversation_column", "messages"), ("column", "text")):
        if here.get(column) not in (None, role, "conversations"):
            given[role] = here.get(column)
        here.take(column)
    for role, column in (given or (columns if sources else {})).items():
        keys.put(f"data.columns.{role}", column, f"{name}.column_map", default=not given)
    if builder == "text_completion_dataset":
        keys.put("task", "text-generation", f"{name}._component_")
    on_input = here.take("train_on_input")
    if on_input or (on_input is None and builder in _ON_INPUT):
        keys.put("data.train_on", "all", f"{name}.train_on_input", default=on_input is None)
    if here.take("packed"):
        keys.put("data.packing", True, f"{name}.packed")
    system = here.take("new_system_prompt")
    if system:
        keys.put("data.system", str(system), f"{name}.new_system_prompt")
    if length := here.take("max_seq_len"):
        keys.put("training.sequence_length", int(length), f"{name}.max_seq_len")
    here.take("conversation_style")
    here.leave("prompt_template", "the tokenizer's own chat template is used")
    here.finish()
    keys.left += [replace(one, key=f"{name}.{one.key}") for one in here.left]
    return sources
