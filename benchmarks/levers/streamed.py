"""Frozen weights on the GPU beside frozen weights that wait in the host's memory: peak, step, loss, answers.

    python benchmarks/levers/streamed.py OUT.jsonl [--model llama-3.1-8b] [--methods lora qlora]
                                         [--tokens 2048 8192] [--new-tokens] [--steps 4]

Random weights of a real shape, bf16, rank 16 on all linear layers, layers computed again (full), compiled,
through Luthier's own loop. For each method one model is built on the GPU, measured there, then its layers'
weights are moved to the host and it is measured again with the same rows; --new-tokens adds a row with the
rows of two new tokens trained. Each line: step time, peak of the tensors beside the prediction, the last
loss, the largest difference of logits before and after the move (adapters begin at zero), the rate at
which weights come. --away-only leaves the first measurement out, for models that do not fit; --graphs
records launches, keeps activations, and moves nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent / "src"), str(HERE.parent / "speed")]

import step  # noqa: E402 (from benchmarks/speed)
import torch  # noqa: E402
from shapes import SHAPES  # noqa: E402

from luthier.models import streamed  # noqa: E402
from luthier.models.new_tokens import grow, train_rows  # noqa: E402
from luthier.planning.estimate import kernels_for  # noqa: E402
from luthier.schema.estimate import TrainingShape  # noqa: E402
from luthier.schema.recipe import Lora, QLora  # noqa: E402
from luthier.sizing.model_config import architecture_from_config  # noqa: E402
from luthier.sizing.parameters import with_new_tokens  # noqa: E402
from luthier.sizing.training import training_memory  # noqa: E402
from luthier.training.layers import layers_of  # noqa: E402
from luthier.training.world import ALONE  # noqa: E402


def predicted(row: dict[str, str], *, away: bool, new: Sequence[int]) -> float:
    """Peak of the tensors in the closed form, GB."""
    arch = architecture_from_config(SHAPES[row["model"]].to_dict())
    length = min(int(row["length"]), int(row["tokens"]))
    documents = int(row["tokens"]) // length
    shape = TrainingShape(
        micro_batch_size=1, sequence_length=int(row["tokens"]), documents=documents, batch_size=1,
        activation_checkpointing=row["keep"], compiled=row["compile"] == "1", offload_parameters=away,
    )  # fmt: skip
    cuda = torch.cuda.is_available()
    method = QLora() if row["method"] == "qlora" else Lora()
    memory = training_memory(
        with_new_tokens(arch, new), method, shape,
        dtype="bfloat16", kernels=kernels_for("cuda" if cuda else "cpu", "bfloat16", compiled=shape.compiled),
        hopper=cuda and torch.cuda.get_device_capability() >= (9, 0), cuda=cuda,
    )  # fmt: skip
    return max(phase.total for phase in memory.phases if phase.name != "load") / 1e9


@torch.no_grad()
def logits(model: Any, device: torch.device) -> torch.Tensor:
    ids = torch.arange(7, 71, device=device)[None]
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0].float()
    return found


def rate(chain: Any) -> float:
    """GB/s at which layers come when nothing else runs."""
    began, size = time.perf_counter(), 0
    for _ in range(2):
        for index in range(len(chain.parts)):
            with chain.on_device(index, None):
                size += chain.sizes[index]
    if chain.cuda:
        torch.cuda.synchronize()
    return size / (time.perf_counter() - began) / 1e9


def measured(
    model: Any, row: dict[str, str], device: torch.device, new: Sequence[int], **said: Any
) -> dict[str, Any]:
    found = step.measure(model, row, str(device), ALONE)
    foretold = predicted(row, away=said["away"], new=new)
    kept = ("step_ms", "tokens_per_second", "allocated_gb", "loss", "first_step_s", "notes")
    said = {**said, "new_tokens": len(new)}
    return {**said, **{key: found[key] for key in kept}, "predicted_gb": foretold}


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    words.add_argument("out", type=Path)
    words.add_argument("--model", default="llama-3.1-8b")
    words.add_argument("--methods", nargs="*", default=["lora", "qlora"])
    words.add_argument("--tokens", nargs="*", default=["4096"])
    words.add_argument("--steps", default="4")
    words.add_argument("--new-tokens", action="store_true")
    words.add_argument("--away-only", action="store_true")
    words.add_argument("--graphs", action="store_true")
    words.add_argument("--plain", action="store_true", help="layers as they are, not compiled")
    words.add_argument("--least", type=int, help="bytes from which on a tensor is moved")
    asked = words.parse_args()
    if asked.least:
        streamed.LEAST = asked.least
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def put(**record: Any) -> None:
        with asked.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(
            json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True
        )

    if device.type == "cuda":
        put(card=torch.cuda.get_device_name(), torch=torch.__version__)
    for method in asked.methods:
        row = step.DEFAULTS | {
            "model": asked.model, "method": method, "keep": "none" if asked.graphs else "full",
            "steps": asked.steps, "compile": "0" if asked.plain else "1", "tokens": asked.tokens[0],
            "graphs": str(int(asked.graphs)),
        }  # fmt: skip
        rows = [row | {"tokens": tokens, "length": str(min(2048, int(tokens)))} for tokens in asked.tokens]
        model = step.adapted(row, str(device))
        if not asked.away_only:
            for one in rows:
                put(**measured(model, one, device, (), method=method, tokens=one["tokens"], away=False))
        new: tuple[int, ...] = ()
        if asked.new_tokens:
            size = SHAPES[asked.model].vocab_size
            new = (size, size + 1)
            grow(model, {new[0]: (5, 9), new[1]: (7, 11, 30)})
            train_rows(model, new)
            put(**measured(model, rows[0], device, new, method=method, tokens=rows[0]["tokens"], away=False))
            SHAPES[asked.model].vocab_size = size
        if asked.graphs:
            continue
        for name, weight in model.named_parameters():
            if name.endswith("lora_B"):
                weight.data.zero_()  # as it began, so that logits can be compared
        before = logits(model, device)
        began = time.perf_counter()
        chain = streamed.stream_layers(model, layers_of(model), device)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        moving = time.perf_counter() - began
        apart = float((logits(model, device) - before).abs().max())
        held = torch.cuda.memory_allocated() / 1e9 if device.type == "cuda" else 0.0
        waiting = sum(chain.sizes) / 1e9
        put(method=method, moving_s=moving, logits_apart=apart, held_gb=held, waiting_gb=waiting,
            gb_s=rate(chain))  # fmt: skip
        for one in rows:
            put(**measured(model, one, device, new, method=method, tokens=one["tokens"], away=True))
        del model, chain, before
        gc.collect()


if __name__ == "__main__":
    main()
