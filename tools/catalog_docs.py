"""Write what docs pages show of the catalogue, its rules and the advisor's own answers.

Each generated part stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; the words around it are
written by hand. ``python tools/catalog_docs.py`` rewrites them, ``--check`` only says which are out of date.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.catalog.index import all_models, index, licences, model_card  # noqa: E402
from luthier.catalog.methods import measured_methods  # noqa: E402
from luthier.cli.plan_words import about  # noqa: E402
from luthier.planning.estimate import estimate_candidate  # noqa: E402
from luthier.planning.hypothetical import parse_hardware  # noqa: E402
from luthier.planning.recommend import recommend  # noqa: E402
from luthier.planning.recommend.claims import WORDS, measured_how, method_claims  # noqa: E402
from luthier.planning.recommend.evidence import LADDERS, line_between, prior_for  # noqa: E402
from luthier.planning.recommend.guides import A_MEMORY, B_MEMORY, B_SCORES, C_GPUS  # noqa: E402
from luthier.planning.recommend.methods import build_method  # noqa: E402
from luthier.planning.recommend.score import PATIENCE, WEIGHTS  # noqa: E402
from luthier.planning.recommend.shapes import budget_of  # noqa: E402
from luthier.planning.recommend.words import from_sentence, make_request  # noqa: E402
from luthier.schema.load import read_yaml  # noqa: E402
from luthier.schema.model import ModelCard  # noqa: E402
from luthier.schema.plan import BatchShape, Plan  # noqa: E402
from luthier.schema.request import MethodName  # noqa: E402
from luthier.sizing.gguf import gguf_bytes  # noqa: E402
from luthier.sizing.parameters import count_parameters, lora_parameters  # noqa: E402

PAGES = (
    "models.md", "licences.md", "recommend.md", "hyperparameters.md", "guides.md", "requests.md", "plans.md",
    "memory.md", "speed.md",
)  # fmt: skip
BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GB = 1e9
A_MODELS = {
    3: "Llama-3.2-3B-Instruct", 7: "Qwen2.5-7B-Instruct", 8: "Llama-3.1-8B-Instruct", 9: "Qwen3.5-9B",
    11: "gemma-3-12b-it", 14: "Qwen2.5-14B-Instruct", 27: "gemma-3-27b-it", 32: "Qwen2.5-32B-Instruct",
}  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'|'.join('---' for _ in heads)}|"]
    lines += [f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def count(number: int | None) -> str:
    if number is None:
        return "?"
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.0f}M"


def models_table() -> str:
    """Every model, grouped by what it is."""
    parts: list[str] = []
    titles = {
        "decoder": "Decoders", "vision-language": "Vision-language models", "encoder": "Encoders",
        "bi-encoder": "Embedders (bi-encoders)", "cross-encoder": "Rerankers (cross-encoders)",
    }  # fmt: skip
    for kind, title in titles.items():
        cards = [card for card in all_models() if card.kind == kind and card.added_from is None]
        parts.append(f"### {title}\n")
        parts.append(
            table(
                ("model", "parameters", "active", "context", "licence", "GGUF", "released"),
                (
                    (
                        f"`{card.id}`",
                        count(card.total),
                        count(card.parameters.active) if card.parameters.active else "",
                        "?" if card.context.native is None else f"{card.context.native:,}",
                        card.licence,
                        {True: "yes", False: "no", None: "?"}[card.gguf.supported],
                        card.release_date or "?",
                    )
                    for card in cards
                ),
            )
        )
    return "\n".join(parts)


def sources_table() -> str:
    return table(("key", "source"), index().sources.items())


def licences_table() -> str:
    """Terms side by side."""
    words = {True: "yes", False: "no", None: "not verified"}
    rows = []
    for terms in licences():
        models = sum(card.licence == terms.id for card in all_models() if card.added_from is None)
        name = f"[{terms.name}]({terms.url})" if terms.url else terms.name
        threshold = f"{terms.user_threshold:,}" if terms.user_threshold else ""
        rows.append(
            (
                f"`{terms.id}`", name, models, terms.commercial_use, threshold,
                words[terms.acceptable_use_policy], terms.may_train_others, terms.verified.replace("-", " "),
            )
        )  # fmt: skip
    heads = ("id", "licence", "models", "commercial use", "separate licence above", "use policy",
             "outputs may train others", "text")  # fmt: skip
    return table(heads, rows)


def duties_table() -> str:
    rows = [(f"`{terms.id}`", "; ".join(terms.duties) or "none known") for terms in licences()]
    return table(("licence", "what is asked when a tuned model is passed on or shown"), rows)


def clauses_table() -> str:
    rows = [(f"`{t.id}`", c.topic, c.where, c.says) for t in licences() for c in t.clauses]
    return table(("licence", "topic", "where", "what it says, in our words"), rows)


def need(card: ModelCard, name: MethodName, length: int, *, checkpointing: bool = True) -> float:
    """GB of one row of that length, AdamW, rank 16, on a card with room."""
    shape = BatchShape(
        micro_batch_size=1, batch_size=1, sequence_length=length, tokens_per_row=length, rows=1, epochs=1,
        checkpointing=checkpointing, dtype="bfloat16",
    )  # fmt: skip
    found = estimate_candidate(card, build_method(name, None, None), shape, parse_hardware("rtx 4090"))
    return found.process.expected / GB


def guide_a_table() -> str:
    """Guide A's memory to fine-tune beside ours."""
    rows = []
    for size, (qlora, lora) in A_MEMORY.items():
        card = model_card(A_MODELS[int(size)])
        rows.append(
            (
                f"{size:g}B", f"`{card.name}`", qlora,
                f"{need(card, 'qlora', 512):.1f}", f"{need(card, 'qlora', 2048):.1f}", lora,
                f"{need(card, 'lora', 512):.1f}", f"{need(card, 'lora', 2048):.1f}",
            )
        )  # fmt: skip
    heads = ("size", "computed for", "QLoRA, guide", "at 512 tokens", "at 2,048", "LoRA, guide",
             "at 512 tokens", "at 2,048")  # fmt: skip
    return table(heads, rows)


def guide_b_table() -> str:
    """Guide B's inference and training memory beside ours."""
    rows = []
    for name, model, fp16, q4, lora in B_MEMORY:
        card = model_card(model)
        assert card.architecture is not None
        assert card.total is not None
        rows.append(
            (
                name, f"`{card.name}`", fp16, f"{2 * card.total / GB:.1f}", q4,
                f"{gguf_bytes(card.architecture, 'Q4_K_M') / GB:.1f}", lora,
                f"{need(card, 'lora', 512):.1f}", f"{need(card, 'lora', 2048):.1f}",
            )
        )  # fmt: skip
    heads = ("guide's name", "is", "FP16, guide", "weights", "Q4, guide", "Q4_K_M file", "LoRA, guide",
             "at 512 tokens", "at 2,048")  # fmt: skip
    return table(heads, rows)


def guide_c_table() -> str:
    """Guide C's largest sizes by GPU memory beside the largest decoders that fit by our estimate."""
    dense = [
        card
        for card in all_models()
        if card.kind == "decoder" and card.architecture is not None and card.architecture.experts is None
    ]
    rows = []
    for row in C_GPUS:
        budget = budget_of(parse_hardware(f"vram {row.memory:g}GB")) / GB
        cells: list[object] = [f"{row.memory:g} GB", row.example]
        for name, claimed in (("full", row.full), ("lora", row.lora), ("qlora", row.qlora)):
            fitting = [
                card.total or 0
                for card in dense
                if need(card, name, 2048) <= budget  # type: ignore[arg-type]
            ]
            cells += [f"~{claimed:g}B", count(max(fitting, default=0)) if fitting else "none"]
        rows.append(cells)
    heads = ("GPU", "guide's example", "full SFT, guide", "computed", "LoRA, guide", "computed",
             "QLoRA, guide", "computed")  # fmt: skip
    return table(heads, rows)


def ladders_table() -> str:
    """Which benchmarks stand for which, by which lines."""
    rows = []
    for scale, ladder in LADDERS.items():
        target = ladder[0]
        rows.append((scale, f"{target[0]} ({target[1]})", "the scale itself", "", ""))
        for key in ladder[1:]:
            line = line_between(key, target)
            if line is not None:
                rows.append(
                    ("", f"{key[0]} ({key[1]})", f"{line.intercept:.1f} + {line.slope:.2f} x score",
                     line.pairs, f"{line.error:.1f}")
                )  # fmt: skip
        prior = prior_for(scale)
        if prior is not None:
            dated = f" + {prior.by_year:.1f} a year" if prior.by_year else ""
            rows.append(
                ("", "none: size and date", f"{prior.constant:.0f} + {prior.by_size:.1f} log10(N){dated}",
                 prior.models, f"{prior.error:.1f}")
            )  # fmt: skip
    return table(("purpose's scale", "published score", "converted by", "models", "standard error"), rows)


def weights_table() -> str:
    parts = ("quality", "speed", "size", "ecosystem")
    rows = [
        (name, *(f"{values[part]:g}" for part in parts), f"{PATIENCE[name] / 3600:g} h")
        for name, values in WEIGHTS.items()
    ]
    return table(("priority", *parts, "waits for"), rows)


def answered(values: dict[str, Any], hardware: str | None, *, only: Sequence[str] = ()) -> Plan:
    """The advisor's answer to a request of plain values (or a sentence)."""
    request = from_sentence(values["sentence"]) if "sentence" in values else make_request(values)
    machine = None if hardware is None else parse_hardware(hardware)
    return recommend(request, machine, most=1, models=[model_card(n) for n in only] or None)


def first(plan: Plan) -> str:
    """The first candidate in few words."""
    best = plan.best
    if best is None:
        return "nothing fits"
    seconds = best.estimate.seconds
    when = "" if seconds is None else f", {about(seconds.expected)}"
    return f"`{best.weights.rsplit('/', 1)[-1]}`, {best.method.name}{when}"


BERTS = "bert-base-uncased, roberta-base"
PURPOSES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("chat", {"purpose": "chat"}, "Llama-3.1-8B-Instruct"),
    ("text generation", {"purpose": "text-generation"}, "Llama-3.1-8B"),
    ("similarity", {"purpose": "similarity"}, "bge-m3"),
    ("similarity, in several languages", {"purpose": "similarity", "languages": "de,ja"}, "bge-m3"),
    ("reranking", {"purpose": "reranking"}, "bge-reranker-v2-m3"),
    ("multi-label classification", {"purpose": "multi-label-classification"}, BERTS),
    ("multi-class classification", {"purpose": "multi-class-classification"}, BERTS),
)
USES: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("agency, client work", "Llama 8B, then Qwen 7B", {"use": "commercial", "size": "general"}, "rtx 4090"),
    ("edge and mobile", "Qwen 0.5B-3B or Gemma 3 1B", {"size": "edge", "target": "phone:8GB"}, "rtx 4090"),
    ("edge, in a product", "Qwen 0.5B-3B", {"size": "edge", "use": "commercial"}, "rtx 4090"),
    ("under 1B", "Qwen 0.5B, the only option", {"size": "under-1b"}, "rtx 4090"),
    ("maximum quality", "Qwen2.5-72B, then Llama-3.3-70B", {"priority": "quality"}, "8xh100"),
    ("multilingual", "Qwen 2.5 at the size that fits", {"languages": "de,ja,zh"}, "rtx 4090"),
    ("code", "Qwen 7B or Llama 8B", {"vertical": "code"}, "rtx 4090"),
    ("Apache-2.0 required", "Qwen 2.5 or Mistral", {"licence": "apache-2.0"}, "rtx 4090"),
    ("largest community", "Llama", {"priority": "ecosystem"}, "rtx 4090"),
    ("everything else", "Llama 8B", {}, "rtx 4090"),
)
TASKS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("first time", "Qwen3-0.6B, LoRA", {"stage": "first-run"}, "rtx 4090"),
    ("domain adaptation", "SFT or LoRA", {"goal": "domain", "vertical": "medical"}, "h100"),
    ("chat, instructions", "LoRA on an instruct model", {}, "rtx 4090"),
    ("code", "LoRA on a code model", {"vertical": "code"}, "h100"),
    ("multilingual", "SFT on a multilingual base", {"goal": "new-language", "languages": "sw"}, "4xh100"),
    ("image and text", "PEFT on Gemma 3 or Qwen2.5-VL", {"features": "image"}, "rtx 4090"),
    ("from scratch", "pretraining", {"purpose": "text-generation", "goal": "from-scratch"}, "h100"),
    ("production", "LoRA on the largest that fits", {"stage": "production"}, "h100"),
    ("research", "full SFT, FSDP2", {"stage": "research"}, "8xh100"),
)


def purposes_table() -> str:
    rows = []
    for name, values, example in PURPOSES:
        plan = answered(values, "rtx 4090")
        proof = "" if plan.best is None else plan.best.evidence.text.split(", about")[0]
        rows.append((name, example, first(plan), proof))
    return table(("purpose", "guide A's example", "first here, on an RTX 4090", "because of"), rows)


def uses_table(uses: tuple[tuple[str, str, dict[str, Any], str], ...], guide: str) -> str:
    """Use cases or tasks of a guide with its answer, ours and what facts say against the guide's."""
    rows = []
    for name, says, values, hardware in uses:
        plan = answered(values, hardware)
        marks = next(g.wrong for g in plan.guides if g.guide == guide)
        rows.append((name, says, hardware, first(plan), "; ".join(marks)))
    return table(("case", f"guide {guide}", "hardware", "first here", "against the guide"), rows)


def scores_table() -> str:
    """Guide B's scores beside those that the catalogue has a source for."""
    benchmarks = ("MMLU", "HumanEval", "GSM8K", "HellaSwag")
    rows = []
    for name, model, scores in B_SCORES:
        card = model_card(model)
        cells: list[object] = [name, f"`{card.name}`"]
        for benchmark, claimed in zip(benchmarks, scores, strict=True):
            mine = [b for b in card.benchmarks if b.name.removesuffix("-CoT") == benchmark]
            known = [f"{b.value:g} {b.stage}" for b in mine]
            cells += ["" if claimed is None else f"{claimed:g}", ", ".join(known) or "none sourced"]
        rows.append(cells)
    heads = ["guide's name", "is", *(h for b in benchmarks for h in (f"{b}, guide", "sourced"))]
    return table(heads, rows)


def methods_table() -> str:
    """Guide C's table of methods, each claim computed on models of three sizes."""
    rows = []
    for name in ("SmolLM2-135M-Instruct", "Qwen3-0.6B", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct"):
        card = model_card(name)
        assert card.architecture is not None
        count_of = count_parameters(card.architecture)
        adapters = lora_parameters(card.architecture, 16)
        weights = 2 * count_of.total / GB
        memory = {m: need(card, m, 2048) for m in ("full", "lora", "qlora")}  # type: ignore[arg-type]
        rows.append(
            (f"`{card.name}`", f"{100 * adapters / count_of.total:.1f} %", f"{weights:.1f}",
             *(f"{memory[m]:.1f} ({memory[m] / weights:.1f}x)" for m in ("full", "lora", "qlora")))
        )  # fmt: skip
    heads = ("model", "trained by LoRA, r 16", "16-bit weights", "full", "LoRA", "QLoRA")
    return table(heads, rows)


def claims_table() -> str:
    """Guide C's rows about methods, each with what was measured and what that says of the guide."""
    names = tuple(WORDS)
    rows = []
    for claim in method_claims():
        rows.append((f"**{claim.about}**, guide", *(claim.guide.get(name, "") for name in names), ""))
        rows.append(("measured", *(claim.measured[name] for name in names), claim.finding))
    heads = ("", *WORDS.values(), "what the measurement says of the guide")
    return f"{measured_how()}.\n\n{table(heads, rows)}"


def measured_table() -> str:
    """The methods on one model, as they were measured."""
    found = measured_methods()
    rows = [
        (
            WORDS[one.name], f"{100 * one.trained / found.weights:.3g} %", f"{one.saved / 1e6:.1f}",
            f"{1e3 * one.step:.1f}", f"{one.peak / 1e9:.2f}", ", ".join(f"{loss:.4f}" for loss in one.losses),
            f"{one.loss:.4f}",
        )
        for one in found.methods
    ]  # fmt: skip
    heads = ("method", "trained, of the model's weights", "saved, MB", "step, ms", "peak of training, GB",
             "validation loss, by seed", "mean")  # fmt: skip
    return f"{measured_how()}.\n\n{table(heads, rows)}"


def thumbs_table() -> str:
    """Guide C's bytes a billion parameters beside what the weights take."""
    rows = []
    names = ("SmolLM2-135M", "Qwen2.5-7B", "Llama-3.1-8B", "Qwen2.5-14B", "Llama-3.3-70B")
    for name in (f"{short}-Instruct" for short in names):
        card = model_card(name)
        assert card.architecture is not None
        count_of = count_parameters(card.architecture)
        total = count_of.total
        four = (0.516 * count_of.linear + 2 * (total - count_of.linear)) / GB
        rows.append((f"`{card.name}`", f"{2 * total / GB:.2f}", f"{0.5 * total / GB:.2f}", f"{four:.2f}"))
    heads = ("model", "bf16, 2 GB a billion", "4 bit by the guide, 0.5 GB a billion", "4 bit, computed")
    return table(heads, rows)


def golden_table() -> str:
    """Every golden case: what a guide says, what facts say, and the first candidate today."""
    golden = read_yaml(ROOT / "tests" / "planning" / "golden.yaml")
    rules: dict[str, list[str]] = {}
    for rule, names in golden["rules"].items():
        for name in names:
            rules.setdefault(name, []).append(str(rule))
    rows = []
    for case in golden["cases"]:
        values = {"sentence": case["sentence"]} if "sentence" in case else case["request"]
        plan = answered(values, case["hardware"], only=case.get("only", ()))
        asked = ", ".join(f"{k}: {v}" for k, v in values.items())
        asked += f" (of {', '.join(n.rsplit('/', 1)[-1] for n in case['only'])})" if "only" in case else ""
        rows.append(
            (case["name"], " ".join(rules.get(case["name"], ())), asked, case["hardware"] or "not known",
             case.get("says", ""), case.get("fact", ""), first(plan))
        )  # fmt: skip
    return table(("case", "rules", "request", "hardware", "a guide says", "fact", "first here"), rows)


REQUESTS: dict[str, str] = {
    "support": 'recommend "answer customers in German in our tone" --hardware "rtx 4090" --rows 2000',
    "laptop": "recommend --hardware laptop:16GB --rows 1000",
    "categories": 'recommend "sort support mails into categories" --hardware laptop:16GB --rows 3000',
    "phone": 'recommend "an assistant in English and Spanish" --hardware "rtx 3060" --target phone:8GB '
    "--use commercial",
    "swahili": "recommend --purpose text-generation --goal new-language --language sw --hardware 4xh100 "
    "--rows 200000",
    "manuals": 'recommend "search our manuals in German and Japanese" --hardware "rtx 3060" --use commercial',
    "reranking": "recommend --purpose reranking --hardware cpu:16GB --rows 5000",
    "completion": 'recommend "complete our Python code" --hardware "rtx 4090" --licence apache-2.0 --gguf',
    "invoices": 'recommend "read invoices from photos into JSON" --hardware h100 --eu --use commercial '
    "--rows 800",
    "too-small": 'recommend --hardware "vram 6GB" --size expert --vertical legal',
}
"""Ten very different requests, shown on docs/requests.md."""
PLANS: dict[str, str] = {
    "lora": 'plan llama-3.1-8b-instruct --hardware "rtx 4090" --length 2048',
    "full": 'plan qwen2.5-1.5b-instruct --hardware "rtx 3060" --method full --length 1024',
    "qlora": "plan llama-3.3-70b-instruct --hardware h100 --method qlora --length 4096",
    "processor": "plan smollm2-135m-instruct --hardware cpu:16GB --method full --length 512",
    "experts": "plan qwen3-30b-a3b --hardware h200 --method qlora --length 4096",
    "serving": 'fit llama-3.1-8b-instruct --context 32768 --slots 4 --hardware "rtx 4090"',
}
"""Five plans and what serving one of the models takes, read on docs/plans.md."""
SHOWN_PAIRS = 4


def transcript(name: str) -> str:
    """One request as it was run: the command, and the parts of its answer that tell most."""
    return shown(REQUESTS[name], shortened(printed(REQUESTS[name], width=200)))


def whole_transcript(name: str) -> str:
    """One plan as it was run, with all that it says."""
    return shown(PLANS[name], [line.rstrip() for line in printed(PLANS[name], width=110)])


def printed(command: str, *, width: int) -> list[str]:
    """What a command says in a terminal of that width."""
    home = {"COLUMNS": str(width), "PYTHONPATH": str(ROOT / "src"), "LUTHIER_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *shlex.split(command)],
        capture_output=True,
        text=True,
        env=os.environ | home,
        check=False,
    )
    assert done.returncode in (0, 3), done.stderr
    return (done.stdout + done.stderr).splitlines()


def shown(command: str, lines: Sequence[str]) -> str:
    """A command and its answer as two blocks."""
    return f"```\nluthier {command}\n```\n\n```text\n" + "\n".join(lines) + "\n```\n"


def published_table() -> str:
    """Figures that others published beside the formula's: benchmarks/memory/published.py."""
    found: str = script_of("memory/published").table()
    return found


def validated_table() -> str:
    """What the measured grid of memory has rows of: benchmarks/memory/validated.py."""
    found: str = script_of("memory/validated").table()
    return found


def step_time_table() -> str:
    """Where the time of each profiled step goes: benchmarks/speed/profile_picture.py."""
    script = script_of("speed/profile_picture")
    found: str = script.table(script.steps())
    return found


def one_pass_table() -> str:
    """Every row of one GPU with the newest kernels."""
    found: str = script_of("speed/profile_picture").rows_table("h200_one_pass.jsonl")
    return found


def script_of(name: str) -> Any:
    """A script of ``benchmarks`` as a module."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = script
    spec.loader.exec_module(script)
    return script


def shortened(lines: Sequence[str]) -> list[str]:
    """An answer without settings, assumptions, rejected examples and what comes after the fourth pair."""
    kept: list[str] = []
    settings = False
    for line in lines:
        settings = line.startswith("  setting ") or (settings and bool(line.strip()))
        pair = re.match(r" +(\d+)  \S+/\S+", line)
        example = re.match(r"    (\S+/\S+: |and \d+ more$)", line)
        if settings or example or (pair and int(pair[1]) > SHOWN_PAIRS):
            continue
        if line.startswith(("    assumed:", "Licence terms are", "  quality: ~")):
            continue
        kept.append(line if len(line) <= 160 else line[:159] + "…")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
    return text.splitlines()


def hyperparameters_table() -> str:
    """The whole table, in the order that it is searched."""
    rows = []
    for row in index().hyperparameters:
        when = {k: v for k, v in row.when.model_dump(exclude_defaults=True).items() if v}
        words = "; ".join(f"{k.replace('_', ' ')}: {_words(v)}" for k, v in when.items()) or "always"
        rows.append((row.name, row.value, words, row.basis, row.source, row.others or ""))
    return table(("setting", "value", "when", "basis", "source", "others say"), rows)


def _words(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return f"{value:,.0f}" if isinstance(value, (int, float)) else str(value)


def ecosystem_table() -> str:
    rows = [
        (entry.family, f"{entry.points:g}", fact.text, fact.basis, fact.source, fact.date)
        for entry in index().ecosystem
        for fact in (*entry.facts, *entry.traits)
    ]
    return table(("family", "points", "statement", "basis", "source", "date"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "models": models_table,
    "sources": sources_table,
    "licences": licences_table,
    "duties": duties_table,
    "clauses": clauses_table,
    "guide-a": guide_a_table,
    "guide-b": guide_b_table,
    "guide-c": guide_c_table,
    "ladders": ladders_table,
    "weights": weights_table,
    "hyperparameters": hyperparameters_table,
    "ecosystem": ecosystem_table,
    "purposes": purposes_table,
    "uses": partial(uses_table, USES, "B"),
    "tasks": partial(uses_table, TASKS, "C"),
    "scores": scores_table,
    "methods": methods_table,
    "method-claims": claims_table,
    "measured-methods": measured_table,
    "thumbs": thumbs_table,
    "golden": golden_table,
    **{f"request-{name}": partial(transcript, name) for name in REQUESTS},
    **{f"plan-{name}": partial(whole_transcript, name) for name in PLANS},
    "published": published_table,
    "validated": validated_table,
    "step-time": step_time_table,
    "one-pass": one_pass_table,
}


def render(text: str) -> str:
    """A page with its tables written anew."""
    return BLOCK.sub(lambda m: f"{m[1]}\n{TABLES[m['name']]()}\n{m[3]}", text)


def main(words: Sequence[str]) -> int:
    """Rewrite the pages, or with --check say which differ."""
    stale = []
    for name in PAGES:
        path = ROOT / "docs" / name
        text = path.read_text(encoding="utf-8")
        fresh = render(text)
        if fresh != text:
            stale.append(name)
            if "--check" not in words:
                path.write_text(fresh, encoding="utf-8")
    print(f"{'out of date' if '--check' in words else 'written'}: {', '.join(stale) or 'nothing'}")
    return 1 if stale and "--check" in words else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
