"""Family x (merged, F16, Q8_0, Q5_K_M, Q4_K_M): size, parity and divergence of tiny random models.

    python benchmarks/export/families.py [FAMILY ...]

Each model has two layers of 256 (so that K-quants are real ones) and a vocabulary and template made for
it: what is shown is that the architecture survives, not that a maker's own template does. Writes
families.json and families.md beside this file; what does not convert is listed with its reason.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
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

TYPES = ("F16", "Q8_0", "Q5_K_M", "Q4_K_M")
MORE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", "qwen2", {}),
    "smollm3": ("SmolLM3", "llama-bpe", {}),
    "granite": ("Granite", "gpt-2", {}),
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


def measure(family: str, folder: Path) -> list[dict[str, Any]]:
    """One row an artifact. Errors: LuthierError where the family does not convert."""
    merged = tiny.save(folder / "merged", family)
    tokenizer = load_tokenizer(merged)
    model = TorchGenerator(load_causal(merged, dtype="float32"), tokenizer, label="tuned", weights_digest="-")
    room = (tokenizer.max_length or 512) - 16
    cases = [
        c for c in fixed_cases(tokenizer) if len(prompt_ids(list(c.messages), tokenizer, c.tools)) <= room
    ]
    expected = expect(model, cases, max_new_tokens=16)
    size = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    rows: list[dict[str, Any]] = [{"family": family, "file": "merged", "bytes": size}]
    for made in export_gguf(merged, folder, TYPES, name=family, relative_to=folder):
        settings = ServerSettings(context=needed_context(expected), threads=1)
        with LlamaServer(folder / made.path, settings) as server:
            parity = check_parity(expected, GgufGenerator(server, made.kind, made.sha256))
        kind = made.kind.removeprefix("gguf:")
        found = {"bytes": made.bytes, "predicted": made.predicted_bytes, "parity": parity.model_dump()}
        rows.append({"family": family, "file": kind, **found})
    return rows


def table(rows: list[dict[str, Any]], refused: dict[str, str]) -> str:
    """The rows as Markdown."""
    lines = ["| family | file | bytes | equal token ids | same token | mean KL | check |", "|---" * 7 + "|"]
    for row in rows:
        parity = row.get("parity")
        cells = ["", "", "", "the reference"]
        if parity:
            ids, same = (parity["equal_token_ids"], parity["prompts"]), "equal_tokens"
            cells = [
                f"{ids[0]} of {ids[1]}",
                f"{parity[same]} of {parity['compared_tokens']}",
                f"{parity['mean_kl']:.5f}",
                "passed" if parity["passed"] else parity["problems"][0],
            ]
        lines.append(f"| {' | '.join([row['family'], row['file'], format(row['bytes'], ','), *cells])} |")
    lines += [f"| {family} | | | | | | {why} |" for family, why in refused.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure the families named, or all."""
    tiny.FAMILIES.update(MORE)
    rows: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for family in sys.argv[1:] or tiny.FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                rows += measure(family, Path(scratch))
            except LuthierError as error:
                why = error.message.partition("failed")[2] or error.message
                refused[family] = re.sub(r"/\S*/", "", why).strip()
        print(family, refused.get(family, "done"), flush=True)
    shown = {"vocabulary and template": "made for the test", "rows": rows, "refused": refused}
    (HERE / "families.json").write_text(json.dumps(shown, indent=1) + "\n")
    (HERE / "families.md").write_text(table(rows, refused))


if __name__ == "__main__":
    main()
