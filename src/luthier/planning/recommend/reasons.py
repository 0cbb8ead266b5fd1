"""What to say about a candidate: reasons, duties, warnings, and advice for the whole plan."""

from __future__ import annotations

from luthier.catalog.index import licence as find_licence
from luthier.planning.recommend.ecosystem import family_facts
from luthier.planning.recommend.languages import NAMES, covers
from luthier.planning.recommend.precision import float16_unsafe, lacks_bf16
from luthier.planning.recommend.shapes import rows_of
from luthier.schema.hardware import Hardware
from luthier.schema.model import ModelCard
from luthier.schema.plan import BatchShape, Evidence, Reason
from luthier.schema.request import Request

GIB = 2**30


def candidate_reasons(
    card: ModelCard,
    request: Request,
    proof: Evidence,
    *,
    variant_why: str,
    method_why: str,
    batch: BatchShape,
    needed: int,
    budget: int,
) -> tuple[Reason, ...]:
    """Why this candidate, most telling first."""
    terms = find_licence(card.licence)
    source = None if proof.benchmark is None else proof.benchmark.source
    found = [
        Reason(kind="quality", text=proof.text, source=source),
        Reason(
            kind="fit",
            text=f"needs {needed / GIB:.1f} of {budget / GIB:.1f} GiB"
            + (" a device" if batch.devices > 1 else "")
            + f" (micro-batch {batch.micro_batch_size} x {batch.sequence_length:,} tokens"
            + (", activations recomputed)" if batch.checkpointing else ")"),
            source="formula",
        ),
        Reason(kind="licence", text=terms.name, source=terms.url),
    ]
    if card.kind in ("decoder", "vision-language"):
        found.append(Reason(kind="variant", text=variant_why, source="guide A"))
    found.append(Reason(kind="method", text=method_why))
    if request.priority == "ecosystem" and (facts := family_facts(card)) is not None:
        found += [Reason(kind="rule", text=f.text, source=f"{f.basis}: {f.source}") for f in facts.facts]
    if (facts := family_facts(card)) is not None:
        found += [Reason(kind="caveat", text=t.text, source=f"{t.basis}: {t.source}") for t in facts.traits]
    if card.lora.behaviour and "lora" in method_why.lower():
        found.append(Reason(kind="caveat", text=f"adapters: {card.lora.behaviour}", source="peft"))
    found += [Reason(kind="caveat", text=text) for text in card.caveats]
    return tuple(found)


def warnings(card: ModelCard, request: Request, hardware: Hardware) -> tuple[str, ...]:
    """What could go wrong with this model in this request."""
    terms = find_licence(card.licence)
    found: list[str] = []
    if lacks_bf16(hardware) and float16_unsafe(card):
        name = next(a.name for a in hardware.accelerators if not a.bf16)
        found.append(
            f"{name} has no bf16, and this family overflows in float16: train in float32 or on another GPU"
        )
    if request.outputs_train_models and terms.may_train_others != "yes":
        found.append(
            terms.outputs_note or f"{terms.name}: whether outputs may train other models is not verified"
        )
    if request.vertical is not None and (clause := terms.verticals.get(request.vertical)):
        found.append(f"{request.vertical}: {clause} ({terms.acceptable_use_url})")
    if terms.user_threshold is not None and request.monthly_users is None and request.use == "commercial":
        found.append(f"a separate licence is needed above {terms.user_threshold:,} monthly users")
    if request.use is None and terms.commercial_use == "no":
        found.append(f"{terms.name}: for non-commercial use only (say --use research or --use commercial)")
    if terms.id == "unknown":
        found.append("its licence is not verified: read the model's page before any use")
    elif terms.verified == "tag-only":
        found.append(f"{terms.name}: its text was not read again; check it before shipping")
    if card.licence_note:
        found.append(card.licence_note)
    if card.gated:
        found.append(f"gated download: accept the terms at https://huggingface.co/{card.id} first")
    unsure = [NAMES[code] for code in request.languages if covers(card, code) == "unknown"]
    if unsure and request.goal != "new-language":
        found.append(f"{', '.join(unsure)}: not verified for this model; measure the baseline first")
    claimed = [NAMES[code] for code in request.languages if covers(card, code) == "claimed"]
    if claimed:
        found.append(
            f"{', '.join(claimed)}: covered by the maker's claim of {card.language_claim}, not listed"
        )
    if card.kind == "vision-language" and not request.reads_images and card.parameters.towers:
        found.append(
            f"carries {card.parameters.towers / 1e9:.2f}B parameters for images that text does not use"
        )
    if card.status != "weights available":
        found.append(card.status)
    return tuple(found)


def advice(request: Request) -> tuple[str, ...]:
    """When another way is likely to serve better than tuning, or should come first."""
    rows, found = rows_of(request), []
    if request.rows is not None or request.profile is not None:
        if rows < 50:
            found.append(
                f"{rows} rows are too few to show a gain: put the best of them into the prompt first, and "
                "keep the rest to judge it"
            )
        elif rows < 300 and request.goal not in ("new-language", "from-scratch"):
            found.append(
                f"{rows} rows change tone and format, not knowledge; more examples are worth more than size"
            )
    if request.profile is not None and request.profile.labels and request.purpose == "chat":
        found.append(
            f"the answers are {len(request.profile.labels)} labels that repeat: a classifier (purpose "
            "multi-class-classification) does this smaller, faster and with a probability for each"
        )
    if request.goal == "domain" and request.purpose in ("chat", "text-generation"):
        found.append(
            "facts that change or must be cited are better retrieved than trained in: tune the manner, "
            "retrieve the facts (purpose similarity finds the embedder)"
        )
    if request.goal == "from-scratch":
        found.append(
            "pretraining from scratch needs about 20 tokens a parameter before it beats tuning a base model"
        )
    if "json" in request.features:
        found.append(
            "strict JSON: constrained decoding at serving time holds the format, tuning fills it rightly"
        )
    if request.purpose == "reranking":
        found.append("rerank a small set: retrieve with an embedder first, then score 20 to 100 of them")
    found.append(
        "measure the untouched model on held-out rows first: `luthier train` does it before any step"
    )
    return tuple(found)
