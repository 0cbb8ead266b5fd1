"""Guide C's table of methods, row by row beside what was measured on one model, rows and card."""

from __future__ import annotations

from luthier.catalog.methods import measured_methods
from luthier.schema.methods import MeasuredMethod, MeasuredMethods, MethodClaim

WORDS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA", "float8-lora": "LoRA over 8 bits"}
C_METHODS: dict[str, tuple[str, str, str]] = {
    "updates": ("all weights", "less than 1 % (adapters)", "as LoRA, the base in 4 bits"),
    "speed of a step": ("fastest", "slightly slower", "slower"),
    "quality ceiling": ("highest", "very close", "slightly lower"),
    "memory, of the 16-bit weights": ("about 3x, elsewhere 6x", "about 2x", "about 0.7x"),
    "when": ("enough memory, best quality", "large model, limited memory", "largest models, consumer GPUs"),
}
"""Guide C: what -> full SFT, LoRA, QLoRA."""


def method_claims(found: MeasuredMethods | None = None) -> tuple[MethodClaim, ...]:
    """The guide's rows with ours; found: the measured table, the shipped one unless given."""
    found = found or measured_methods()
    cells: dict[str, tuple[dict[str, str], str]] = {
        "updates": _updates(found),
        "speed of a step": _speed(found),
        "quality ceiling": _quality(found),
        "memory, of the 16-bit weights": _memory(found),
        "when": (
            {one.name: f"{one.peak / 1e9:.1f} GB for this model" for one in found.methods},
            "memory decides: `luthier plan` computes it for the model, rows and card at hand",
        ),
    }
    names = ("full", "lora", "qlora")
    return tuple(
        MethodClaim(
            about=about, guide=dict(zip(names, says, strict=True)), measured=cells[about][0],
            finding=cells[about][1],
        )
        for about, says in C_METHODS.items()
    )  # fmt: skip


def measured_how(found: MeasuredMethods | None = None) -> str:
    """Model, rows, steps, seeds and card of the table, in a sentence."""
    found = found or measured_methods()
    counts = [len(one.seeds) for one in found.methods]
    least, most = min(counts), max(counts)
    seeds = f"{most} seeds" if least == most > 1 else "one seed" if most == 1 else f"{least} to {most} seeds"
    elsewhere = "" if found.timed_on == found.card else f", times of one {found.timed_on}"
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    return (
        f"{found.model}, {found.data}; {found.steps} steps of {found.rows} rows "
        f"({found.tokens:,.0f} tokens), {seeds} of each, one {found.card}{elsewhere}; {versions}"
    )


def _of(found: MeasuredMethods, name: str) -> MeasuredMethod:
    return next(one for one in found.methods if one.name == name)


def _updates(found: MeasuredMethods) -> tuple[dict[str, str], str]:
    shares = {one.name: one.trained / found.weights for one in found.methods}
    cells = {
        one.name: f"{100 * shares[one.name]:.3g} %, {one.saved / 1e6:,.1f} MB saved" for one in found.methods
    }
    if shares["lora"] < 0.01:
        return cells, "holds"
    return cells, "does not hold for a small model with adapters of rank 16 on all linear layers"


def _speed(found: MeasuredMethods) -> tuple[dict[str, str], str]:
    full = _of(found, "full").step
    cells = {one.name: f"{1e3 * one.step:.1f} ms ({one.step / full:.2f}x)" for one in found.methods}
    quickest = min(found.methods, key=lambda one: one.step)
    if quickest.name != "full":
        return cells, f"does not hold: {WORDS[quickest.name]} is the fastest here"
    return cells, (
        "holds on a model this small, where a step's overhead decides; full takes 6 operations a weight "
        "and token, adapters 4"
    )


def _quality(found: MeasuredMethods) -> tuple[dict[str, str], str]:
    cells = {}
    for one in found.methods:
        between = f" ({min(one.losses):.4f} to {max(one.losses):.4f})" if len(one.losses) > 1 else ""
        cells[one.name] = f"loss {one.loss:.4f}{between}"
    spread = max(max(one.losses) - min(one.losses) for one in found.methods)
    if min(len(one.seeds) for one in found.methods) < 2:
        return cells, "one seed of some: the order is not told apart from chance"
    losses = {one.name: one.loss for one in found.methods if one.name in ("full", "lora", "qlora")}
    order = ", ".join(
        f"{WORDS[name]} {loss:.4f}" for name, loss in sorted(losses.items(), key=lambda x: x[1])
    )
    if max(losses.values()) - min(losses.values()) <= spread:
        return cells, f"not told apart: all lie within what seeds alone move ({spread:.4f})"
    if losses["full"] <= losses["lora"] <= losses["qlora"]:
        return cells, f"holds: {order}; seeds alone move {spread:.4f}"
    return cells, f"another order here, lower is better: {order}; seeds alone move {spread:.4f}"


def _memory(found: MeasuredMethods) -> tuple[dict[str, str], str]:
    weights = 2 * found.weights
    times = {one.name: one.peak / weights for one in found.methods}
    cells = {name: f"{ratio:.1f}x" for name, ratio in times.items()}
    return cells, (
        "does not hold: gradients, states and activations do not grow with the weights alone, so no one "
        "factor fits all sizes"
    )
