"""A saved chat model that answers for another process: ``python -m luthier.tasks.speak FOLDER DTYPE``.

JSON lines: one with the digest once the model is loaded, then for each request of standard input
(``{"chats", "tools", "max_new_tokens"}``, or ``{"pairs"}`` of context and continuation) progress
(``{"done", "total"}``) and one line with the answers or the log-probabilities. Ends with its input. A
failure is one line with message, hint and exit code.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from luthier.tasks.child import Say, requests, talk


def _serve(folder: Path, dtype: Any, say: Say) -> None:
    import torch

    from luthier.data.tokenizer import load_tokenizer
    from luthier.models.generate import TorchGenerator
    from luthier.models.load import load_causal, weights_digest
    from luthier.models.score import scorer_of

    tokenizer = load_tokenizer(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_causal(folder, dtype=dtype, device=device, attention="sdpa")
    # The same weights in another type, or asked through another template, may answer otherwise.
    named = f"{weights_digest(folder)}\n{dtype}\n{tokenizer.digest}"
    digest = hashlib.sha256(named.encode()).hexdigest()
    generator = TorchGenerator(model, tokenizer, label=folder.name, weights_digest=digest)
    scorer = scorer_of(generator, tokenizer)
    say(weights_digest=digest)
    for asked in requests():
        if "pairs" in asked:
            found = scorer.score(
                [(context, rest) for context, rest in asked["pairs"]],
                progress=lambda done, total: say(done=done, total=total),
            )
            say(scores=[[one.nats, one.tokens, one.greedy] for one in found])
            continue
        answers = generator.generate(
            asked["chats"],
            tools=asked["tools"],
            max_new_tokens=asked["max_new_tokens"],
            progress=lambda done, total: say(done=done, total=total),
        )
        say(answers=[[a.text, list(a.token_ids), a.stopped] for a in answers])


def main() -> int:
    """Entry of the process."""
    return talk(lambda say: _serve(Path(sys.argv[1]), sys.argv[2], say))


if __name__ == "__main__":
    raise SystemExit(main())
