"""Measure training steps of our own trainer on one CUDA GPU, row by row, and go on where a call has stopped.

``python benchmarks/memory/grid.py OUT.jsonl [--minutes 9] [--only TEXT] [--tiny]`` runs each row of
``grid_rows.py`` that OUT does not hold yet for this card and these versions, in a process of its own, through
the same loop as a run. Random weights of the real shapes: neither memory nor speed depends on their values.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

from grid_rows import CONFIGS, METHODS, Row, rows

from luthier.schema.recipe import Full, Lora, TrainingChoice


class EnoughError(Exception):
    """All steps that were wanted are done."""


class Source:
    """The same micro-batches at every step; the second half of each document is trained."""

    def __init__(self, row: Row, vocab: int, device: Any) -> None:
        import torch

        self.most = row.steps
        size = (row.micro, row.length)
        each = row.length // row.documents
        places = torch.arange(row.length).expand(size)
        self.made = []
        for number in range(row.accumulation):
            ids = torch.randint(0, vocab, size, generator=torch.Generator().manual_seed(number))
            labels = torch.where(places % each < each // 2, -100, ids)
            fields = {"input_ids": ids, "labels": labels, "position_ids": places % each}
            fields["document_ids"] = places // each + 1
            moved = {name: values.contiguous().to(device) for name, values in fields.items()}
            self.made.append(SimpleNamespace(**moved))

    def steps(self, epoch: int) -> int:  # noqa: ARG002
        return 1_000_000

    def batches(self, epoch: int, step: int) -> list[Any]:  # noqa: ARG002
        if step >= self.most:
            raise EnoughError
        return self.made

    def rows(self, epoch: int, step: int) -> list[str]:  # noqa: ARG002
        return []


def build(row: Row, device: Any) -> Any:
    """The model with random weights, packed layer by layer as a run packs it while it reads."""
    import torch
    from torch import nn
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from luthier.models.lora import add_lora
    from luthier.models.packed import pack_linears

    given, method = CONFIGS[row.model], METHODS[row.method]
    config = CONFIG_MAPPING[given["model_type"]](**given)
    config._attn_implementation = "sdpa"
    packed = "nf4" if row.method == "qlora" else "float8" if row.method == "float8" else None
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    for part in [*model.model.layers, model]:
        for module in part.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.is_meta:
                    made = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
                    made.fill_(1.0) if weight.ndim == 1 else made.normal_(0, 0.02)
                    setattr(module, name, nn.Parameter(made))
        if packed and part is not model:
            pack_linears(part, packed)
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    model.config.use_cache = False
    model.requires_grad_(isinstance(method, Full))
    if isinstance(method, Lora):
        add_lora(model, method, seed=0)
    return model


def loop_of(stopped: EnoughError) -> Any:
    """The loop's own state where it was stopped: it tells memory by phase only once all steps are done."""
    frames = (frame for frame, _ in traceback.walk_tb(stopped.__traceback__))
    return next(frame.f_locals["run"] for frame in frames if "run" in frame.f_locals)


def measure(row: Row) -> dict[str, Any]:
    """Memory of three steps and the time of those after; what the process holds beside torch's allocator."""
    import torch

    from luthier.tasks.causal import causal_objective
    from luthier.training.loop import fit

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", 0) if cuda else torch.device("cpu")
    began = time.perf_counter()
    model = build(row, device)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if cuda else 0
    built = time.perf_counter() - began
    choice = TrainingChoice.model_validate(
        {
            "max_steps": 1_000_000, "learning_rate": 1e-5, "evaluate_every": 1_000_000,
            "checkpoint_every": 1_000_000, "on_spike": "off", "activation_checkpointing": row.keep,
            "recomputed_layers": row.recomputed, "compile": row.compiled, "optimizer": row.optimizer,
        }
    )  # fmt: skip
    objective = causal_objective(model, compiled=row.compiled, longest=row.length)
    events: list[dict[str, Any]] = []
    source = Source(row, int(model.config.vocab_size), device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            fit(
                model, objective, source, [], choice=choice, seed=1, directory=Path(folder),
                recipe_digest="grid", device=device, on_metrics=events.append,
            )  # fmt: skip
        except EnoughError as stopped:
            watch = loop_of(stopped).memory
    steps = [event for event in events if event["kind"] == "step"]
    seconds = [event["seconds"] for event in steps]
    found: dict[str, Any] = {
        "loaded": held, "seconds": seconds, "median": statistics.median(seconds[2:]), "built": built,
        "phases": dict(watch.phases), "allocated": watch.peak,
        "peaks": [event["peak_memory"] for event in steps],
        "out_of_memory": any(event["kind"] == "out_of_memory" for event in events),
        "loss": steps[-1]["loss"],
    }  # fmt: skip
    if cuda:
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        found |= {
            "reserved": reserved, "context": total - free - reserved, "card_bytes": total,
        }  # fmt: skip
    return found


def about() -> dict[str, Any]:
    """Where a row was measured: read without starting CUDA, which a forked process could not use then."""
    versions = {}
    for name in ("torch", "transformers", "bitsandbytes", "flash-attn-4"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    import torch

    card = "cpu"
    if torch.cuda.device_count():
        import pynvml

        pynvml.nvmlInit()
        name = pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(0))
        card = name if isinstance(name, str) else name.decode()
    return {"card": card, "versions": versions}


def in_child(row: Row) -> dict[str, Any]:
    """Measure in a fork, so that a row begins with an empty card and cannot end the others."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(reading)
        try:
            found = measure(row)
        except Exception as error:
            found = {
                "error": f"{type(error).__name__}: {error}"[:800],
                "trace": traceback.format_exc()[-1200:],
            }
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(said) if said else {"error": f"ended with status {status}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--only", default="", help="rows whose key holds this text")
    parser.add_argument(
        "--tiny", action="store_true", help="one small row of each method, to see that it works"
    )
    arguments = parser.parse_args()
    import torch  # noqa: F401 (once, for all forks)
    import transformers  # noqa: F401

    import luthier.tasks.causal
    import luthier.training.loop  # noqa: F401

    here = about()
    known = set()
    if arguments.out.exists():
        for line in arguments.out.read_text().splitlines():
            held = json.loads(line)
            if "error" not in held and {key: held[key] for key in here} == here:
                known.add(held["key"])
    wanted = (
        [Row("tiny", name, 2, 128, compiled=on) for name in METHODS for on in (False, True)]
        if arguments.tiny
        else list(rows())
    )
    began = time.monotonic()
    for row in wanted:
        if row.key in known or arguments.only not in row.key:
            continue
        if arguments.minutes is not None and time.monotonic() - began > 60 * arguments.minutes:
            print("stopped: --minutes", file=sys.stderr)
            break
        started = time.monotonic()
        line = {
            "key": row.key,
            "blind": row.blind,
            **here,
            **in_child(row),
            "took": time.monotonic() - started,
        }
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        held_gb = f"{line['allocated'] / 1e9:.2f} GB" if "allocated" in line else line.get("error", "")
        print(f"{row.key}: {held_gb}, {line['took']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
