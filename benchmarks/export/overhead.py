"""Time and memory of conversion and quantisation, beside llama.cpp's own tools asked alone.

    python benchmarks/export/overhead.py MODEL_FOLDER [--library BIN_FOLDER] [--rounds 3]

MODEL_FOLDER: a saved model. BIN_FOLDER: holds libllama and libggml of llama.cpp v0.5.0 (npm package
@node-llama-cpp/linux-x64 3.22.1, bins/linux-x64), which stand in for llama-quantize on PATH. Each pair is
measured by turns in one go; medians and their ratio are kept, so that a busy machine disturbs both alike.
Writes overhead.json beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TYPES = ("Q8_0", "Q5_K_M", "Q4_K_M")
TOOL = """#!{python}
import ctypes, sys
folder, numbers = {folder!r}, {{"Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15}}
def load(name): return ctypes.CDLL(folder + "/" + name, mode=ctypes.RTLD_GLOBAL)
load("libggml-base.so")
ggml, llama = load("libggml.v0.5.0.so"), load("libllama.v0.5.0.so")
ggml.ggml_backend_load.argtypes, ggml.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
ggml.ggml_backend_load((folder + "/libggml-cpu-haswell.so").encode())
class Parameters(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int32) for n in ("threads", "ftype", "output", "embedding")]
    _fields_ += [(n, ctypes.c_bool) for n in ("requantize", "head", "copy", "pure", "split", "dry")]
    _fields_ += [(n, ctypes.c_void_p) for n in ("imatrix", "kv", "types", "prune")]
llama.llama_model_quantize_default_params.restype = Parameters
llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(Parameters)]
llama.llama_backend_init()
asked = llama.llama_model_quantize_default_params()
asked.ftype, asked.threads = numbers[sys.argv[3]], int(sys.argv[4])
sys.exit(llama.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(asked)))
"""


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pair(ours: Callable[[], object], alone: Callable[[], object], rounds: int) -> dict[str, float]:
    """Median seconds of both, by turns, and their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            times[place].append(timed((ours, alone)[place]))
    a, b = map(statistics.median, times)
    return {"luthier_seconds": a, "alone_seconds": b, "ratio": a / b}


def peak_of(code: str) -> int:
    """Peak resident bytes of the largest process that some Python starts, that process left out."""
    words = f"import resource\n{code}\nprint(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    done = subprocess.run([sys.executable, "-c", words], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    from luthier.llamacpp.convert import convert
    from luthier.llamacpp.process import cores
    from luthier.llamacpp.quantize import predicted_size, quantize
    from luthier.llamacpp.setup import converter

    found: dict[str, Any] = {
        "rounds": arguments.rounds,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        source, log = root / "f16.gguf", root / "log"
        script = [sys.executable, str(converter().model_script), str(arguments.model), "--outtype", "f16"]

        def alone() -> None:
            subprocess.run([*script, "--outfile", str(root / "a.gguf")], check=True, capture_output=True)

        found["conversion"] = pair(lambda: convert(arguments.model, source), alone, arguments.rounds)
        print(found["conversion"], flush=True)
        library = arguments.library
        if library is not None:
            tool = root / "bin" / "llama-quantize"
            tool.parent.mkdir()
            tool.write_text(TOOL.format(python=sys.executable, folder=str(library)))
            tool.chmod(0o755)
            os.environ["PATH"] = f"{tool.parent}:{os.environ['PATH']}"
            os.environ["LD_LIBRARY_PATH"] = str(library)
        for kind in TYPES:
            own, theirs = root / "own.gguf", root / "theirs.gguf"
            row: dict[str, Any] = {"predicted_bytes": predicted_size(source, kind)}
            call = "from pathlib import Path; from luthier.llamacpp.quantize import quantize; "
            call += f"quantize(Path({str(source)!r}), Path({str(own)!r}), {kind!r}, "
            call += f"log=Path({str(log)!r}), using="
            row["own_peak_bytes"] = peak_of(f"{call}'libgguf')")
            row["bytes"], own_digest = own.stat().st_size, digest(own)
            if library is not None:
                words = [str(tool), str(source), str(theirs), kind, str(cores())]

                def bare(words: list[str] = words) -> None:
                    subprocess.run(words, check=True, capture_output=True)

                def by(using: Any, kind: str = kind, own: Path = own) -> Callable[[], object]:
                    return lambda: quantize(source, own, kind, log=log, using=using)

                row["by_llama_cpp"] = pair(by("llama-quantize"), bare, arguments.rounds)
                row["by_own_writer"] = pair(by("libgguf"), bare, arguments.rounds)
                row["llama_cpp_peak_bytes"] = peak_of(
                    f"import subprocess; subprocess.run({words!r}, capture_output=True)"
                )
                row["bit_identical"] = own_digest == digest(theirs)
            found[kind] = row
            found["load_after"] = os.getloadavg()
            (HERE / "overhead.json").write_text(json.dumps(found, indent=1) + "\n")
            print(kind, row, flush=True)


if __name__ == "__main__":
    main()
