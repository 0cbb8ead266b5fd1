"""LLaMA-Factory, TRL and ms-swift: keys beside those of Hugging Face's TrainingArguments.

Keys: github.com/hiyouga/LLaMA-Factory src/llamafactory/hparams and data/README.md; TRL's SFTConfig,
ScriptArguments and ModelConfig; ms-swift's documentation of its command line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luthier.data.importers.keys import Keys
from luthier.data.importers.shared import (
    ATTENTION,
    HOUSE,
    SPEED,
    lora,
    no_data,
    source_of,
    targets,
    trainer_arguments,
)
from luthier.errors import Unsupported

_FACTORY_LORA = {
    "method": "finetuning_type",
    "rank": "lora_rank",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "dora": "use_dora",
}
_FACTORY_LEFT = {
    "template": "the tokenizer's own chat template is used; compare with `luthier data show`",
    "dataset_dir": "sources are named by their paths",
    "media_dir": "rows hold texts",
    "overwrite_cache": "caches are known by the content of the data",
    "tokenized_path": "caches are known by the content of the data",
    "preprocessing_batch_size": SPEED,
    "enable_liger_kernel": SPEED,
    "use_unsloth": SPEED,
    "use_unsloth_gc": SPEED,
    "upcast_layernorm": SPEED,
    "streaming": "how rows are kept follows from their size: data.storage",
    "mix_strategy": "rows of all sources are shuffled together; an entry of data.train may have a weight",
    "interleave_probs": "an entry of data.train may have a weight",
    "adapter_name_or_path": "a run starts from a base model or from a checkpoint of its own",
    "additional_target": "adapters are trained alone",
    "loraplus_lr_ratio": "both matrices of an adapter learn at one rate",
    "cache_dir": HOUSE,
    "ignore_pad_token_for_loss": "padding never carries loss",
    "predict_with_generate": "the test split is always answered by generating",
    "quantization_method": "four bits are NF4",
    "double_quantization": "scales are quantised too: method.double_quantisation",
}
_ROLES = {
    "prompt": "prompt", "query": "input", "response": "completion", "messages": "messages",
    "system": "system", "tools": "tools",
}  # fmt: skip
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}


def llamafactory(keys: Keys) -> None:
    """Fill a recipe from a LLaMA-Factory configuration."""
    stage = str(keys.take("stage", "sft"))
    if stage not in ("sft", "pt"):
        raise Unsupported(f"stage: {stage} is not there yet", file=keys.file, hint="stages sft and pt are")
    if stage == "pt":
        keys.put("task", "text-generation", "stage")
    _model(keys)
    _attention(keys, "flash_attn")
    method = str(keys.take("finetuning_type", "lora"))
    bits = keys.get("quantization_bit")
    if method == "full":
        keys.put("method.name", "full", "finetuning_type")
    elif method == "lora":
        if bits in (None, 4):
            keys.take("quantization_bit")
        lora(keys, _FACTORY_LORA, quantised=bits == 4, rank=8)
        targets(keys, "lora_target")
    else:
        raise Unsupported(
            f"finetuning_type: {method} is not there", file=keys.file, hint="lora, qlora and full are"
        )
    keys.leave("quantization_bit", "frozen weights are kept in 4 bits (qlora) or in full (lora)")
    trainer_arguments(keys)
    keys.number("cutoff_len", "training.sequence_length", default=2048)
    if keys.get("disable_gradient_checkpointing") is not None:
        off = keys.take("disable_gradient_checkpointing")
        kind = "none" if off else "full"
        keys.put("training.activation_checkpointing", kind, "disable_gradient_checkpointing")
    _factory_data(keys)
    keys.leave_all(_FACTORY_LEFT)


def _model(keys: Keys) -> None:
    keys.carry("model_name_or_path", "model.id")
    if keys.get("model_revision") not in (None, "main"):
        keys.carry("model_revision", "model.revision")
    keys.take("model_revision")
    if keys.take("trust_remote_code"):
        keys.put("model.trust_remote_code", True, "trust_remote_code")


def _attention(keys: Keys, source: str) -> None:
    written = str(keys.get(source) or "")
    if written in ATTENTION:
        keys.take(source)
        keys.put("model.attention", ATTENTION[written], source)
    elif written in ("auto", ""):
        keys.take(source)
    else:
        keys.leave(source, SPEED)


def _factory_data(keys: Keys) -> None:
    names = _listed(keys.take("dataset"))
    held = _listed(keys.take("eval_dataset"))
    known = _registered(keys)
    train = [one for name in names for one in _registered_source(keys, name, known)]
    if train:
        keys.put("data.train", train, "dataset")
    else:
        told = (
            f"the data set {names[0]!r} is not in a dataset_info.json beside it" if names else "none is named"
        )
        no_data(keys, told)
    validation = [one for name in held for one in _registered_source(keys, name, known)]
    if validation:
        keys.put("data.validation", validation, "eval_dataset")
    elif held:
        keys.missing.append(f"data.validation: {', '.join(held)} is not in a dataset_info.json")
    share = keys.get("val_size")
    if share is not None and float(share) < 1:
        keys.take("val_size")
        keys.put("data.validation_share", float(share), "val_size")
    else:
        keys.leave("val_size", "validation is cut by share, not by count: data.validation_share")
    neat, packing = keys.take("neat_packing"), keys.take("packing")
    if neat or packing:
        keys.put("data.packing", True, "neat_packing" if neat else "packing")
    if keys.take("train_on_prompt"):
        keys.put("data.train_on", "all", "train_on_prompt")
    elif keys.take("mask_history"):
        keys.put("data.train_on", "last", "mask_history")
    keys.number("max_samples", "data.max_rows")
    if len(train) > 1 and "max_rows" in keys.recipe.get("data", {}):
        keys.notes.append("max_samples counts rows of each data set, data.max_rows those of all together")
    keys.put("data.over_length", "truncate", default=True)


def _listed(value: Any) -> list[str]:
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    return [str(one) for one in value or ()]


def _registered(keys: Keys) -> dict[str, Any]:
    """dataset_info.json of the folder that the configuration names, where it can be found."""
    folder = Path(str(keys.get("dataset_dir") or "data"))
    for base in (Path(keys.file).parent, Path.cwd()):
        path = base / folder / "dataset_info.json"
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (json.JSONDecodeError, UnicodeDecodeError):
                keys.notes.append(f"{path} is not valid JSON")
                return {}
            return {"": str(path.parent), **found} if isinstance(found, dict) else {}
    return {}


def _registered_source(keys: Keys, name: str, known: dict[str, Any]) -> list[str]:
    entry = known.get(name)
    if not isinstance(entry, dict):
        return [name] if name.endswith((".json", ".jsonl", ".csv", ".parquet", ".txt")) else []
    if entry.get("ranking"):
        raise Unsupported(
            f"{name} holds preferences, not answers", file=keys.file, hint="name another data set"
        )
    for theirs, column in (entry.get("columns") or {}).items():
        ours = _ROLES.get(theirs)
        usual = _ALPACA.get(theirs) == column or (theirs, column) in (("messages", "conversations"),)
        if ours is None:
            keys.notes.append(f"{name}: its column {theirs} ({column}) has no counterpart")
        elif not usual and theirs != column:
            keys.put(f"data.columns.{ours}", column, "dataset")
    tags = entry.get("tags") or {}
    if tags and (tags.get("role_tag"), tags.get("content_tag")) not in (
        ("from", "value"),
        ("role", "content"),
    ):
        keys.notes.append(f"{name}: messages have role and content, or from and value: rename its tags")
    if entry.get("hf_hub_url"):
        return [source_of(entry["hf_hub_url"], name=entry.get("subset"), split=entry.get("split"))]
    if entry.get("file_name"):
        return [str(Path(known[""]) / entry["file_name"])]
    keys.notes.append(f"{name}: neither a file nor a data set of the Hugging Face Hub is registered")
    return []


_TRL_LORA = {
    "method": "use_peft",
    "rank": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "rslora": "use_rslora",
    "dora": "use_dora",
}


def trl(keys: Keys) -> None:
    """Fill a recipe from a configuration of ``trl sft``."""
    _model(keys)
    dtype = str(keys.get("dtype") or keys.get("torch_dtype") or "auto")
    if dtype in ("bfloat16", "float32"):
        keys.put("model.dtype", dtype, "dtype" if keys.get("dtype") else "torch_dtype")
    keys.take("dtype")
    keys.take("torch_dtype")
    _attention(keys, "attn_implementation")
    if keys.take("use_peft"):
        lora(keys, _TRL_LORA, quantised=bool(keys.take("load_in_4bit")), rank=16)
        targets(keys, "lora_target_modules")
    else:
        keys.put("method.name", "full", "use_peft")
    trainer_arguments(keys)
    length = "max_length" if keys.get("max_length") is not None else "max_seq_length"
    keys.number(length, "training.sequence_length", default=1024)
    if keys.take("packing"):
        keys.put("data.packing", True, "packing")
    if keys.get("completion_only_loss"):
        keys.take("completion_only_loss")
        keys.put("data.train_on", "completion", "completion_only_loss")
    elif not keys.get("assistant_only_loss"):
        keys.put("data.train_on", "all", default=True)
        keys.notes.append(
            "TRL trains on whole conversations unless told otherwise; assistant is Luthier's way"
        )
    keys.take("assistant_only_loss")
    name = keys.take("dataset_name")
    if name:
        config, split = keys.take("dataset_config"), keys.take("dataset_train_split", "train")
        keys.put("data.train", [source_of(str(name), name=config, split=split)], "dataset_name")
    else:
        no_data(keys, "dataset_name is not set")
    column = keys.take("dataset_text_field")
    if column and column != "text":
        keys.put("data.columns.text", column, "dataset_text_field")
    keys.put("data.over_length", "truncate", default=True)
    keys.leave_all(
        {
            "load_in_8bit": "frozen weights are kept in 4 bits (qlora) or in full (lora)",
            "use_liger_kernel": SPEED,
            "packing_strategy": "packing is best-fit, attention within a row",
            "padding_free": SPEED,
            "eos_token": "the tokenizer's own end token is used",
            "chat_template_path": "put the template beside the tokenizer as chat_template.jinja",
            "dataset_test_split": "name the rows under data.validation",
            "bnb_4bit_quant_type": "four bits are NF4",
            "use_bnb_nested_quant": "scales are quantised too: method.double_quantisation",
            "lora_task_type": "the task says it",
        }
    )


def swift(keys: Keys) -> None:
    """Fill a recipe from a configuration of ms-swift's sft."""
    keys.carry("model", "model.id")
    kind_key = "tuner_type" if keys.get("tuner_type") is not None else "train_type"
    kind = str(keys.take(kind_key, "lora"))
    names = {**_FACTORY_LORA, "method": kind_key}
    four = keys.get("quant_bits") == 4 and bool(keys.take("quant_bits"))
    if kind == "full":
        keys.put("method.name", "full", kind_key)
    elif kind == "lora":
        lora(keys, names, quantised=four, rank=8)
        targets(keys, "target_modules")
    else:
        raise Unsupported(f"{kind_key}: {kind} is not there", file=keys.file, hint="lora, qlora and full are")
    if str(keys.take("torch_dtype", "")) == "bfloat16":
        keys.put("model.dtype", "bfloat16", "torch_dtype")
    trainer_arguments(keys)
    keys.number("max_length", "training.sequence_length")
    train = []
    for one in _listed(keys.take("dataset")):
        path, _, count = one.partition("#")
        train.append(source_of(path))
        if count:
            keys.notes.append(f"{path}: take {count} rows with data.max_rows, or a weight")
    if train:
        keys.put("data.train", train, "dataset")
    else:
        no_data(keys, "dataset is not set")
    held = [source_of(one.partition("#")[0]) for one in _listed(keys.take("val_dataset"))]
    if held:
        keys.put("data.validation", held, "val_dataset")
    share = keys.take("split_dataset_ratio")
    if share:
        keys.put("data.validation_share", float(share), "split_dataset_ratio")
    if keys.take("packing"):
        keys.put("data.packing", True, "packing")
    keys.carry("system", "data.system")
    keys.leave_all(
        {
            "attn_impl": SPEED,
            "template": _FACTORY_LEFT["template"],
            "model_type": "the model's own configuration says its type",
            "use_hf": "models come from the Hugging Face Hub",
            "model_author": HOUSE,
            "model_name": HOUSE,
            "quant_bits": "frozen weights are kept in 4 bits (qlora) or in full (lora)",
            "quant_method": "four bits are NF4",
        }
    )
