"""Which methods a model can be trained with on some hardware, and how well each suits a request."""

from __future__ import annotations

from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import ScorePart, Setting
from luthier.schema.recipe import Full, Lora, Method, QLora
from luthier.schema.request import MethodName, Request

ENCODERS = ("encoder", "bi-encoder", "cross-encoder")


def build_method(
    name: MethodName, rank: Setting | None, alpha: Setting | None, dropout: Setting | None = None
) -> Method:
    """A method with the rank, alpha and dropout that the hyperparameter table gives."""
    if name == "full":
        return Full()
    r = int(rank.value) if rank is not None else 16
    a = float(alpha.value) if alpha is not None else None
    noise = float(dropout.value) if dropout is not None else 0.0
    kind = Lora if name == "lora" else QLora
    return kind(rank=r, alpha=a, dropout=noise)


def method_objection(card: ModelCard, name: MethodName, request: Request, hardware: Hardware) -> str | None:
    """Why a method cannot be used here, or None."""
    if request.goal == "from-scratch" and name != "full":
        return "training from scratch has no frozen base"
    if name == "qlora":
        if not any(a.kind == "cuda" for a in hardware.accelerators):
            return "4-bit bases need an NVIDIA GPU (bitsandbytes)"
        if card.kind in ENCODERS:
            return "an encoder is small enough without quantisation"
        if card.architecture is not None and card.architecture.experts is not None:
            return "fused experts are no linear layers and stay in 16 bits"
    if name in ("lora", "qlora") and not card.lora.targets and card.added_from is None:
        return "its adapter targets are not verified"
    if name == "full" and card.kind == "vision-language" and request.reads_images:
        return "images: the language model is adapted and the towers stay frozen (LoRA)"
    return None


def suitability(name: MethodName, card: ModelCard, request: Request) -> ScorePart:
    """Points for a method: what it is expected to cost or gain in quality against the best one here.

    The differences are the guides' order of methods (full highest, LoRA very close, QLoRA slightly
    lower) put as small numbers; where a guide or a peer names a method for a situation, it leads.
    """
    small_data = (request.rows or 1_000) < 1_000
    encoder = card.kind in ENCODERS and (card.total or 0) < 1e9
    if request.stage == "production" and not encoder:
        points = {"full": -4.0, "lora": 0.0, "qlora": -3.0}
        return ScorePart(name="method", points=points[name], why="production: LoRA (guide C)")
    if request.goal in ("new-language", "from-scratch"):
        points = {"full": 0.0, "lora": -15.0, "qlora": -20.0}
        why = "new languages are learned by all weights (guide C: SFT on a multilingual base)"
    elif request.stage == "research":
        points = {"full": 0.0, "lora": -4.0, "qlora": -7.0}
        why = "research: full fine-tuning (guide C)"
    elif encoder:
        points = {"full": 0.0, "lora": -1.5, "qlora": -9.0}
        why = "small encoders are fine-tuned whole (sentence-transformers' and BERT's own recipes)"
    elif card.kind in ENCODERS:
        points = {"full": -2.0, "lora": 0.0, "qlora": -9.0}
        why = "embedders and rerankers of a billion parameters and more: adapters keep what they know"
    elif request.reads_images:
        points = {"full": -2.0, "lora": 0.0, "qlora": -2.0}
        why = "image and text: LoRA on the language model, towers frozen (guide C)"
    elif request.goal == "domain":
        points = {"full": 0.0, "lora": -0.5, "qlora": -2.5}
        why = "domain knowledge: full fine-tuning or LoRA (guide C)"
    elif request.vertical == "code":
        points = {"full": -2.0, "lora": 0.0, "qlora": -2.0}
        why = "code: LoRA on a code model (guide C)"
    else:
        points = {"full": -2.0, "lora": 0.0, "qlora": -2.0}
        why = "chat and formats: LoRA on an instruct model (guide C)"
    if small_data and name == "full" and not encoder and request.goal not in ("new-language", "from-scratch"):
        return ScorePart(
            name="method",
            points=points["full"] - 3.0,
            why=f"{why}; under 1,000 rows all weights overfit sooner than adapters",
        )
    return ScorePart(name="method", points=points[name], why=why)
