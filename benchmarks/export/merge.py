"""Peak memory and time of merging an adapter: streamed from file to file, and in memory.

    python benchmarks/export/merge.py [--layers 22] [--folder DIR]

Writes a random Llama in bf16 shard by shard (2,048 wide; 22 layers are 2.2 GB) and merges a LoRA of rank
16 on all linear layers, each way in a process of its own. Writes merge.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def write_base(folder: Path, layers: int) -> None:
    """A model of which no more than one layer is in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).mul_(0.02).bfloat16()

    places: dict[str, str] = {}

    def save(number: int, tensors: dict[str, Any]) -> None:
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    wide, inner, narrow = 2048, 5632, 256
    ones = torch.ones(wide, dtype=torch.bfloat16)
    save(0, {"model.embed_tokens.weight": matrix(32_000, wide), "model.norm.weight": ones})
    for i in range(layers):
        shapes = {
            "self_attn.q_proj": (wide, wide),
            "self_attn.k_proj": (narrow, wide),
            "self_attn.v_proj": (narrow, wide),
            "self_attn.o_proj": (wide, wide),
            "mlp.gate_proj": (inner, wide),
            "mlp.up_proj": (inner, wide),
            "mlp.down_proj": (wide, inner),
        }
        layer = {f"model.layers.{i}.{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            layer[f"model.layers.{i}.{norm}.weight"] = ones.clone()
        save(i + 1, layer)
    save(layers + 1, {"lm_head.weight": matrix(32_000, wide)})
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapted_model(model: Any) -> None:
    import torch

    from luthier.models.lora import adapted, add_lora
    from luthier.schema.recipe import Lora

    add_lora(model, Lora(rank=16))
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapted(model):
        for part in ("lora_A", "lora_B"):
            drawn = torch.randn(getattr(layer, part).shape, generator=generator).mul_(0.02)
            setattr(layer, part, torch.nn.Parameter(drawn))


def merge(way: str, base: Path, out: Path) -> None:
    """The child: merge one way and say its peak."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from luthier.models.load import load_causal
    from luthier.models.lora import merge as merge_in_memory
    from luthier.models.merge_files import files_merge

    if way == "streamed":
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base), dtype=torch.bfloat16)
        adapted_model(model)
        before, began = peak_memory(), time.perf_counter()
        streamed = files_merge(model, base)
        assert streamed is not None
        streamed.write(out)
    else:
        model = load_causal(base, dtype="bfloat16")
        adapted_model(model)
        before, began = peak_memory(), time.perf_counter()
        merge_in_memory(model)
        model.save_pretrained(out)
    seconds = time.perf_counter() - began
    print(json.dumps({"peak_bytes": peak_memory(), "before_bytes": before, "seconds": seconds}))


def peak_memory() -> int:
    """Peak resident bytes of this process (Linux); getrusage's figure outlives the parent's exec."""
    words = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()
    return int(words[0]) * 1024


def digest(folder: Path) -> str:
    """Of all tensors by name, whatever the files are called."""
    import torch

    from luthier.models.merge_files import stored_tensors

    found = hashlib.sha256()
    for name, stored in sorted(stored_tensors(folder).items()):
        found.update(name.encode())
        for piece in stored.pieces():
            found.update(piece.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--way")
    arguments = parser.parse_args()
    if arguments.way:
        merge(arguments.way, arguments.folder / "base", arguments.folder / arguments.way)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        base = Path(scratch) / "base"
        base.mkdir()
        write_base(base, arguments.layers)
        size = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        found: dict[str, Any] = {"model_bytes": size, "layers": arguments.layers}
        digests = set()
        for way in ("streamed", "in memory"):
            (Path(scratch) / way).mkdir()
            done = subprocess.run(
                [sys.executable, __file__, "--way", way, "--folder", scratch],
                check=True,
                capture_output=True,
                text=True,
            )
            found[way] = json.loads(done.stdout.splitlines()[-1])
            digests.add(digest(Path(scratch) / way))
            print(way, found[way], flush=True)
        found["equal"] = len(digests) == 1
    (HERE / "merge.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
