"""Load a causal language model from a folder, and name its weights by digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from luthier.errors import FileProblem, ModelNotFound, Unsupported
from luthier.files import file_sha256, write_text
from luthier.models import nf4
from luthier.models.packed import adopt_bitsandbytes
from luthier.schema.recipe import Dtype, QLora

CONFIG = "config.json"
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def weight_files(directory: Path) -> list[Path]:
    """Files that hold the weights of a saved model: safetensors, else torch's own format."""
    for pattern in _WEIGHTS:
        if found := sorted(directory.glob(pattern)):
            return found
    return []


def check_model_directory(directory: Path) -> dict[str, Any]:
    """The model's configuration; raises where the folder is no saved model."""
    if not directory.is_dir():
        raise ModelNotFound(
            "there is no such folder", file=directory, hint="give a folder with a saved model"
        )
    config = directory / CONFIG
    if not config.is_file():
        adapter = (directory / "adapter_config.json").is_file()
        raise FileProblem(
            "not a model folder: config.json is missing",
            file=directory,
            hint="this is an adapter: give its base model and load the adapter on it"
            if adapter
            else "give the folder that holds config.json, the weights and the tokenizer",
        )
    try:
        settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileProblem(f"cannot be read as JSON ({error})", file=config) from error
    if not weight_files(directory):
        raise FileProblem(
            "the weights are missing: no *.safetensors and no pytorch_model*.bin",
            file=directory,
            hint="download the model again: luthier get",
        )
    return settings


def load_causal(
    directory: Path,
    *,
    dtype: Dtype,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] | None = None,
    trust_remote_code: bool = False,
    four_bit: QLora | None = None,
) -> Any:
    """The model in that folder, in that type, on that device, ready to answer (dropout off).

    Every weight must come from the files: one that is missing would be made up at random, and is an
    error. Code in the folder runs only with trust_remote_code. four_bit: pack each linear layer but the
    head as soon as it is read, so that the whole model never stands in memory in more bits.
    """
    settings = check_model_directory(directory)
    packing: dict[str, Any] = {"device_map": None}
    if four_bit is not None:
        packing = _packing(four_bit, DTYPES[dtype], device)
    with quiet():
        from transformers import AutoModelForCausalLM

        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                directory,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **packing,
            )
        except Exception as error:
            raise explained(error, directory, settings, trust_remote_code) from error
    demand_all(report["missing_keys"], directory)
    if wrong := report.get("mismatched_keys"):
        raise FileProblem(
            f"weights have other shapes than config.json says: {sorted(wrong)[0]}", file=directory
        )
    if four_bit is not None:
        adopt_bitsandbytes(model, DTYPES[dtype])
        _forget_quantiser(model)
    return model.to(device).eval()


def demand_all(missing: Iterable[str], directory: Path) -> None:
    """Raise FileProblem for weights that the files lack: transformers would make them up at random."""
    if names := sorted(missing):
        raise FileProblem(
            f"{len(names)} weights of the model are not in its files ({names[0]} ...)",
            file=directory,
            hint="the files are incomplete or of another kind of model: download it again",
        )


def _packing(method: QLora, dtype: torch.dtype, device: torch.device | str) -> dict[str, Any]:
    """How transformers is asked to pack weights while it reads them."""
    from transformers import BitsAndBytesConfig

    nf4.functional()
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=method.quantisation,
        bnb_4bit_use_double_quant=method.double_quantisation,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}


def _forget_quantiser(model: Any) -> None:
    """Let transformers treat the model as any other: its packed layers are ours now."""
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    model.hf_quantizer, model.is_quantized, model.is_loaded_in_4bit = None, False, False
    for name in ("quantization_method", "hf_device_map", "_is_hf_initialized_quantized"):
        if name in model.__dict__:
            delattr(model, name)


def explained(
    error: Exception, directory: Path, settings: dict[str, Any], trusted: bool
) -> FileProblem | Unsupported:
    """What went wrong in the user's words."""
    kind = settings.get("model_type")
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "auto_map" in settings and not trusted and "trust_remote_code" in str(error):
        return Unsupported(
            "the model needs Python code that comes with it",
            file=directory,
            hint="if you trust its authors, read that code and set model.trust_remote_code: true",
        )
    if kind is None or "does not recognize this architecture" in str(error) or isinstance(error, KeyError):
        return Unsupported(
            f"transformers does not know the architecture {kind!r}",
            file=directory / CONFIG,
            hint="update transformers, or choose another model",
        )
    if "Unrecognized configuration class" in str(error):
        return Unsupported(
            f"{kind} is not a causal language model: it cannot write text",
            file=directory / CONFIG,
            hint="choose a model whose architecture ends in ForCausalLM, or another task",
        )
    return FileProblem(f"the model cannot be loaded: {text}", file=directory)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and notices."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def weights_digest(directory: Path, *, cache: Path | None = None) -> str:
    """sha256 over the digests of a folder's weight files (one file: its own digest).

    cache: a JSON file, outside the model's folder, that remembers digests by path, size and time of
    change, so that large files are read once.
    """
    known: dict[str, str] = {}
    if cache is not None and cache.is_file():
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
    digests, fresh = [], False
    for file in weight_files(directory):
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in known:
            known[key], fresh = file_sha256(file), True
        digests.append(known[key])
    if not digests:
        raise FileProblem("no weights to take a digest of", file=directory)
    if cache is not None and fresh:
        write_text(cache, json.dumps(known, indent=0) + "\n")
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
