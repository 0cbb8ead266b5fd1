"""Evaluation of 500 rows of generation against answering them one at a time, on the same machine.

    python -P benchmarks/proof/speed.py MODEL ROWS --out benchmarks/proof/speed.json

MODEL: a Hugging Face folder. ROWS: JSON lines with messages. One at a time is ``generate`` of transformers
with its key-value cache, on every so many rows (--sampled) and taken to all of them; Luthier answers all,
fresh, by its evaluator. Both take the seconds of this process on the processor, which other work does not
lengthen as it does the clock, and both clocks are told. Greedy, in one type; the answers are compared (in
bf16 near-ties may fall otherwise, in fp32 they are the same).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.load import read_chats
from luthier.data.tokenizer import load_tokenizer
from luthier.evaluation.generation import evaluate
from luthier.models.generate import TorchGenerator
from luthier.models.load import load_causal
from luthier.schema.recipe import DataChoice


def main() -> None:
    """Measure both, and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--sampled", type=int, default=40)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--new-tokens", type=int, default=24)
    asked = parser.parse_args()
    chats, _, _ = read_chats(DataChoice(train=(str(asked.rows),)), (str(asked.rows),), base=Path.cwd())
    rows = chats[: asked.count]
    tokenizer = load_tokenizer(asked.model)
    model = load_causal(asked.model, dtype=asked.dtype, device="cpu", attention="sdpa")
    generator = TorchGenerator(model, tokenizer, label="model", weights_digest="")
    evaluate(generator, rows[:4], split="warm", metrics=("exact_match",), max_new_tokens=2)
    clock, busy = time.perf_counter(), time.process_time()
    result = evaluate(
        generator, rows, split="test", metrics=("exact_match",), max_new_tokens=asked.new_tokens
    )
    ours = {"wall": time.perf_counter() - clock, "processor": time.process_time() - busy, "rows": len(rows)}
    del model, generator
    theirs_model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=getattr(torch, asked.dtype))
    theirs_tokenizer = AutoTokenizer.from_pretrained(asked.model)
    step = max(1, len(rows) // asked.sampled)
    same = 0
    clock, busy = time.perf_counter(), time.process_time()
    sampled = range(0, len(rows), step)
    for place in sampled:
        last = max(i for i, m in enumerate(rows[place].messages) if m["role"] == "assistant")
        given = theirs_tokenizer.apply_chat_template(
            rows[place].messages[:last], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = theirs_model.generate(**given, do_sample=False, max_new_tokens=asked.new_tokens)
        said = theirs_tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        same += said.strip() == result.rows[place].answer.strip()
    alone = {
        "wall": time.perf_counter() - clock,
        "processor": time.process_time() - busy,
        "rows": len(sampled),
    }
    ratio = {
        clock_name: (alone[clock_name] / alone["rows"]) / (ours[clock_name] / ours["rows"])
        for clock_name in ("processor", "wall")
    }
    told = {
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "dtype": asked.dtype,
        "new_tokens": asked.new_tokens,
        "evaluate": ours,
        "one at a time": alone,
        "same answers": same,
        "times as fast": ratio,
    }
    asked.out.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
