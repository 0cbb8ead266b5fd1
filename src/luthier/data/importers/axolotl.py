"""axolotl's configuration (keys: github.com/axolotl-ai-cloud/axolotl, src/axolotl/utils/schemas)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from luthier.data.importers.keys import Keys, Left
from luthier.data.importers.shared import (
    ATTENTION,
    DEVICES,
    HOUSE,
    PARALLEL,
    SPEED,
    batch,
    lora,
    no_data,
    optimizer,
    precision,
    schedule,
    source_of,
    targets,
    trainer_settings,
    warmup,
)
from luthier.errors import Unsupported

_LORA = {
    "method": "adapter",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "peft_use_rslora",
    "dora": "peft_use_dora",
}
_TEMPLATE = "the tokenizer's own chat template is used; compare with `luthier data show`"
_DATASET = {
    "type": "rows are told by their columns",
    "ds_type": "files are read by their names",
    "chat_template": _TEMPLATE,
    "chat_template_jinja": "put the template beside the tokenizer as chat_template.jinja",
    "train_on_eos": "the end token of every trained turn is trained",
    "roles": "roles of OpenAI's and ShareGPT's rows are known",
    "roles_to_train": "assistant turns are trained; `weight: 0` on a message leaves it out",
    "message_field_training": "OpenAI's `weight: 0` on a message leaves it out",
    "revision": "a Hub data set is pinned by the version of its content",
    "trust_remote_code": "data sets run no code",
}
_LEFT = {
    **PARALLEL,
    **dict.fromkeys(
        (
            "flash_attention", "xformers_attention", "flex_attention", "s2_attention", "torch_compile",
            "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "unsloth_cross_entropy_loss", "plugins",
            "liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_layer_norm",
            "liger_fused_linear_cross_entropy", "pad_to_sequence_len", "eval_sample_packing", "tf32",
        ),
        SPEED,
    ),
    **dict.fromkeys(
        (
            "output_dir", "dataset_prepared_path", "logging_steps", "wandb_entity", "wandb_name",
            "wandb_watch", "wandb_log_model", "wandb_run_id", "hub_model_id", "hub_strategy",
            "auto_resume_from_checkpoints", "resume_from_checkpoint", "local_rank", "strict",
        ),
        HOUSE,
    ),
    **dict.fromkeys(("ddp", "device_map", "world_size", "max_memory", "dataset_processes"), DEVICES),
    "model_type": "the model's own configuration says its type",
    "tokenizer_type": "the model's own configuration says its tokenizer",
    "tokenizer_config": "the tokenizer of the model is used",
    "is_llama_derived_model": "the model's own configuration says its type",
    "chat_template": _TEMPLATE,
    "chat_template_jinja": "put the template beside the tokenizer as chat_template.jinja",
    "special_tokens": "the tokenizer's own special tokens are used",
    "group_by_length": "rows of like length are batched together wherever nothing is packed",
    "gradient_checkpointing_kwargs": SPEED,
    "load_in_8bit": "frozen weights are kept in 4 bits (qlora) or in full (lora)",
    "evals_per_epoch": "evaluations are counted in steps: training.evaluate_every",
    "saves_per_epoch": "checkpoints are counted in steps: training.checkpoint_every",
    "eval_strategy": "evaluations are counted in steps",
    "save_strategy": "checkpoints are counted in steps",
    "eval_batch_size": "Luthier sizes its evaluation batches itself",
    "adam_epsilon": "AdamW's epsilon is 1e-8",
    "lora_model_dir": "a run starts from a base model or from a checkpoint of its own",
    "lora_modules_to_save": "adapters are trained alone, and rows of new tokens (model.new_tokens)",
    "dataset_exact_deduplication": "`luthier data check FILE --fix OUT` leaves copies out",
    "shuffle_merged_datasets": "rows are always shuffled, by seed",
}  # fmt: skip


def axolotl(keys: Keys) -> None:
    """Fill a recipe from an axolotl configuration."""
    for key, what in (("rl", "preference tuning"), ("reward_model", "reward models")):
        if keys.get(key):
            raise Unsupported(f"{key}: {what} is not there yet", file=keys.file, hint="only fine-tuning is")
    keys.carry("base_model", "model.id")
    keys.carry("revision_of_model", "model.revision")
    keys.carry("tokens", "model.new_tokens")
    if keys.take("trust_remote_code"):
        keys.put("model.trust_remote_code", True, "trust_remote_code")
    for written, ours in (("sdp_attention", "sdpa"), ("eager_attention", "eager")):
        if keys.take(written):
            keys.put("model.attention", ATTENTION[ours], written)
    precision(keys, "bf16", "fp16", "float16", "fp8")
    _method(keys)
    _training(keys)
    _data(keys)
    if keys.take("wandb_mode") != "disabled" and keys.take("wandb_project"):
        keys.put("training.trackers", ["wandb"], "wandb_project")
    if keys.take("use_tensorboard"):
        trackers = keys.recipe["training"].get("trackers", [])
        keys.put("training.trackers", [*trackers, "tensorboard"], "use_tensorboard")
    keys.leave_all(_LEFT)


def _method(keys: Keys) -> None:
    adapter = keys.take("adapter")
    if adapter not in (None, "", "lora", "qlora"):
        raise Unsupported(
            f"adapter: {adapter} is not there", file=keys.file, hint="full, lora and qlora are; edit it first"
        )
    if not adapter:
        keys.put("method.name", "full", "adapter")
        return
    four_bits = bool(keys.take("load_in_4bit"))
    lora(keys, _LORA, quantised=adapter == "qlora" or four_bits)
    targets(keys, "lora_target_modules")
    if keys.take("lora_target_linear"):
        keys.put("method.targets", "all-linear", "lora_target_linear")


def _training(keys: Keys) -> None:
    keys.number("num_epochs", "training.epochs", default=1)
    keys.number("max_steps", "training.max_steps")
    if keys.get("batch_size"):
        keys.number("batch_size", "training.batch_size")
        keys.number("micro_batch_size", "training.micro_batch_size")
        keys.take("gradient_accumulation_steps")
    else:
        batch(keys, "micro_batch_size", "gradient_accumulation_steps", default=1)
    keys.number("sequence_len", "training.sequence_length", default=512)
    keys.number("learning_rate", "training.learning_rate")
    schedule(keys, "lr_scheduler", default="cosine")
    warmup(keys, "warmup_ratio", "warmup_steps")
    optimizer(keys, "optimizer")
    keys.number("early_stopping_patience", "training.patience")
    trainer_settings(keys)


def _data(keys: Keys) -> None:
    listed = keys.take("datasets") or keys.take("pretraining_dataset") or []
    if keys.get("pretraining_dataset"):
        keys.put("task", "text-generation", "pretraining_dataset")
    sources = [_dataset(keys, entry, f"datasets.{index}") for index, entry in enumerate(listed)]
    if sources:
        keys.put("data.train", [one for part in sources for one in part], "datasets")
    else:
        no_data(keys, "the configuration names no datasets")
    held = keys.take("test_datasets") or []
    if held:
        parts = [_dataset(keys, entry, f"test_datasets.{index}") for index, entry in enumerate(held)]
        keys.put("data.validation", [one for part in parts for one in part], "test_datasets")
    share = keys.get("val_set_size")
    if share is not None and float(share) < 1:
        keys.take("val_set_size")
        keys.put("data.validation_share", float(share), "val_set_size")
    else:
        keys.leave("val_set_size", "validation is cut by share, not by count: data.validation_share")
    if keys.take("sample_packing") is not None:
        keys.put("data.packing", bool(keys.get("sample_packing")), "sample_packing")
    if keys.take("train_on_inputs"):
        keys.put("data.train_on", "all", "train_on_inputs")
    keys.carry("default_system_message", "data.system")
    excess = str(keys.take("excess_length_strategy", "drop"))
    given = keys.get("excess_length_strategy") is not None
    keys.put(
        "data.over_length",
        {"drop": "drop", "truncate": "truncate"}.get(excess, "error"),
        "excess_length_strategy",
        default=not given,
    )


def _dataset(keys: Keys, entry: Any, place: str) -> list[str]:
    """Sources of one entry; what else it says goes into the recipe or is named."""
    if not isinstance(entry, dict):
        return [str(entry)]
    here = Keys(
        keys.file,
        keys.tool,
        entry,
        {path[2:]: line for path, line in keys.lines.items() if _under(path, place)},
    )
    path = str(here.take("path", ""))
    files = here.take("data_files")
    name, split = here.take("name"), here.take("split")
    if files:
        listed = [files] if isinstance(files, str) else list(files)
        hub = path not in ("json", "csv", "parquet", "arrow", "text") and not path.startswith((".", "/"))
        if hub and source_of(path).startswith("hub:"):
            here.left.append(_left(here, "data_files", listed, "a Hub data set is read whole"))
            sources = [source_of(path, name=name, split=split)]
        else:
            sources = [str(one) for one in listed]
    else:
        sources = [source_of(path, name=name, split=split)]
    _columns(keys, here, place)
    _format(keys, here, place)
    here.leave_all(_DATASET)
    here.finish()
    keys.left += [_moved(one, place) for one in here.left]
    return sources


def _under(path: tuple[str, ...], place: str) -> bool:
    return path[:2] == tuple(place.split("."))


def _left(keys: Keys, key: str, value: Any, reason: str) -> Left:
    return Left(key, value, keys.lines.get((key,)), reason)


def _moved(one: Left, place: str) -> Left:
    return replace(one, key=f"{place}.{one.key}")


def _columns(keys: Keys, here: Keys, place: str) -> None:
    """Columns that an entry names."""
    named = here.take("field_messages")
    if named:
        keys.put("data.columns.messages", named, f"{place}.field_messages")
    tools = here.take("field_tools")
    if tools and tools != "tools":
        keys.put("data.columns.tools", tools, f"{place}.field_tools")
    text = here.take("field") or here.take("text_column")
    if text:
        keys.put("data.columns.text", text, f"{place}.field")
    mapping = here.take("message_property_mappings") or {}
    if here.get("message_field_role") or here.get("message_field_content"):
        mapping = {"role": here.take("message_field_role"), "content": here.take("message_field_content")}
    known = {("role", "content"), ("from", "value")}
    if mapping and (mapping.get("role"), mapping.get("content")) not in known:
        reason = "messages have role and content, or from and value: rename them in the file"
        here.left.append(_left(here, "message_property_mappings", mapping, reason))


def _format(keys: Keys, here: Keys, place: str) -> None:
    """The shape that an entry's type stands for."""
    written = here.get("type")
    if isinstance(written, dict):
        for theirs, ours in (
            ("field_instruction", "prompt"), ("field_input", "input"), ("field_output", "completion"),
            ("field_system", "system"),
        ):  # fmt: skip
            value = here.take(f"type.{theirs}")
            if value:
                keys.put(f"data.columns.{ours}", value, f"{place}.type.{theirs}")
        if here.get("type.system_prompt"):
            keys.put("data.system", here.take("type.system_prompt"), f"{place}.type.system_prompt")
        for name in ("format", "no_input_format", "system_format"):
            here.leave(f"type.{name}", _TEMPLATE)
    elif written in ("completion", "pretrain"):
        here.take("type")
        keys.put("data.format", "text", f"{place}.type")
    elif isinstance(written, str) and written.split(":")[0].split(".")[0] == "alpaca":
        here.take("type")
        keys.put("data.format", "alpaca", f"{place}.type")
    elif written == "chat_template":
        here.take("type")
