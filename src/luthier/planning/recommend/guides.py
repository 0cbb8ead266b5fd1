"""What three public guides of 2026 would answer, with what verified facts say against it.

A: the "Model" page of a closed enterprise platform's fine-tuning manual (Protean AI). B: a hosted
fine-tuning product's comparison of open models (Ertas Studio). C: "Choose a Model and Method" of
NVIDIA NeMo AutoModel. Their rules are restated here; their figures stand beside ours in the docs.
"""

from __future__ import annotations

from typing import NamedTuple

from luthier.catalog.index import gpu_like
from luthier.planning.recommend.languages import multilingual
from luthier.schema.hardware import Hardware
from luthier.schema.plan import GuideAnswer
from luthier.schema.request import GuideName, Request

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
GUIDE_NAMES: dict[GuideName, str] = {
    "A": "Protean AI, Model page",
    "B": "Ertas Studio, model comparison",
    "C": "NVIDIA NeMo AutoModel, Choose a Model and Method",
}

A_MEMORY: dict[float, tuple[float, float]] = {
    3: (3.5, 8), 7: (5, 19), 8: (6, 22), 9: (6.5, 24), 11: (7.5, 29), 14: (8.5, 33), 27: (22, 64),
    32: (26, 76),
}  # fmt: skip
"""Guide A: billions of parameters -> (QLoRA, LoRA) GB to fine-tune."""

B_MEMORY: tuple[tuple[str, str, float, float, float], ...] = (
    ("Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct", 1, 1, 2),
    ("Llama 1B", "meta-llama/Llama-3.2-1B-Instruct", 2, 1, 4),
    ("Llama 3B", "meta-llama/Llama-3.2-3B-Instruct", 6, 2, 8),
    ("Gemma 3 4B", "google/gemma-3-4b-it", 8, 3, 10),
    ("Llama 8B", LLAMA_8B, 16, 5, 18),
    ("Gemma 3 12B", "google/gemma-3-12b-it", 24, 7, 26),
    ("Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct", 28, 8, 30),
    ("Gemma 3 27B", "google/gemma-3-27b-it", 54, 15, 60),
    ("Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct", 64, 18, 70),
    ("Llama 70B", "meta-llama/Llama-3.3-70B-Instruct", 140, 40, 160),
    ("Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct", 140, 40, 160),
)
"""Guide B: (its name, model, inference FP16, inference Q4, LoRA training) in GB."""


B_SCORES: tuple[tuple[str, str, tuple[float | None, ...]], ...] = (
    ("Llama 8B", LLAMA_8B, (68.4, 62.2, 79.6, 82.0)),
    ("Qwen 7B", "Qwen/Qwen2.5-7B-Instruct", (70.2, 65.8, 82.3, 80.5)),
    ("Gemma 12B", "google/gemma-3-12b-it", (72.1, 61.4, 81.0, 83.2)),
    ("Mistral 7B", "mistralai/Mistral-7B-Instruct-v0.3", (63.7, 52.1, 71.2, 81.4)),
    ("Llama 3B", "meta-llama/Llama-3.2-3B-Instruct", (55.2, None, 58.4, None)),
    ("Qwen 3B", "Qwen/Qwen2.5-3B-Instruct", (57.8, None, 62.1, None)),
    ("Gemma 4B", "google/gemma-3-4b-it", (59.3, None, 60.7, None)),
    ("Qwen 0.5B", "Qwen/Qwen2.5-0.5B-Instruct", (38.2, None, 31.5, None)),
    ("Llama 70B", "meta-llama/Llama-3.3-70B-Instruct", (82.0, 81.7, 93.0, None)),
    ("Qwen 72B", "Qwen/Qwen2.5-72B-Instruct", (83.4, 84.2, 94.5, None)),
    ("Gemma 27B", "google/gemma-3-27b-it", (76.8, 72.3, 87.1, None)),
)
"""Guide B: (its name, model, MMLU, HumanEval, GSM8K, HellaSwag); they match no maker's table."""


class GpuRow(NamedTuple):
    """A row of guide C's table: the largest sizes in billions by method, and its example."""

    memory: float
    full: float
    lora: float
    qlora: float
    example: str


C_GPUS = (
    GpuRow(8, 1, 3, 7, "Qwen3-0.6B on HellaSwag"),
    GpuRow(24, 3, 8, 30, "Qwen2.5-7B on SQuAD with PEFT"),
    GpuRow(80, 13, 30, 70, "Llama-3.3-70B-Instruct on SQuAD with PEFT"),
)

NO_LLAMA_33_8B = "Llama 3.3 was released as 70B-Instruct only; the 8B is Llama 3.1"
QWEN_3B = "Qwen2.5-3B is under a research licence: no commercial use"
QWEN_72B = "Qwen2.5-72B is under Qwen's own licence: a separate one is needed above 100M monthly users"
OLDER = "written for 2025's models: newer ones with published scores compete in the ranking"


def answers(request: Request, hardware: Hardware | None) -> tuple[GuideAnswer, ...]:
    """The three guides' answers to a request, one each."""
    return (guide_a(request, hardware), guide_b(request, hardware), guide_c(request, hardware))


def answer_of(guide: GuideName, request: Request, hardware: Hardware | None) -> GuideAnswer:
    """One guide's answer."""
    return {"A": guide_a, "B": guide_b, "C": guide_c}[guide](request, hardware)


def _vram(hardware: Hardware | None) -> float | None:
    """GB of the smallest accelerator as sold, or None where there is none or nothing is known."""
    if hardware is None or not hardware.accelerators:
        return None
    smallest = min(hardware.accelerators, key=lambda gpu: gpu.memory_total)
    spec = gpu_like(smallest.name)
    if spec is not None and abs(spec.memory_total - smallest.memory_total) < 0.05 * spec.memory_total:
        return spec.nameplate / 2**30
    return round(smallest.memory_total / 0.98 / 2**30)


def guide_a(request: Request, hardware: Hardware | None) -> GuideAnswer:
    """Purposes first, then size by use, then its memory table."""
    fixed = {
        "similarity": ("BAAI/bge-m3", "similarity: a bi-encoder, bge-m3"),
        "reranking": ("BAAI/bge-reranker-v2-m3", "reranking: a cross-encoder, bge-reranker-v2-m3"),
        "multi-label-classification": (
            "google-bert/bert-base-uncased",
            "multi-label: an encoder, bert-base-uncased or roberta-base, sigmoid and thresholds",
        ),
        "multi-class-classification": (
            "google-bert/bert-base-uncased",
            "multi-class: an encoder, bert-base-uncased or roberta-base, softmax",
        ),
    }
    if request.purpose in fixed:
        model, rule = fixed[request.purpose]
        return GuideAnswer(guide="A", answer=model.rsplit("/", 1)[-1], rule=rule, model=model)
    base = request.purpose == "text-generation" or request.goal == "new-language"
    size, rule = _size_a(request)
    vram = _vram(hardware)
    wrong = [OLDER]
    method = None
    if vram is not None:
        qlora, lora = A_MEMORY[size]
        method = "lora" if vram >= lora else "qlora" if vram >= qlora else None
        rule += f"; {size:g}B in {vram:g} GB: " + (method or f"neither LoRA ({lora:g}) nor QLoRA ({qlora:g})")
        if method == "qlora" and size in (7, 8) and vram < 8:
            wrong.append(
                f"QLoRA of {size:g}B in {qlora:g} GB leaves nothing over its weights (5.5 to 5.7 GB)"
            )
        if method == "qlora" and size == 14 and vram < 12:
            wrong.append("QLoRA of 14B in 8.5 GB is below its 4-bit weights (9.9 GB for Qwen2.5-14B)")
    model = {3: "meta-llama/Llama-3.2-3B-Instruct", 8: LLAMA_8B, 14: "microsoft/phi-4"}[size]
    name = {3: "a 1-3B model", 8: "Llama-3.1-8B" if base else "Llama-3.1-8B-Instruct", 14: "a 14-30B model"}
    return GuideAnswer(
        guide="A",
        answer=name[size] + (f", {method}" if method else ""),
        rule=rule,
        model=model if size == 8 else None,
        method=method,
        wrong=tuple(wrong),
    )


def _size_a(request: Request) -> tuple[int, str]:
    if request.size in ("edge", "under-1b"):
        return 3, "edge, mobile, simple classification: 1-3B"
    if request.size == "expert" or request.vertical in ("medical", "legal"):
        return 14, "medical, legal, scientific logic: 14-30B"
    kind = "base" if request.purpose == "text-generation" or request.goal == "new-language" else "instruct"
    return 8, f"general reasoning and coding help: 7-8B, {kind} variant"


def guide_b(request: Request, hardware: Hardware | None) -> GuideAnswer:
    """Its decision flow, from top to bottom."""
    if request.purpose not in ("chat", "text-generation"):
        return GuideAnswer(guide="B", answer="no answer", rule="it compares decoders only")
    if request.size == "under-1b" or (request.max_parameters or 1e12) < 1e9:
        return GuideAnswer(
            guide="B",
            answer="Qwen 2.5 0.5B",
            rule='under 1B: Qwen 0.5B, "the only option"',
            model="Qwen/Qwen2.5-0.5B-Instruct",
            method="lora",
            wrong=("not the only one: Qwen3-0.6B, Qwen3.5-0.8B, SmolLM2 and Gemma-3-270m are under 1B too",),
        )
    if request.size == "edge":
        wrong = [QWEN_3B] if request.use == "commercial" or "commercial" in request.licence else []
        return GuideAnswer(
            guide="B", answer="Qwen 2.5 0.5B-3B or Gemma 3 1B", rule="edge and mobile", method="lora",
            wrong=(*wrong, "Qwen2.5-1.5B (Apache-2.0) is missing in it"),
        )  # fmt: skip
    if multilingual(request.languages):
        name, model = _largest_qwen(hardware)
        return GuideAnswer(
            guide="B", answer=name, rule="multilingual is critical: Qwen at the size that fits", model=model,
            method="lora", wrong=_qwen_marks(model),
        )  # fmt: skip
    if "apache-2.0" in request.licence:
        return GuideAnswer(
            guide="B", answer="Qwen 2.5 or Mistral", rule="Apache-2.0 required",
            model="Qwen/Qwen2.5-7B-Instruct", method="lora", wrong=(QWEN_3B, QWEN_72B),
        )  # fmt: skip
    if request.vertical == "code":
        return GuideAnswer(
            guide="B", answer="Qwen 2.5 7B or Llama 3.3 8B", rule="code: Qwen 7B or Llama 8B",
            model="Qwen/Qwen2.5-7B-Instruct", method="lora", wrong=(NO_LLAMA_33_8B,),
        )  # fmt: skip
    if request.priority == "quality":
        return GuideAnswer(
            guide="B", answer="Qwen 2.5 72B", rule="absolute best: Qwen 2.5 72B, then Llama 3.3 70B",
            model="Qwen/Qwen2.5-72B-Instruct", method="lora",
            wrong=(QWEN_72B, "its 140 GB in FP16 is below the weights alone (145 GB)", OLDER),
        )  # fmt: skip
    rule = "largest community: Llama" if request.priority == "ecosystem" else "everything else: Llama 8B"
    return GuideAnswer(
        guide="B",
        answer="Llama 3.3 8B",
        rule=rule,
        model=LLAMA_8B,
        method="lora",
        wrong=(NO_LLAMA_33_8B, "its scores for it are those of Llama 3 (April 2024)"),
    )


QWENS = (
    (0.5, "0.5B", 2),
    (1.5, "1.5B", 5),
    (3, "3B", 8),
    (7, "7B", 18),
    (14, "14B", 30),
    (32, "32B", 70),
    (72, "72B", 160),
)
"""Qwen 2.5 by size with guide B's GB for LoRA training."""


def _largest_qwen(hardware: Hardware | None) -> tuple[str, str]:
    vram = _vram(hardware)
    fitting = [q for q in QWENS if vram is not None and q[2] <= vram] or [
        QWENS[3] if vram is None else QWENS[0]
    ]
    label = fitting[-1][1]
    return f"Qwen 2.5 {label}", f"Qwen/Qwen2.5-{label}-Instruct"


def _qwen_marks(model: str) -> tuple[str, ...]:
    if model.endswith("-3B-Instruct"):
        return (QWEN_3B,)
    return (QWEN_72B,) if model.endswith("-72B-Instruct") else ()


def guide_c(request: Request, hardware: Hardware | None) -> GuideAnswer:
    """By task, then by GPU memory."""
    if request.purpose not in ("chat", "text-generation"):
        return GuideAnswer(guide="C", answer="no answer", rule="its table is of decoders and image + text")
    if request.goal == "from-scratch":
        return GuideAnswer(guide="C", answer="pretraining", rule="from scratch: pretraining", method="full")
    if request.reads_images:
        return GuideAnswer(
            guide="C", answer="Gemma 3 or Qwen2.5-VL with PEFT", rule="image + text: PEFT", method="lora",
            model="Qwen/Qwen2.5-VL-7B-Instruct", wrong=("no model is called Gemma-3-VL",),
        )  # fmt: skip
    if hardware is None or request.stage == "first-run":
        return GuideAnswer(
            guide="C", answer="Qwen3-0.6B, LoRA", rule="first time: Qwen3-0.6B + LoRA on one GPU",
            model="Qwen/Qwen3-0.6B", method="lora",
        )  # fmt: skip
    if request.vertical == "code":
        return GuideAnswer(
            guide="C", answer="Qwen-Coder or Seed-Coder, LoRA", rule="code: LoRA on a code model",
            model="Qwen/Qwen2.5-Coder-7B-Instruct", method="lora",
        )  # fmt: skip
    if multilingual(request.languages) or request.goal == "new-language":
        return GuideAnswer(
            guide="C", answer="Qwen or Gemma base, full SFT", rule="multilingual: SFT on a multilingual base",
            method="full",
        )  # fmt: skip
    method = "full" if request.stage == "research" else "lora"
    if request.goal == "domain" and request.stage is None:
        rule = "domain adaptation: SFT or LoRA"
    elif request.stage == "production":
        rule = "production: LoRA on the largest model that fits"
    elif request.stage == "research":
        rule = "research: full SFT with FSDP2 on several GPUs"
    else:
        rule = "chat and instructions: LoRA on an instruct model"
    return _sized_c(rule, method, hardware)


def _sized_c(rule: str, method: str, hardware: Hardware) -> GuideAnswer:
    vram = _vram(hardware)
    if vram is None:
        return GuideAnswer(
            guide="C", answer=f"{method}; no size for a machine without a GPU", rule=rule, method=method
        )
    rows = [row for row in C_GPUS if row.memory <= vram]
    if not rows:
        return GuideAnswer(guide="C", answer=f"{method}; its table starts at 8 GB", rule=rule, method=method)
    row = rows[-1]
    size = row.full if method == "full" else row.lora
    wrong = []
    if method == "full" and row.memory == 80:
        wrong.append("13B in 80 GB: 8 bytes a parameter before activations are 104 GB with AdamW in bf16")
    if method == "full" and row.memory == 24:
        wrong.append("3B in 24 GB: 8 bytes a parameter before activations are 25.7 GB; 8-bit states help")
    if method == "full" and row.memory == 8:
        wrong.append("1B in 8 GB: 8 bytes a parameter before activations are 9.9 GB for Llama-3.2-1B")
    return GuideAnswer(
        guide="C",
        answer=f"{method}, up to about {size:g}B (QLoRA to {row.qlora:g}B)",
        rule=f"{rule}; {row.memory:g} GB row",
        method=method,
        wrong=tuple(wrong),
    )
