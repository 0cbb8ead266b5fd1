"""The recipe: one nested YAML document with all that a run needs.

``None`` means "derive it"; the resolved recipe holds the derived value, and ``sources`` says where
it came from (``training.batch_size: fits 21.3 of 24.0 GiB``).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from luthier.schema.base import Record
from luthier.schema.licence import LicenceRule, Use

Purpose = Literal[
    "chat",
    "text-generation",
    "similarity",
    "reranking",
    "multi-label-classification",
    "multi-class-classification",
]
Dtype = Literal["float32", "bfloat16"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
TrainOn = Literal["assistant", "last", "all", "completion"]
OptimizerName = Literal[
    "adamw", "adamw-8bit", "paged-adamw-8bit", "adamw-bf16", "adamw-bf16-kahan", "muon"
]  # fmt: skip
Reshard = Literal["layer", "backward", "step"]
GgufType = Literal["F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M"]


def without_masters(optimizer: str) -> bool:
    """Whether an optimiser keeps bf16 weights without fp32 masters, and its moments in bf16 too."""
    return optimizer in ("adamw-bf16", "adamw-bf16-kahan")


class SimilarityChoice(Record):
    """How a bi-encoder is trained: one vector a text, near where texts belong together."""

    loss: Literal["in-batch-negatives", "cosent", "cosine", "triplet", "batch-all-triplet"] | None = None
    """What is minimised; derived from the rows: cosent for scored pairs, batch-all-triplet for labelled
    texts, in-batch-negatives for others."""
    scale: float = Field(20.0, gt=0)
    """What cosines are multiplied by (one over the temperature): in-batch-negatives and cosent."""
    symmetric: bool = False
    """in-batch-negatives: whether each document must find its query among all queries too."""
    margin: float | None = Field(None, gt=0)
    """Triplets: how much nearer the positive must be; 0.2 for cosine distances, 5 for euclidean ones."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Triplets: how distances are measured."""
    score_range: tuple[float, float] | None = None
    """cosine: scores that stand for a cosine of 0 and of 1; derived from the training rows."""
    negatives: int | None = Field(None, ge=0)
    """Most hard negatives of a row that a step takes; all when not given."""
    dimensions: tuple[int, ...] = ()
    """Shorter vectors that must be good too: their first so many numbers (Matryoshka)."""
    pooling: Literal["mean", "cls", "lasttoken", "max", "weightedmean"] | None = None
    """How token states become a vector; what the model says, else the mean (decoders: the last token)."""
    normalize: bool | None = None
    """Whether vectors have unit length; what the model says, else yes."""
    query_prompt: str | None = None
    """What is put before queries; the model's own, else the catalogue's."""
    document_prompt: str | None = None
    """What is put before documents; the model's own, else the catalogue's."""

    @field_validator("dimensions", mode="before")
    @classmethod
    def _sizes(cls, value: object) -> object:
        if isinstance(value, int):
            return (value,)
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


class RerankingChoice(Record):
    """How a cross-encoder is trained: one score for a query and a document read together."""

    loss: Literal["binary", "mse", "lambda", "list-net", "margin-mse", "distillation"] | None = None
    """What is minimised; binary (relevant or not, or a share of it) when not given."""
    form: Literal["classification", "yes-no"] | None = None
    """A head with one score, or a decoder's logits of yes and no; what the model is, else a head."""
    score_range: tuple[float, float] | None = None
    """Scores that stand for not relevant and for wholly relevant; derived from the training rows."""
    negatives: int = Field(4, ge=0)
    """Most negatives of a query in training; where rows have none, so many are found by words (BM25)."""
    candidates: int = Field(50, ge=2)
    """Documents of a corpus that are reranked for each query when judging: the first by words (BM25)."""
    temperature: float = Field(1.0, gt=0)
    """distillation: what scores are divided by before they are compared."""
    instruction: str | None = None
    """yes-no: what the model is told to judge; the usual web search sentence when not given."""


class PreferenceChoice(Record):
    """How a chat model is tuned on pairs of a better and a worse answer."""

    loss: Literal["dpo", "orpo"] = "dpo"
    """dpo: against the untouched model; orpo: on the chosen answer and the odds between both, in one go."""
    beta: float = Field(0.1, gt=0)
    """dpo: how much moving away from the untouched model costs; orpo: weight of the odds ratio."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """dpo: share of the pairs that are taken to be the wrong way round."""
    sft: float = Field(0.0, ge=0)
    """dpo: weight of the chosen answer's cross-entropy beside the pairs (orpo has it in full)."""


class VisionChoice(Record):
    """How a model that sees is tuned on chats with images (LoRA on its language part)."""

    tower: Literal["frozen", "adapters"] = "frozen"
    """Whether the vision tower's linear layers get adapters too."""
    projector: bool = False
    """Whether what joins tower and language part is trained, with all its weights."""
    max_pixels: int | None = Field(None, ge=1)
    """Images with more pixels are made smaller, which saves tokens; what the model itself reads if None."""


class FromScratch(Record):
    """A model that begins with random weights: which shape, which size, which tokenizer."""

    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    """Architecture, as transformers names it."""
    parameters: int = Field(ge=1_000)
    """Size to come near to, embeddings counted; 30M and 1.5B are numbers too."""
    tokenizer: str = "bpe"
    """``bpe`` or ``characters``, made from the training text, or a folder with a tokenizer."""
    vocabulary: int = Field(8_192, ge=256)
    """Tokens of a bpe tokenizer, at most."""
    context: int = Field(1_024, ge=8)
    """Longest sequence that the model reads."""
    hidden_size: int | None = Field(None, ge=16)
    """Width; derived from the size."""
    layers: int | None = Field(None, ge=1)
    """Layers; derived from the size."""
    heads: int | None = Field(None, ge=1)
    """Attention heads; derived as one for each 64 of width."""

    @field_validator("parameters", mode="before")
    @classmethod
    def _size(cls, value: object) -> object:
        """30M, 1.5B and 800k as people write them."""
        if isinstance(value, str) and (match := re.fullmatch(r"\s*([\d.]+)\s*([kKmMbB])\s*", value)):
            return round(float(match[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])
        return value


class ModelChoice(Record):
    """Which weights to start from."""

    from_scratch: FromScratch | None = None
    """Start from random weights of this shape instead; the id is then only a name."""

    id: str
    """A catalogue id, a Hugging Face Hub id or a directory with a saved model."""
    revision: str | None = None
    """The Hub commit to use; `luthier get` pins it here."""
    dtype: Dtype | None = None
    """Compute and storage type of the weights; derived from what the device does fast."""
    attention: Literal["eager", "sdpa"] | None = None
    """Attention implementation; derived from the device."""
    chat_template: str | None = None
    """Chat template in place of the model's own, for base models that have none: chatml, plain, a .jinja
    file, or the folder of a saved model whose template is taken."""
    new_tokens: tuple[str, ...] = ()
    """Texts that become tokens of their own, with trained embeddings: ["<tool>", "</tool>"]."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the model may run. Off unless asked for by name."""

    @field_validator("new_tokens", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        """<tool>,</tool> as a command line gives them."""
        return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value

    @field_validator("new_tokens")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in value):
            raise ValueError("a new token needs a text that is not empty or blank")
        if again := sorted({text for text in value if value.count(text) > 1}):
            raise ValueError(f"{again[0]!r} stands there {value.count(again[0])} times; give it once")
        return value

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """A model from scratch needs no id: it is called by its shape."""
        if isinstance(value, dict) and isinstance(value.get("from_scratch"), dict) and not value.get("id"):
            shape = value["from_scratch"]
            name = f"{shape.get('family', 'llama')}-{shape.get('parameters', '')}-from-scratch"
            return {**value, "id": name}
        return value


class Full(Record):
    """Train all weights."""

    name: Literal["full"] = "full"
    products: Literal["float8"] | None = None
    """Compute the products of the layers in eight bits (Hopper and newer cards); never derived."""


class Lora(Record):
    """Train low-rank adapters beside frozen weights (Hu et al. 2021, arXiv 2106.09685)."""

    name: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    """Rank of each adapter."""
    alpha: float | None = Field(None, gt=0)
    """Scale numerator: the update is multiplied by alpha / rank; derived as 2 x rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names to adapt, or all linear layers but the head."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732)."""
    dora: bool = False
    """Decompose weights into magnitude and direction (Liu et al. 2024, arXiv 2402.09353)."""
    experts: Literal["none", "all"] | tuple[Annotated[int, Field(ge=0)], ...] = "none"
    """Experts of a mixture that get adapters too, in every layer: none, all, or some by number."""
    router: bool = False
    """Whether the routers of a mixture are trained as well, with all their weights."""
    adapter_dtype: Dtype = "float32"
    """Type that the adapters are held and updated in; they compute in the model's."""
    base: Literal["float8"] | None = None
    """Hold the frozen weights in eight bits for products twice as fast (Hopper and newer cards)."""
    init_from: str | None = None
    """Folder of an adapter in PEFT's format whose weights training starts from."""

    @field_validator("experts", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """0,3 and 2 as a command line gives them."""
        if isinstance(value, str) and value not in ("none", "all"):
            return tuple(part.strip() for part in value.split(","))
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value


class QLora(Lora):
    """LoRA over a base quantised to four bits (Dettmers et al. 2023, arXiv 2305.14314)."""

    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]
    quantisation: Literal["nf4"] = "nf4"
    """Storage type of the frozen base weights."""
    double_quantisation: bool = True
    """Whether the scales are quantised too."""


Method = Annotated[Full | Lora | QLora, Field(discriminator="name")]


class DataChoice(Record):
    """Which rows to train, validate and test on, and how to read them."""

    name: str | None = Field(None, pattern=r"^[\w][\w.-]*$")
    """Name under which versions of these rows are kept (`luthier data versions NAME`)."""
    train: tuple[str, ...]
    """Files, folders, globs or ``hub:name[config]/split`` of training rows; ``{path, weight}`` weighs one."""
    weights: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """How often the rows of each entry of train are seen in an epoch: 2 twice, 0.5 half of them; else 1."""
    validation: tuple[str, ...] = ()
    """Rows to watch while training; cut from train when not given."""
    test: dict[str, tuple[str, ...]] = {}
    """Named held-out splits for the proof; one is cut from train when none is given."""
    validation_share: float = Field(0.05, ge=0, lt=1)
    """Share of train to cut for validation when no file is given."""
    test_share: float = Field(0.1, ge=0, lt=1)
    """Share of train to cut for the test split when no file is given."""
    format: Literal["messages", "sharegpt", "alpaca", "prompt-completion", "input-output", "text"] | None = (
        None
    )
    """Shape of the rows; detected when not given."""
    columns: dict[str, str] = {}
    """Role -> column, where the file's own names are not the usual ones."""
    label_delimiter: str | None = Field(None, min_length=1)
    """What parts several labels in one text; told from the rows when not given."""
    system: str | None = None
    """System prompt for rows that have none."""
    train_on: TrainOn = "assistant"
    """Which tokens carry loss: all assistant turns, the last one, the completion, or everything."""
    max_rows: int | None = Field(None, ge=1)
    """Use only this many training rows, chosen by seed."""
    fim_rate: float = Field(0.0, ge=0, le=1)
    """Share of plain texts turned round to fill a gap in the middle, for models that have marks for it."""
    packing: bool | None = None
    """Whether several rows share one sequence (attention never crosses); derived."""
    over_length: Literal["error", "truncate", "drop"] = "error"
    """What to do with a row longer than the sequence length."""
    storage: Literal["memory", "cache", "stream"] | None = None
    """Where rendered rows are kept: in memory, in a cache on disk, or nowhere (read again); by size."""
    processes: int | None = Field(None, ge=1)
    """Processes that read and render large files; all cores when not given."""

    @model_validator(mode="before")
    @classmethod
    def _weighted(cls, values: object) -> object:
        """``train: [{path: a.jsonl, weight: 2}, b.jsonl]`` as train and weights."""
        if not isinstance(values, dict):
            return values
        train = values.get("train")
        entries = [train] if isinstance(train, dict) else train
        if not isinstance(entries, (list, tuple)) or not any(isinstance(one, dict) for one in entries):
            return values
        paths, weights = [], []
        for one in entries:
            if isinstance(one, dict) and (set(one) - {"path", "weight"} or "path" not in one):
                raise ValueError(f"a source has the keys path and weight, not {', '.join(map(str, one))}")
            paths.append(one["path"] if isinstance(one, dict) else one)
            weights.append(one.get("weight", 1) if isinstance(one, dict) else 1)
        if values.get("weights"):
            raise ValueError("weights stand both in data.train and in data.weights; keep one of them")
        return {**values, "train": paths, "weights": weights}

    @model_validator(mode="after")
    def _one_weight_each(self) -> DataChoice:
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(f"{len(self.weights)} weights for {len(self.train)} sources; give one for each")
        return self

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("test", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if isinstance(value, str):
            return {"test": (value,)}
        if isinstance(value, (list, tuple)):
            return {"test": tuple(value)}
        if isinstance(value, dict):
            return {k: (v,) if isinstance(v, str) else v for k, v in value.items()}
        return value


class Parallel(Record):
    """How the devices of a training share it; the product of all sizes is training.devices."""

    replicate: int | None = Field(None, ge=1)
    """Groups that each hold the whole model and take micro-batches of their own; what the others leave."""
    shard: int | None = Field(None, ge=1)
    """Devices that hold one model together (FSDP), each with micro-batches of its own; by memory."""
    reshard: Reshard | None = None
    """How long divided weights stay gathered: for one pass of their layer, from its forward pass to its
    backward pass, or until a step's last micro-batch, gradients added up with them; by memory."""
    tensor: int = Field(1, ge=1)
    """Devices that each hold a part of every matrix and compute the same micro-batch together."""
    context: int = Field(1, ge=1)
    """Devices that each hold a part of every sequence."""
    pipeline: int = Field(1, ge=1)
    """Devices that each hold some of the layers."""
    expert: int = Field(1, ge=1)
    """Devices that each hold some of the experts of every layer."""

    def sizes(self, devices: int) -> dict[str, int]:
        """Every size by name for so many devices; what is not given yet is replicated.

        Raises ValueError where the product is not the number of devices.
        """
        given = {"replicate": self.replicate, "shard": self.shard}
        rest = {name: getattr(self, name) for name in ("tensor", "context", "pipeline", "expert")}
        known = math.prod(size for size in (*given.values(), *rest.values()) if size is not None)
        left = devices // known
        if self.replicate is None:
            given = {"replicate": left, "shard": self.shard or 1}
        elif self.shard is None:
            given = {"replicate": self.replicate, "shard": left}
        found = {name: size or 1 for name, size in given.items()} | rest
        if math.prod(found.values()) != devices:
            said = " x ".join(f"{name} {size}" for name, size in found.items() if size > 1) or "one device"
            raise ValueError(
                f"the sizes of parallel ({said}) do not multiply to training.devices {devices}; set "
                f"training.devices to {known * max(1, left)}, or sizes whose product is {devices}"
            )
        return found


class TrainingChoice(Record):
    """How to train."""

    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimiser steps, whatever the epochs say."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate."""
    batch_size: int | None = Field(None, ge=1)
    """Rows (packed: sequences) for each optimiser step, over all micro-batches and devices."""
    devices: int = Field(1, ge=1)
    """Devices that train together, on all machines."""
    parallel: Parallel | None = None
    """How these devices share the training; derived: the whole model on each where it fits, else divided."""
    nodes: int = Field(1, ge=1)
    """Machines that these devices are on, equally many on each."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Rows (packed: sequences) that go through the model at once on one device."""
    sequence_length: int | None = Field(None, ge=8)
    """Longest sequence in tokens; derived from the data and the model's context."""
    optimizer: OptimizerName = "adamw"
    """AdamW with moments in fp32; in eight bits; in eight bits in memory that moves to the host when the
    GPU's is short; with bf16 weights, no masters and moments in bf16, rounded by chance or with what rounding
    loses kept beside (kahan); or Muon for the matrices of the layers and AdamW for all else."""
    update_in_backward: bool = False
    """Whether each weight is updated as soon as its gradient is there, which is dropped then: for full
    fine-tuning of one micro-batch a step, without clipping."""
    frozen_layers: int = Field(0, ge=0)
    """Layers, from the first, that a full fine-tuning leaves as they are, with the embeddings below them."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay on matrices."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the learning rate after warm-up; wsd stays at its peak and decays at the end."""
    decay_share: float = Field(0.2, gt=0, le=1)
    """wsd: share of all steps over which the rate falls to zero (Hägele et al. 2024, arXiv 2405.18392)."""
    warmup_share: float = Field(0.05, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    neftune_alpha: float = Field(0.0, ge=0)
    """Noise on the embeddings while training, within this over the root of a document's numbers (NEFTune)."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of a moving average of the weights that is kept beside them, 0.999 for example."""
    activation_checkpointing: Literal["none", "selective", "full", "offload"] | None = None
    """What the backward pass computes again: nothing, all but matrix products and attention (compiled layers
    only), whole layers, or whole layers whose inputs wait in the host's memory; derived from memory."""
    offload_parameters: bool | None = None
    """Whether the layers' frozen weights wait in the host's memory and come to the GPU one layer ahead (LoRA
    and QLoRA, layers computed again); derived: where nothing else fits."""
    recomputed_layers: int | None = Field(None, ge=0)
    """How many layers, from the first, activation_checkpointing holds for; all when not given."""
    compile: bool | None = None
    """Whether the layers are compiled into fused kernels (torch.compile); derived from the device."""
    cuda_graphs: bool | None = None
    """Whether a micro-batch's kernels are recorded and launched at once (CUDA graphs); derived: where
    launching them one by one would take longer than computing."""
    evaluate_every: int | None = Field(None, ge=1)
    """Steps between evaluations on the validation rows; derived as about ten a run."""
    checkpoint_every: int | None = Field(None, ge=1)
    """Steps between checkpoints; derived."""
    keep_last: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk; the best one always does."""
    background_checkpoints: bool | None = None
    """Whether checkpoints are copied in memory and written beside the training; derived from memory."""
    select: Literal["best", "last", "ema"] = "best"
    """What is evaluated and shipped: the weights with the lowest validation loss, those of the last step, or
    their moving average at the last step."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations in a row without a lower validation loss."""
    max_skipped_steps: int = Field(3, ge=0)
    """Steps whose loss or gradient is not a number that may be left out before the run ends."""
    on_spike: Literal["note", "skip", "off"] = "note"
    """What to do where the loss leaps: note it and keep the batch, also leave the step out, or not look."""
    trackers: tuple[Tracker, ...] = ()
    """Where the metrics go besides the run's own files: tensorboard, wandb, mlflow, trackio."""
    profile_steps: int = Field(0, ge=0)
    """Steps to record with torch's profiler, from the third of the process on; opens in Perfetto."""

    @model_validator(mode="after")
    def _shared_out(self) -> TrainingChoice:
        if self.parallel is not None:
            self.parallel.sizes(self.devices)
        return self

    @model_validator(mode="after")
    def _on_machines(self) -> TrainingChoice:
        if self.devices % self.nodes:
            raise ValueError(
                f"{self.devices} devices cannot be shared out equally over {self.nodes} nodes; "
                f"set devices to {self.nodes * max(1, round(self.devices / self.nodes))}"
            )
        return self

    @field_validator("trackers", mode="before")
    @classmethod
    def _trackers(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )


class EvaluationChoice(Record):
    """How baseline and tuned model are judged, both in the same way."""

    metrics: tuple[str, ...] | None = None
    """Metrics by name; chosen from the data when not given."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer in tokens."""
    max_rows: int | None = Field(None, ge=1)
    """Use at most this many rows of each test split, chosen by seed."""
    batch_size: int | None = Field(None, ge=1)
    """Prompts that are answered at once; derived."""
    floor_rows: int = Field(64, ge=0)
    """Held-out rows of the first split that copy, commonest answer and examples in the prompt are judged
    on (chat and text generation); 0 judges none."""
    shots: int = Field(3, ge=0)
    """Examples from train that the base model is shown as prompting alone; 0 leaves it out."""
    probe_rows: int = Field(48, ge=0)
    """Questions of general ability that base and tuned model are asked, beside a few texts and everyday
    requests, to see what the tuning broke (chat and text generation; at most 48); 0 leaves it all out."""
    samples: int = Field(3, ge=0)
    """How many prompts are shown with both answers."""


class ClassificationChoice(Record):
    """How a classifier is trained and how it decides (classification purposes only)."""

    labels: tuple[str, ...] | None = None
    """Labels in the order of the head; derived from the training rows."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each target that is spread over all labels (Szegedy et al. 2016, arXiv 1512.00567)."""
    class_weights: Literal["none", "balanced", "sqrt"] = "none"
    """Whether rare labels count more: by how rare they are, or by its square root."""
    out_of_scope: str | None = None
    """Label of rows that belong to no class: it gets no place in the head and is told by low confidence."""
    refuse_below: float | None = Field(None, ge=0, le=1)
    """Confidence under which an input is out of scope; chosen on the validation rows when not given."""
    calibrate: bool = True
    """Whether temperature and thresholds are chosen on the validation rows."""


class ExportChoice(Record):
    """What to write when training is done."""

    adapter: bool = True
    """Adapter in PEFT format (adapter methods only)."""
    merged: bool = True
    """Merged weights as safetensors."""
    gguf: tuple[GgufType, ...] = ()
    """GGUF files by type."""
    imatrix: bool = False
    """Whether GGUF types of four bits and less are rounded by an importance matrix of training rows."""
    onnx: bool = False
    """An ONNX graph for onnxruntime (classification, similarity and reranking)."""
    parity_prompts: int = Field(8, ge=1)
    """How many held-out prompts each export must answer like the trained model."""
    quality_rows: int = Field(64, ge=0)
    """Held-out rows on which each GGUF file is judged by the run's own metric; 0 judges none."""

    @field_validator("gguf", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())


class LicenceChoice(Record):
    """What was asked of the base model's licence; training, export and deployment refuse to break it."""

    rules: tuple[LicenceRule, ...] = ()
    """Rules that it must meet, all of them."""
    use: Use | None = None
    """How the model will be used; commercial use refuses non-commercial licences."""
    monthly_users: int | None = Field(None, ge=0)
    """Monthly active users of the products it goes into; some licences have a threshold."""
    eu_entity: bool = False
    """Whether the user is domiciled in the European Union."""
    outputs_train_models: bool = False
    """Whether answers of the tuned model will train other models."""
    redistribute: bool = False
    """Whether the tuned weights will be passed on."""


class Recipe(Record):
    """All that a run needs, and nothing that depends on where it runs."""

    version: Literal[1] = 1
    """Version of this format."""
    name: str | None = None
    """Name of the run; derived from model and data."""
    task: Purpose = "chat"
    """What the model is tuned for."""
    model: ModelChoice
    method: Method = Field(default_factory=Lora)
    data: DataChoice
    training: TrainingChoice = Field(default_factory=TrainingChoice)
    similarity: SimilarityChoice | None = None
    """Settings of the purpose similarity."""
    reranking: RerankingChoice | None = None
    """Settings of the purpose reranking."""
    preference: PreferenceChoice | None = None
    """Tune a chat on pairs of a better and a worse answer; the task stays chat."""
    vision: VisionChoice | None = None
    """Tune a chat on rows with images; the task stays chat."""
    evaluation: EvaluationChoice = Field(default_factory=EvaluationChoice)
    export: ExportChoice | None = Field(default_factory=ExportChoice)
    classification: ClassificationChoice | None = None
    """How a classifier is trained and how it decides; classification purposes only."""
    licence: LicenceChoice | None = None
    """What the base model's licence must allow; None asks nothing of it."""
    seed: int = Field(17, ge=0)
    """Seed of every random choice: split, order, initialisation, dropout."""
    sources: dict[str, str] = {}
    """Dotted key -> where its derived value came from. Written by Luthier, kept as a record."""
