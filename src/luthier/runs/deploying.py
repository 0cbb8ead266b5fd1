"""Make a run's model ready for a runtime: one folder a deployment, with all that it needs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.data.tokenizer import load_tokenizer
from luthier.errors import DoesNotFit, FileProblem, Unsupported, UsageError, did_you_mean
from luthier.exporting.files import PAPERS, write_checksums
from luthier.exporting.licence_bundle import permitted_name
from luthier.files import UNFINISHED, file_sha256, write_text
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.runtime import GREEDY, LlamaServer, ServerSettings
from luthier.planning.audit import audit
from luthier.planning.hypothetical import parse_hardware
from luthier.planning.licence_gate import hold_to_licence
from luthier.runs.devices import AUTO, CPU, Place, on_device, pick, places, plan_on
from luthier.runs.directory import RunDirectory, runs_root
from luthier.runs.endpoints import ask_llama, ask_ollama, check_deployed, has_tokenizer
from luthier.runs.shipping import chat_files
from luthier.runs.stages import licence_of, load_artifacts
from luthier.schema.deployment import ContextPlan, Deployment, Smoke, Target
from luthier.schema.hardware import Hardware
from luthier.schema.protocols import Message, Progress
from luthier.serving import lmstudio, ollama, scripts
from luthier.serving.turns import turns_of
from luthier.sizing.model_config import architecture_of
from luthier.sizing.serving import CACHE_BYTES, VLLM_SHARE, CacheType, vllm_pool

RECORD = "deployment.json"
PROMPT = "Hello"
SMOKE_TOKENS = 64


def deployments_root() -> Path:
    """Where deployments stand: ``LUTHIER_DEPLOYMENTS``, else ``deployments`` beside the runs."""
    own = os.environ.get("LUTHIER_DEPLOYMENTS")
    return Path(own).expanduser().absolute() if own else runs_root().parent / "deployments"


def list_deployments() -> list[Deployment]:
    """All deployments, newest first."""
    found = [Deployment.model_validate_json(p.read_text()) for p in deployments_root().glob(f"*/{RECORD}")]
    return sorted(found, key=lambda one: one.created, reverse=True)


def find_deployment(name: str) -> Deployment:
    """A deployment by name. Errors: UsageError with the nearest."""
    known = {one.name: one for one in list_deployments()}
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(f"there is no deployment {name!r}", hint=near or "see `luthier deployments`")
    return known[name]


def remove_deployment(name: str) -> Deployment:
    """Delete a deployment's folder and what it wrote elsewhere; Ollama is asked to forget the model."""
    found = find_deployment(name)
    for place in found.places:
        if place.startswith("ollama:"):
            ollama.Ollama().remove(place.removeprefix("ollama:"))
        else:
            Path(place).unlink(missing_ok=True)
    shutil.rmtree(deployments_root() / name)
    return found


@dataclass(frozen=True)
class Wish:
    """What a deployment should be."""

    target: Target
    name: str | None = None
    """The recipe's name when not given, with the target behind it where another target has that name."""
    gguf: str | None = None
    context: int | None = None
    slots: int = 1
    cache_type: str = "f16"
    hardware: str | None = None
    """Target machine in words; this one when not given."""
    device: str = AUTO
    """``cpu``, ``gpu:1``, or auto: the GPU with most room, else the CPU."""


def deploy(
    run: RunDirectory,
    wish: Wish,
    *,
    say: Callable[[str], None],
    progress: Progress | None = None,
    dry_run: bool = False,
) -> Deployment:
    """Write a deployment, bring it in where its runtime is here, and put one prompt to it.

    A deployment of the same name and target is replaced when the new one is whole; one for another target
    stays. Errors: UsageError, DoesNotFit with what would fit, Unsupported where the runtime cannot hold the
    model's template.
    """
    if wish.cache_type not in CACHE_BYTES:
        raise UsageError(
            f"{wish.cache_type} is not a type of cache", hint=f"use one of {', '.join(CACHE_BYTES)}"
        )
    recipe = run.recipe
    named = (run.stage_values("model") or {}).get("licence")
    hold_to_licence(recipe, "deployed", named=named)
    licence = licence_of(named)
    title = wish.name or permitted_name(recipe.name or run.id, licence)
    name = _name(wish, title)
    machine = parse_hardware(wish.hardware) if wish.hardware else audit()
    if wish.target == "vllm":
        made = _vllm(run, wish, name, machine)
    else:
        made = _gguf(run, wish, name, machine, title=title)
    if dry_run:
        return made.record
    folder = _write(made, name)
    return _bring_in(made, folder, run, say=say, progress=progress, here=wish.hardware is None)


def _name(wish: Wish, title: str) -> str:
    """The deployment's name: its record never takes the place of one for another target.

    title: the name asked for, or the model's. Errors: UsageError for what is no name, or is another's.
    """
    name = title
    if "/" in name or name.startswith("."):
        raise UsageError(f"{name!r} cannot be the name of a folder", hint="use letters, digits, - and _")
    held = {one.name: one.target for one in list_deployments()}
    if wish.name is None and held.get(name, wish.target) != wish.target:
        name = f"{title}-{wish.target}"
    if (other := held.get(name, wish.target)) != wish.target:
        raise UsageError(
            f"{name} is a deployment for {other}, which one for {wish.target} would take the place of",
            hint=f"give another --name, or first: luthier deployments rm {name}",
        )
    return name


def devices(hardware: str | None) -> list[Place]:
    """The devices of this machine, or of one in words, with their free memory."""
    return places(parse_hardware(hardware) if hardware else audit())


@dataclass
class _Made:
    """A deployment that is not on disk yet."""

    record: Deployment
    weights: Path
    texts: dict[str, str]
    """File name -> text."""
    model: ollama.OllamaModel | None = None
    papers: Path | None = None


def _gguf(run: RunDirectory, wish: Wish, name: str, machine: Hardware, *, title: str) -> _Made:
    """title: what a bundle is called on another machine, where nothing else has that name."""
    file, system = chat_files(run, wish.gguf)
    artifact = next(a for a in load_artifacts(run) if run.path / a.path == file)
    place = pick(machine, wish.device)
    cache: CacheType = wish.cache_type  # type: ignore[assignment]  # held against CACHE_BYTES above
    plan = plan_on(
        machine,
        place,
        file,
        context=wish.context,
        slots=wish.slots,
        cache_type=cache,
        trained=run.recipe.training.sequence_length,
    )
    notes: list[str] = []
    model = None
    if wish.target in ("ollama", "folder", "bundle"):
        try:
            model = _ollama_model(run, file, plan, system, on_cpu=_away_from_gpus(machine, place))
        except Unsupported as error:
            if wish.target == "ollama":
                raise
            notes.append(f"no Modelfile: {error.message}")
    about = f"{name}: {file.name}, tuned from {run.recipe.model.id}; {plan.slots} x {plan.context:,} tokens"
    device = CPU if _away_from_gpus(machine, place) else place.name if wish.device != AUTO else None
    words = scripts.llama_server(file.name, plan, alias=name, device=device)
    texts = {"llama-server.sh": scripts.start_script(words, about=about)}
    if model is not None:
        texts["Modelfile"] = ollama.modelfile(model)
    texts["lmstudio.json"] = lmstudio.settings(plan)
    if wish.target == "bundle":
        for kind in ("sh", "ps1"):
            texts[f"install.{kind}"] = scripts.installer(
                kind, name=title, model=ollama.model_name(title), file=file, sha256=artifact.sha256,
                memory=plan.total, context=plan.context,
            )  # fmt: skip
    record = Deployment(
        name=name,
        target=wish.target,
        run=run.id,
        model=file.name,
        sha256=artifact.sha256,
        kind=artifact.kind,
        base_model=run.recipe.model.id,
        plan=plan,
        device=place.name,
        created=time.time(),
        notes=tuple(notes),
    )
    return _Made(record, file, texts, model, papers=file.parent)


def _away_from_gpus(machine: Hardware, place: Place) -> bool:
    """Whether the CPU was asked for where a runtime would take a GPU."""
    return place.name == CPU and bool(machine.accelerators)


def _ollama_model(
    run: RunDirectory, file: Path, plan: ContextPlan, system: str | None, *, on_cpu: bool
) -> ollama.OllamaModel:
    merged = run.path / "artifacts" / "merged"  # carries the base's own tokenizer and settings
    base = merged if merged.is_dir() else Path((run.stage_values("model") or {})["path"])
    tokenizer = load_tokenizer(base)

    def render(messages: object, answer_follows: bool) -> str:
        return tokenizer.render(messages, add_generation_prompt=answer_follows)  # type: ignore[arg-type]

    # What the runtime puts first by itself, the template must not write again.
    adds = read_header(file).get("tokenizer.ggml.add_bos_token", bool(tokenizer.prefix_ids))
    turns = turns_of(render, bos=tokenizer.special_tokens.get("bos_token", "") if adds else "")
    generation = base / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    return ollama.OllamaModel(
        gguf=file,
        template=ollama.go_template(turns),
        system=system,
        context=plan.context,
        stops=[tokenizer.token(index) for index in sorted(tokenizer.eos_ids)],
        settings=ollama.settings_of(settings) | ({"num_gpu": 0} if on_cpu else {}),
        licence=_licence_text(file.parent),
    )


def _licence_text(folder: Path) -> str | None:
    names = sorted(p for p in folder.iterdir() if p.is_file() and PAPERS.match(p.name))
    text = "\n\n".join(p.read_text(encoding="utf-8", errors="replace") for p in names)
    return text or None


def _vllm(run: RunDirectory, wish: Wish, name: str, machine: Hardware) -> _Made:
    merged = run.path / "artifacts" / "merged"
    artifact = next((a for a in load_artifacts(run) if a.kind == "merged"), None)
    if artifact is None or not merged.is_dir():
        raise UsageError(f"{run.id} has no merged weights", hint=f"luthier export {run.id} --merged")
    if wish.hardware and not machine.accelerators:
        raise Unsupported("vLLM is planned for GPUs only", hint="use --to llama.cpp for a CPU")
    arch = architecture_of(merged)
    context = wish.context or min(
        arch.max_positions or 8192, max(8192, run.recipe.training.sequence_length or 0)
    )
    notes, sequences = [], wish.slots
    device = None
    if machine.accelerators:
        place = pick(machine, "gpu" if wish.device == AUTO else wish.device)
        if place.name == CPU:
            raise Unsupported("vLLM is planned for GPUs only", hint="use --to llama.cpp for a CPU")
        gpu = next(one for one in machine.accelerators if one.index == place.index)
        device = None if wish.device == AUTO else place.name
        pool = vllm_pool(arch, gpu_memory=gpu.memory_total, context=context)
        if pool.tokens < context:
            raise DoesNotFit(
                f"vLLM on {gpu.name} has room for {pool.tokens:,} tokens of cache, not for {context:,}",
                hint=f"--context {pool.tokens // 256 * 256} fits" if pool.tokens >= 256 else "a larger GPU",
            )
        sequences = max(wish.slots, min(256, int(pool.concurrency)))
        notes.append(f"{pool.tokens:,} tokens of cache on {gpu.name}: {pool.concurrency:.1f} x {context:,}")
    else:
        notes.append("no GPU was found here: the number of requests at once is not sized to one")
    words = scripts.vllm_server("merged", alias=name, context=context, share=VLLM_SHARE, sequences=sequences)
    about = f"{name}: tuned from {run.recipe.model.id}, for vLLM"
    only = "" if device is None else f"export CUDA_VISIBLE_DEVICES={device.removeprefix('gpu:')}\n"
    record = Deployment(
        name=name,
        target="vllm",
        run=run.id,
        model="merged",
        sha256=artifact.sha256,
        kind="merged",
        base_model=run.recipe.model.id,
        created=time.time(),
        steps=(f"sh {deployments_root() / name / 'vllm.sh'}",),
        notes=tuple(notes),
    )
    return _Made(record, merged, {"vllm.sh": scripts.start_script(words, about=about, before=only)})


def _write(made: _Made, name: str) -> Path:
    """Write the folder whole, then let it take the place of one of the same name."""
    root = deployments_root()
    root.mkdir(parents=True, exist_ok=True)
    final = root / name
    scratch = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=root))
    try:
        if made.weights.is_dir():
            for path in sorted(made.weights.rglob("*")):
                if path.is_file():
                    target = scratch / made.record.model / path.relative_to(made.weights)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    lmstudio.link_or_copy(path, target)
        else:
            if file_sha256(made.weights) != made.record.sha256:
                raise FileProblem(
                    "has changed since it was exported",
                    file=made.weights,
                    hint=f"luthier export {made.record.run} makes it again",
                )
            lmstudio.link_or_copy(made.weights, scratch / made.weights.name)
        for paper in made.papers.iterdir() if made.papers else ():
            if paper.is_file() and (PAPERS.match(paper.name) or paper.name == "README.md"):
                shutil.copyfile(paper, scratch / paper.name)
        for file, text in made.texts.items():
            path = scratch / file
            path.write_text(text, encoding="utf-8", newline="\r\n" if file.endswith(".ps1") else "\n")
            path.chmod(0o755 if file.endswith(".sh") else 0o644)
        write_checksums(scratch)
        files = sorted(p.relative_to(scratch).as_posix() for p in scratch.rglob("*") if p.is_file())
        made.record = made.record.model_copy(update={"files": tuple(files)})
        write_text(scratch / RECORD, made.record.model_dump_json(indent=2) + "\n")
        scratch.chmod(0o755)
        if final.exists():
            # A server of the one before goes on until it is stopped, and must be found for that.
            made.record = made.record.model_copy(update={"server": find_deployment(name).server})
            write_text(scratch / RECORD, made.record.model_dump_json(indent=2) + "\n")
            old = root / f"{UNFINISHED}{name}-{os.getpid()}"
            final.rename(old)
            scratch.rename(final)
            shutil.rmtree(old)
        else:
            scratch.rename(final)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return final


def _bring_in(
    made: _Made,
    folder: Path,
    run: RunDirectory,
    *,
    say: Callable[[str], None],
    progress: Progress | None,
    here: bool,
) -> Deployment:
    """Import where the runtime is here, put prompts to it, and keep what came of it."""
    record = made.record
    changes: dict[str, object] = {}
    if record.target == "ollama" and made.model is not None:
        changes = _into_ollama(made, folder, run, say=say, progress=progress)
    elif record.target == "lmstudio":
        changes = _into_lmstudio(made, folder)
    elif record.target in ("llama.cpp", "folder", "bundle"):
        changes = {"steps": (f"sh {folder / 'llama-server.sh'}",)}
        if record.target == "bundle":
            changes = {"steps": (f"copy {folder} to the other machine and run: sh install.sh",)}
    if here and record.target in ("llama.cpp", "folder", "bundle", "lmstudio") and record.plan is not None:
        say("putting prompts to it in llama.cpp")
        changes |= tried(run, made.weights, record.plan, place=pick(audit(), record.device))
    record = record.model_copy(update=changes)
    write_text(folder / RECORD, record.model_dump_json(indent=2) + "\n")
    return record


def _into_ollama(
    made: _Made,
    folder: Path,
    run: RunDirectory,
    *,
    say: Callable[[str], None],
    progress: Progress | None,
) -> dict[str, object]:
    assert made.model is not None
    server, name = ollama.Ollama(), ollama.model_name(made.record.name)
    version = server.version()
    if version is None:
        by_hand = f"cd {folder} && ollama create {name} -f Modelfile && ollama run {name}"
        return {
            "steps": (by_hand,),
            "notes": (*made.record.notes, f"no Ollama answered at {server.address}: nothing was imported"),
        }
    say(f"importing into Ollama {version} at {server.address} as {name}")
    server.create(name, made.model, progress=progress)
    answer = server.chat(name, [{"role": "user", "content": PROMPT}], most=SMOKE_TOKENS)
    seconds = float(answer.get("eval_duration") or 0) / 1e9
    first = Smoke(
        prompt=PROMPT,
        answer=str(answer.get("message", {}).get("content", "")),
        stopped=answer.get("done_reason") == "stop",
        tokens_per_second=float(answer.get("eval_count") or 0) / seconds if seconds else None,
        memory=server.memory(name),
    )
    assert made.record.plan is not None
    say("holding its answers to the exported file's")
    parity = check_deployed(
        run,
        made.weights,
        made.record.plan,
        ask_ollama(server, name),
        system=made.model.system,
        tools=False,  # no part of a template in Go's language
        counts=False,
    )
    return {
        "places": (f"ollama:{name}",),
        "smoke": first,
        "parity": parity,
        "steps": (f"ollama run {name}",),
    }


def _into_lmstudio(made: _Made, folder: Path) -> dict[str, object]:
    home, record = lmstudio.home(), made.record
    assert record.plan is not None
    if home is None:
        root = folder / "lmstudio"
        lmstudio.write_layout(root, record.name, made.weights, record.plan)
        return {
            "steps": (f"copy what is in {root} into LM Studio's folder, usually ~/.lmstudio",),
            "notes": (
                *record.notes,
                "LM Studio was not found here: its files are in the deployment's folder",
            ),
        }
    places = lmstudio.write_layout(home, record.name, made.weights, record.plan)
    open_it = f"open LM Studio: the model is under My Models as {lmstudio.PUBLISHER}/{record.name}"
    return {"places": tuple(str(p) for p in places), "steps": (open_it,)}


def tried(run: RunDirectory, gguf: Path, plan: ContextPlan, *, place: Place) -> dict[str, object]:
    """One prompt, then those of the parity check, through llama.cpp with the deployment's own settings.

    Returns the deployment's ``smoke`` and ``parity``; the latter is None where the run's tokenizer has gone.
    """
    settings = on_device(ServerSettings(context=plan.context, slots=plan.slots), place)
    turn: Message = {"role": "user", "content": PROMPT}
    with LlamaServer(gguf, settings) as server:
        body = {"messages": [turn], "max_tokens": SMOKE_TOKENS, **GREEDY}
        answer = server.request("/v1/chat/completions", body)
        known = has_tokenizer(run)
        parity = check_deployed(run, gguf, plan, ask_llama(server), server=server) if known else None
        memory = server.peak_memory()
    choice = answer["choices"][0]
    smoke = Smoke(
        prompt=PROMPT,
        answer=str(choice["message"].get("content") or ""),
        stopped=choice.get("finish_reason") == "stop",
        tokens_per_second=answer.get("timings", {}).get("predicted_per_second"),
        memory=memory,
    )
    return {"smoke": smoke, "parity": parity}
