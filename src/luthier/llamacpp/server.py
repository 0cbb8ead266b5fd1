"""Child process of a model server: ``python -m luthier.llamacpp.server``.

Reads its settings as one JSON line from standard input, answers with its address as one JSON line, and
serves until standard input ends: when whoever started it dies, so does the server.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def _parameters(settings: dict[str, Any]) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings["model"]
    parameters.n_parallel = settings["slots"]
    # each slot gets its own share of the whole
    parameters.n_ctx = settings["context"] * settings["slots"]
    parameters.cpuparams.n_threads = settings["threads"]
    parameters.cpuparams_batch.n_threads = settings["threads"]
    parameters.hostnames = [settings["host"]]
    parameters.port = settings["port"]
    parameters.api_keys = [settings["api_key"]]
    parameters.n_gpu_layers = settings["gpu_layers"]
    parameters.embedding = settings["embedding"]
    if settings["embedding"]:
        # a text that is pooled goes through the model in one piece
        parameters.n_batch = parameters.n_ubatch = max(512, parameters.n_ctx)
    if settings["alias"]:
        parameters.model_alias = {settings["alias"]}
    if settings["adapters"]:
        parameters.lora_adapters = [
            xllamacpp.CommonAdapterLoraInfo(path, scale) for path, scale in settings["adapters"]
        ]
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = False
    parameters.ui = False
    parameters.offline = True
    # the setting asked for is the one that runs: nothing is shrunk to fit, no 8 GiB prompt cache
    parameters.fit_params = False
    parameters.cache_ram_mib = 0
    parameters.warmup = False
    parameters.verbosity = 2
    return parameters


def main() -> None:
    """Serve until standard input ends."""
    settings = json.loads(sys.stdin.readline())
    # llama.cpp writes to the process's standard output: the answer goes to its own copy of it
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import xllamacpp

    try:
        server = xllamacpp.Server(_parameters(settings))
    except (RuntimeError, ValueError) as error:
        answer.write(json.dumps({"error": str(error)}) + "\n")
        answer.flush()
        os._exit(1)
    answer.write(json.dumps({"url": server.listening_address, "version": xllamacpp.__version__}) + "\n")
    answer.flush()
    while sys.stdin.read(4096):
        pass
    # no interpreter shutdown: native threads have been seen to hang in it
    os._exit(0)


if __name__ == "__main__":
    main()
