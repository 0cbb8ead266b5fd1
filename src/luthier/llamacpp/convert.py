"""Turns a saved model or adapter into GGUF with llama.cpp's converter, in a child process.

The child has no network and runs no code that comes with a model.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from luthier.errors import FileProblem, ToolchainError, Unsupported
from luthier.files import replaced
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.process import OFFLINE, last_lines, run_child
from luthier.llamacpp.setup import Converter, converter

OutType = Literal["f32", "f16", "bf16", "q8_0"]

_UNFIT = {
    "BertForSequenceClassification": "llama.cpp drops BERT's pooler and second token type, so scores change",
}
"""Classes that convert without an error and answer wrongly."""
_DRAFTING = (
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5MoeForConditionalGeneration",
)
"""Classes that the converter gives layers that draft tokens ahead (MTP), be they in the folder or not."""


def convert(
    model_dir: Path,
    out: Path,
    *,
    outtype: OutType = "f16",
    projector: bool = False,
    log: Path | None = None,
    using: Converter | None = None,
    timeout: float = 4 * 3600,
) -> str:
    """Write the model in ``model_dir`` (config, safetensors, tokenizer) to the GGUF file ``out``.

    The file appears whole or not at all. Returns llama.cpp's build. log: where the converter's words go
    (beside ``out`` by default). projector: write the vision tower and what joins it to the text model
    instead (llama.cpp's ``mmproj``). Errors: FileProblem for an incomplete folder, Unsupported for a model
    that comes out wrong, ToolchainError with the last lines of the log.
    """
    tool = using or converter()
    config = _json(model_dir / "config.json")
    _refuse(model_dir, config)
    log = log or out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".convert-", dir=out.parent) as scratch:
        source = _with_plain_bos(model_dir.resolve(), Path(scratch))
        arguments = [str(tool.model_script), str(source), "--outtype", outtype]
        arguments += ["--mmproj"] if projector else _without_drafts(model_dir, config)
        _run(tool, arguments, out, log, timeout, what=f"converting {model_dir.name} to GGUF")
    return tool.build


def _without_drafts(model_dir: Path, config: dict[str, Any]) -> list[str]:
    """What tells the converter that drafting layers are not there, as transformers does not save them."""
    if not any(name in _DRAFTING for name in config.get("architectures") or ()):
        return []
    from safetensors import safe_open

    for path in model_dir.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            if any(name.removeprefix("model.").startswith("mtp.") for name in file.keys()):  # noqa: SIM118
                return []
    return ["--no-mtp"]


def _with_plain_bos(model_dir: Path, scratch: Path) -> Path:
    """The folder to convert: where BOS would be added that the model never saw, a view of it without.

    What is trained on is the rendered chat template. Where the template writes no BOS, none may be
    added, though the base's tokenizer adds one to plain text, and though llama.cpp does so for some
    pre-tokenizers where a file says nothing.
    """
    path = model_dir / "tokenizer_config.json"
    settings = _json(path) if path.is_file() else {}
    if settings.get("add_bos_token") is False:
        return model_dir
    template = _template(model_dir, settings)
    named = settings.get("bos_token")
    bos = named.get("content") if isinstance(named, dict) else named
    if template:
        # A tokenizer that names no BOS has none that its template could write.
        plain = not bos or not ("bos_token" in template or bos in template)
    else:
        vocabulary = model_dir / "tokenizer.json"
        unsaid = "add_bos_token" not in settings and vocabulary.is_file()
        plain = unsaid and not _json(vocabulary).get("post_processor")
    if not plain:
        return model_dir
    view = scratch / model_dir.name  # the converter names the model after its folder
    view.mkdir()
    for item in model_dir.iterdir():
        if item.name != path.name:
            _link(item, view / item.name)
    (view / path.name).write_text(json.dumps({**settings, "add_bos_token": False}), encoding="utf-8")
    return view


def _template(model_dir: Path, settings: dict[str, Any]) -> str:
    """Source of the model's chat templates, all of them; empty where it has none."""
    found = [path.read_text(encoding="utf-8") for path in sorted(model_dir.glob("**/*.jinja"))]
    beside = model_dir / "chat_template.json"
    values = [settings.get("chat_template"), _json(beside) if beside.is_file() else None]
    return "\n".join([*found, *(json.dumps(value, ensure_ascii=False) for value in values if value)])


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:  # Windows without the right to make links
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def convert_adapter(
    adapter_dir: Path,
    base_dir: Path,
    out: Path,
    *,
    outtype: OutType = "f16",
    log: Path | None = None,
    using: Converter | None = None,
    timeout: float = 3600,
) -> str:
    """Write a PEFT LoRA adapter to a GGUF adapter that llama.cpp applies to the base's GGUF.

    base_dir: config and tokenizer of the base; its weights are not read. Returns llama.cpp's build.
    Errors: as :func:`convert`; Unsupported for DoRA and for scales that differ between modules, which
    the GGUF adapter format cannot hold.
    """
    tool = using or converter()
    settings = _json(adapter_dir / "adapter_config.json")
    merged = "export the merged model instead (`luthier export RUN --gguf ...`)"
    if settings.get("use_dora"):
        raise Unsupported("a GGUF adapter cannot hold DoRA's magnitudes", file=adapter_dir, hint=merged)
    if settings.get("alpha_pattern") or settings.get("rank_pattern"):
        raise Unsupported("a GGUF adapter has one scale for all modules", file=adapter_dir, hint=merged)
    log = log or out.with_suffix(".log")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=out.parent) as staging:
        source = adapter_dir.resolve()
        if settings.get("use_rslora"):
            # llama.cpp divides by the rank, rsLoRA by its root: the difference goes into alpha
            source = Path(staging)
            scaled = {**settings, "lora_alpha": settings["lora_alpha"] * math.sqrt(settings["r"])}
            (source / "adapter_config.json").write_text(json.dumps(scaled), encoding="utf-8")
            weights = adapter_dir / "adapter_model.safetensors"
            _link(weights.resolve(), source / weights.name)
        arguments = [str(tool.adapter_script), str(source), "--base", str(base_dir.resolve())]
        arguments += ["--outtype", outtype]
        _run(tool, arguments, out, log, timeout, what=f"converting the adapter {adapter_dir.name} to GGUF")
    return tool.build


def convert_projector(model_dir: Path, out: Path, *, log: Path | None = None) -> str | None:
    """Write the vision projector of a model that sees; None where it is none.

    Returns llama.cpp's build. Errors: Unsupported with the reason where the converter has none for it.
    """
    config = _json(model_dir / "config.json")
    if "vision_config" not in config:
        return None
    try:
        return convert(model_dir, out, projector=True, log=log)
    except ToolchainError as error:
        kind = next(iter(config.get("architectures") or ()), config.get("model_type"))
        raise Unsupported(
            f"llama.cpp's converter makes no vision projector of {kind}: {error.message}",
            file=model_dir,
            hint="the GGUF file answers texts alone; serve the merged weights with vLLM for images",
        ) from None


def _run(tool: Converter, arguments: list[str], out: Path, log: Path, timeout: float, *, what: str) -> None:
    child = [sys.executable, "-P", "-m", "luthier.llamacpp.convert_child", str(tool.folder)]
    with replaced(out) as partial:
        try:
            run_child(
                [*child, *arguments, "--outfile", str(partial)],
                what=what,
                log=log,
                timeout=timeout,
                environment={**OFFLINE, "TOKENIZERS_PARALLELISM": "false"},
                hint=None,
            )
        except ToolchainError as error:
            raise _explained(error, log) from None
        if not partial.is_file() or partial.stat().st_size == 0:
            raise ToolchainError("the converter wrote no file", file=log, hint=last_lines(log))
        read_header(partial)  # a torn file is found here, not by the user


def _explained(error: ToolchainError, log: Path) -> ToolchainError:
    """The same failure, with the way out where its cause is a known one."""
    words = last_lines(log, 40)
    known = (
        (
            "BPE pre-tokenizer was not recognized",
            "llama.cpp does not know how this tokenizer splits text: use the base model's own tokenizer, or "
            "ship the merged safetensors",
        ),
        ("is not supported", "llama.cpp has no converter for this architecture: ship the merged safetensors"),
        ("No module named", "pip install 'luthier[train,export]'"),
        ("tokenizer.model", "copy the base model's tokenizer.model (SentencePiece) into the folder"),
        ("No space left", "free some space, or choose another folder"),
    )
    for sign, hint in known:
        if sign in words:
            return ToolchainError(error.message, file=log, hint=f"{hint}\n{last_lines(log, 3)}")
    return error


def _refuse(model_dir: Path, config: dict[str, Any]) -> None:
    for name in config.get("architectures") or ():
        if name in _UNFIT:
            raise Unsupported(
                f"{name} does not survive GGUF: {_UNFIT[name]}", file=model_dir, hint="export it as ONNX"
            )
    if not any(model_dir.glob("*.safetensors")):
        raise FileProblem(
            "has no safetensors", file=model_dir, hint="give the folder of a merged or full model"
        )


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileProblem(
            "no such file", file=path, hint="give the folder of a saved model or adapter"
        ) from None
    except json.JSONDecodeError as error:
        raise FileProblem(f"is broken JSON: {error.msg}", file=path, line=error.lineno) from None
    if not isinstance(values, dict):
        raise FileProblem("holds no JSON object", file=path)
    return values
