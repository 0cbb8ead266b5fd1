"""What an importance matrix changes: divergence from the 16-bit file on held-out prompts.

    python benchmarks/export/imatrix.py F16.gguf imatrix.dat HELD_OUT.jsonl [--prompts 12]

The files that an export of a run leaves behind, and chats (one ``messages`` a line). Each type is quantised
with and without the matrix; llama.cpp follows the 16-bit file's own greedy answers with each, place by
place. Writes imatrix.json beside this file.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from luthier.llamacpp.importance import WEIGHED_TYPES
from luthier.llamacpp.quantize import quantize
from luthier.llamacpp.runtime import Choice, LlamaServer, ServerSettings

HERE = Path(__file__).resolve().parent
TOKENS, TOP = 32, 200
SETTINGS = ServerSettings(context=512)


def divergence(one: Choice, other: Choice) -> float:
    """KL in nats over the tokens that both name and one bucket for the rest."""
    found = dict(other.top)
    pairs = [(math.exp(p), math.exp(found[token])) for token, p in one.top if token in found]
    rest = [max(1e-12, 1 - sum(side)) for side in zip(*pairs, strict=True)]
    return max(0.0, sum(p * math.log(p / q) for p, q in [*pairs, (rest[0], rest[1])] if p > 0 and q > 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("importance", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--prompts", type=int, default=12)
    arguments = parser.parse_args()
    lines = arguments.held_out.read_text(encoding="utf-8").splitlines()[: arguments.prompts]
    chats = [json.loads(line)["messages"][:-1] for line in lines]
    with LlamaServer(arguments.source, SETTINGS) as server:
        prompts = [server.tokenize(server.apply_template(chat)) for chat in chats]
        answers = [server.complete(prompt, TOKENS, top=TOP) for prompt in prompts]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in WEIGHED_TYPES:
            for label, weights in (("with", arguments.importance), ("without", None)):
                out = Path(scratch) / f"{kind}.gguf"
                quantize(arguments.source, out, kind, log=Path(scratch) / "log", importance=weights)
                nats, same = [], 0
                with LlamaServer(out, SETTINGS) as server:
                    for prompt, answer in zip(prompts, answers, strict=True):
                        for place, choice in enumerate(answer.choices):
                            before = [*prompt, *answer.tokens[:place]]
                            found = server.complete(before, 1, top=TOP, reuse=True).choices
                            if choice is None or not found or found[0] is None:
                                continue
                            same += choice.token == found[0].token
                            nats.append(divergence(choice, found[0]))
                row = {"type": kind, "matrix": label, "bytes": out.stat().st_size, "places": len(nats)}
                row |= {"same_token": same, "mean_kl": sum(nats) / len(nats)}
                rows.append(row)
                print(row, flush=True)
    found_all = {"prompts": len(prompts), "source_bytes": arguments.source.stat().st_size, "files": rows}
    (HERE / "imatrix.json").write_text(json.dumps(found_all, indent=1) + "\n")


if __name__ == "__main__":
    main()
