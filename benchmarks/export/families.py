"""Family x (merged, F16, Q8_0, Q5_K_M, Q4_K_M): size, parity and divergence of tiny random models.

    python tools/real_vocabularies.py TPL
    LUTHIER_TEST_TEMPLATES=TPL python benchmarks/export/families.py [FAMILY ...]

Each model has two layers of 256, so that K-quants are real ones. Template and vocabulary are the maker's own
where LUTHIER_TEST_TEMPLATES has them, else made for the test; each row says which. Writes families.json and
families.md beside this file (with families named: only their rows anew); what does not convert is listed
with its reason.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

import gguf_families as tiny  # noqa: E402
from luthier.checks.parity import check_parity, expect, needed_context  # noqa: E402
from luthier.checks.parity_prompts import fixed_cases  # noqa: E402
from luthier.data.render import prompt_ids  # noqa: E402
from luthier.data.tokenizer import load_tokenizer  # noqa: E402
from luthier.errors import LuthierError  # noqa: E402
from luthier.exporting.gguf import export_gguf  # noqa: E402
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings  # noqa: E402
from luthier.models.generate import TorchGenerator  # noqa: E402
from luthier.models.load import load_causal  # noqa: E402
from real_templates import FOLDER, MARKERS, family_of, real_tokenizer  # noqa: E402

TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
GRANITE = {
    # those of Granite 3.3; with the class's own default of 1 attention is sharper than any trained model's
    "attention_multiplier": 1 / 64,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", "qwen2", {}),
    "smollm3": ("SmolLM3", "llama-bpe", {}),
    "granite": ("Granite", "gpt-2", GRANITE),
    "olmo2": ("Olmo2", "gpt-2", {}),
    "qwen3_moe": (
        "Qwen3Moe",
        "qwen2",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "norm_topk_prob": True,
            "head_dim": 64,
        },
    ),
    "phi3": ("Phi3", "gpt-2", {}),
}
TEMPLATES = {
    "llama": "meta-llama-Llama-3.1-8B-Instruct",
    "qwen2": "Qwen-Qwen2.5-7B-Instruct",
    "qwen3": "Qwen-Qwen3-0.6B",
    "qwen3_moe": "Qwen3-Coder",
    "mistral": "mistralai-Mistral-Nemo-Instruct-2407",
    "smollm3": "HuggingFaceTB-SmolLM3-3B",
    "granite": "ibm-granite-granite-3.3-2B-Instruct",
}
"""Families whose own template and vocabulary can be had without the Hub."""
ONLY_TEMPLATES = {"gemma3": "google-gemma-3-it", "phi3": "microsoft-Phi-3.5-mini-instruct"}
"""Families whose vocabulary the converter wants as SentencePiece's own file: template, made-up vocabulary."""


def vocabulary_of(family: str, folder: Path) -> tuple[Any, tuple[int, ...], str]:
    """A tokenizer as transformers wraps it, its end tokens, and whose it is."""
    name = TEMPLATES.get(family)
    if FOLDER is not None and family in ONLY_TEMPLATES:
        return only_template(family)
    if FOLDER is None or name is None:
        wrapped = tiny.made_up(tiny.FAMILIES[family][1])
        if family == "qwen2":
            # transformers gives Qwen2's tokenizer this token, whose number must lie within the model's
            wrapped.add_special_tokens({"pad_token": "<|endoftext|>"})
        return wrapped, (2,), "made for the test"
    source = folder / "tokenizer"
    source.mkdir()
    read = real_tokenizer(name, source)
    read._fast.save(str(source / "tokenizer.json"))
    whose = family_of(name)
    settings = json.loads(
        (Path(FOLDER) / "vocabularies" / whose.vocabulary / "tokenizer_config.json").read_text()
    )
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        bos_token=settings.get("bos_token"),
        eos_token=whose.ends[0],
        pad_token=whose.ends[-1],
        chat_template=(source / "chat_template.jinja").read_text(encoding="utf-8"),
        model_max_length=2048,
    )
    ends = tuple(wrapped.convert_tokens_to_ids(list(whose.ends)))
    return wrapped, ends, f"{name}: template and vocabulary" if whose.own else f"{name}: template"


def only_template(family: str) -> tuple[Any, tuple[int, ...], str]:
    """A made-up vocabulary that knows the marks of a maker's template."""
    name = ONLY_TEMPLATES[family]
    template = (Path(FOLDER or "") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    own = family_of(name)
    wrapped = tiny.made_up(tiny.FAMILIES[family][1])
    bos = "<bos>" if "bos_token" in template else None
    marks = sorted({*MARKERS.findall(template), *own.ends, *([bos] if bos else [])})
    wrapped.add_special_tokens({"additional_special_tokens": marks, "eos_token": own.ends[0]})
    if bos is not None:
        wrapped.add_special_tokens({"bos_token": bos})
    wrapped.chat_template = template
    ends = tuple(wrapped.convert_tokens_to_ids(list(own.ends)))
    return wrapped, ends, f"{name}: template"


def measure(family: str, folder: Path) -> list[dict[str, Any]]:
    """One row an artifact. Errors: LuthierError where the family does not convert."""
    wrapped, ends, whose = vocabulary_of(family, folder)
    merged = tiny.save(folder / "merged", family, wrapped, ends=ends)
    if family == "phi3":  # as Phi-4, whose vocabulary is byte-level BPE too
        place = merged / "tokenizer_config.json"
        place.write_text(json.dumps(json.loads(place.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(merged, now=datetime.now())  # llama.cpp tells templates today's date
    model = TorchGenerator(load_causal(merged, dtype="float32"), tokenizer, label="tuned", weights_digest="-")
    room = (tokenizer.max_length or 512) - 16
    cases = [
        c for c in fixed_cases(tokenizer) if len(prompt_ids(list(c.messages), tokenizer, c.tools)) <= room
    ]
    expected = expect(model, cases, max_new_tokens=16)
    size = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    rows: list[dict[str, Any]] = [{"family": family, "file": "merged", "bytes": size, "vocabulary": whose}]
    for made in export_gguf(merged, folder, TYPES, name=family, relative_to=folder):
        settings = ServerSettings(context=needed_context(expected), threads=1)
        with LlamaServer(folder / made.path, settings) as server:
            parity = check_parity(expected, GgufGenerator(server, made.kind, made.sha256))
        kind = made.kind.removeprefix("gguf:")
        found = {
            "vocabulary": whose,
            "bytes": made.bytes,
            "predicted": made.predicted_bytes,
            "parity": parity.model_dump(),
        }
        rows.append({"family": family, "file": kind, **found})
    return rows


def table(rows: list[dict[str, Any]], refused: dict[str, str]) -> str:
    """The rows as Markdown."""
    heads = ["family", "real parts", "file", "bytes", "equal token ids", "same token", "mean KL", "check"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        parity = row.get("parity")
        cells = ["", "", "", "the reference"]
        if parity:
            ids, same = (parity["equal_token_ids"], parity["prompts"]), "equal_tokens"
            cells = [
                f"{ids[0]} of {ids[1]}",
                f"{parity[same]} of {parity['compared_tokens']}",
                "" if parity["mean_kl"] is None else f"{parity['mean_kl']:.5f}",
                "passed" if parity["passed"] else parity["problems"][0],
            ]
        named = [row["family"], row["vocabulary"], row["file"], format(row["bytes"], ",")]
        lines.append(f"| {' | '.join([*named, *cells])} |")
    lines += [f"| {family} | | | | | | | {why} |" for family, why in refused.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the families named, or all."""
    tiny.FAMILIES.update(MORE)
    place = HERE / "families.json"
    before = json.loads(place.read_text()) if place.is_file() and sys.argv[1:] else {}
    rows: list[dict[str, Any]] = [r for r in before.get("rows", ()) if r["family"] not in sys.argv[1:]]
    refused: dict[str, str] = {
        f: why for f, why in before.get("refused", {}).items() if f not in sys.argv[1:]
    }
    for family in sys.argv[1:] or tiny.FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                rows += measure(family, Path(scratch))
            except LuthierError as error:
                why = error.message.partition("failed")[2] or error.message
                refused[family] = re.sub(r"/\S*/", "", why).strip()
        print(family, refused.get(family, "done"), flush=True)
        write(rows, refused)


def write(rows: list[dict[str, Any]], refused: dict[str, str]) -> None:
    order = list(tiny.FAMILIES)
    rows = sorted(rows, key=lambda row: order.index(row["family"]))
    (HERE / "families.json").write_text(json.dumps({"rows": rows, "refused": refused}, indent=1) + "\n")
    (HERE / "families.md").write_text(table(rows, refused))


if __name__ == "__main__":
    main()
