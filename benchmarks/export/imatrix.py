"""What an importance matrix of training rows changes: divergence from the trained model on held-out prompts.

    python benchmarks/export/imatrix.py MERGED TRAIN.jsonl HELD_OUT.jsonl [--prompts 32]

MERGED: merged weights of a run. Files of training and held-out chats: one ``messages`` a line. Each type is
made with and without a matrix from the same F16 file and asked in llama.cpp. Writes imatrix.json beside
this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from luthier.checks.parity import check_parity, expect, needed_context
from luthier.checks.parity_prompts import PromptCase
from luthier.data.tokenizer import load_tokenizer
from luthier.exporting.gguf import export_gguf
from luthier.llamacpp.importance import WEIGHED_TYPES
from luthier.llamacpp.runtime import GgufGenerator, LlamaServer, ServerSettings
from luthier.models.generate import TorchGenerator
from luthier.models.importance import input_importance
from luthier.models.load import load_causal
from luthier.tasks.chat import IMPORTANCE_ROWS, IMPORTANCE_TOKENS

HERE = Path(__file__).resolve().parent


def chats(path: Path, most: int) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()[:most]
    return [json.loads(line)["messages"] for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("merged", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--name", default="imatrix")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(arguments.merged)
    model = load_causal(arguments.merged, dtype="bfloat16")
    rows = chats(arguments.train, IMPORTANCE_ROWS)
    ids = [tokenizer.encode(tokenizer.render(row))[:IMPORTANCE_TOKENS] for row in rows]
    importance = {path: values.numpy() for path, values in input_importance(model, ids).items()}
    cases = [
        PromptCase(f"row {i}", row[:-1], None)
        for i, row in enumerate(chats(arguments.held_out, arguments.prompts))
    ]
    generator = TorchGenerator(model, tokenizer, label="tuned", weights_digest="-")
    expected = expect(generator, cases, max_new_tokens=48)
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for label, weights in (("with", importance), ("without", None)):
            out = Path(scratch) / label
            made = export_gguf(
                arguments.merged, out, WEIGHED_TYPES, name="m", relative_to=out, importance=weights
            )
            for one in made:
                with LlamaServer(out / one.path, ServerSettings(context=needed_context(expected))) as server:
                    parity = check_parity(expected, GgufGenerator(server, one.kind, one.sha256))
                row = {"type": one.kind, "matrix": label, "bytes": one.bytes, **parity.model_dump()}
                found.append(row)
                print(
                    one.kind, label, parity.mean_kl, parity.equal_tokens, parity.compared_tokens, flush=True
                )
    result = {
        "prompts": len(cases),
        "training_rows": len(rows),
        "training_tokens": sum(len(one) for one in ids),
        "files": found,
    }
    (HERE / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
