"""Predicted memory, time and cost. Sizes are bytes, times are seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from luthier.schema.base import Range, Record
from luthier.schema.recipe import OptimizerName, Reshard

if TYPE_CHECKING:
    from luthier.schema.measurement import Prediction

Part = Literal[
    "weights",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "buffers",
    "workspace",
    "runtime",
]
"""What memory is used for; ``runtime`` is the CUDA context or the interpreter with its libraries."""


class Phase(Record):
    """One moment of a step. Its parts add up to what is held at that moment."""

    name: Literal["load", "forward", "backward", "optimizer", "evaluate", "export"]
    parts: dict[Part, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class Estimate(Record):
    """What a candidate will need."""

    phases: tuple[Phase, ...]
    tensors: Range
    """Peak bytes of tensors (what ``torch.cuda.max_memory_allocated`` reports)."""
    process: Range
    """Peak bytes of the process: reserved memory and context on a GPU, resident set on a CPU."""
    seconds: Range | None
    """Time of the whole training, evaluations not counted; None where it is not known."""
    tokens_per_second: Range | None = None
    cost: Range | None = None
    """Money for the training, in US dollars; None where no price is known."""
    trainable_parameters: int
    total_parameters: int
    flops: float
    """Floating-point operations of the whole training."""
    basis: Literal["formula", "trace", "measured"]
    assumptions: tuple[str, ...] = ()
    """What was assumed, in words."""

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def peak_on(predicted: Estimate | Prediction, device: str) -> Range:
    """The predicted peak as a training there measures it: a GPU's tensors, on a CPU the whole process."""
    return predicted.tensors if device.startswith("cuda") else predicted.process


class TrainingShape(Record):
    """How rows go through the model in one step."""

    micro_batch_size: int
    """Rows (packed: sequences) at once on one device."""
    sequence_length: int
    """Tokens of the longest row; of every row where they are packed."""
    batch_size: int | None = None
    """Rows for each optimiser step; None: one micro-batch."""
    documents: int = 1
    """Documents packed into each row."""
    mean_length: float | None = None
    """Mean tokens of a row, for time; None: as long as the longest."""
    trained_share: float = 1.0
    """Share of tokens that carry loss."""
    patches: int = 0
    """Patches that a vision tower reads for the row with the most of them."""
    patches_per_token: float = 0.0
    """Patches of all rows over their tokens, for time."""
    activation_checkpointing: Literal["none", "selective", "full", "offload"] = "none"
    offload_parameters: bool = False
    """Whether the layers' frozen weights wait in the host's memory, two layers on the device at a time."""
    recomputed_layers: int | None = None
    """How many layers that holds for; None: all. The others keep everything."""
    compiled: bool = False
    """Whether layers are compiled, which keeps less and needs more at once."""
    recorded: bool = False
    """Whether the kernels of a micro-batch are recorded and launched at once (CUDA graphs): for time, and for
    gradients that stay where they are."""
    padded: bool = False
    """Whether rows lie side by side, padded to the longest, with a mask: where a text is read as a whole."""
    padding: float = 1.0
    """Places that go through the model for each token, for time: more than one where rows are padded."""
    compared: int = 0
    """Numbers in the matrices that compare a batch's vectors, all dimensions together."""
    text_lengths: tuple[int, ...] = ()
    """Tokens of each text of a step whose vectors are compared, longest first: on a GPU they go through the
    model in pieces of like length; (): all as long as the longest."""
    shard: int = 1
    """Devices that hold the weights together, each a part of every tensor (FSDP)."""
    reshard: Reshard = "layer"
    """How long weights that are held together stay gathered (`schema.recipe.Parallel`)."""
    optimizer: OptimizerName = "adamw"
    """Whose states stand beside the trained weights."""
    update_in_backward: bool = False
    """Whether each weight is updated, and its gradient dropped, as soon as the gradient is there."""
    added_up: bool = False
    """Whether the gradients of several devices are added up, in fp32."""
    ema: bool = False
    """Whether a moving average of the trained weights stands beside them, in fp32."""
    background_checkpoints: bool = False
    """Whether a copy of what a checkpoint holds stays in the host's memory."""
    log_probs: bool = False
    """Whether the loss reads the log-probability of each token (pairs of answers), so that logits are made
    again in the backward pass."""
    extra_forwards: float = 0.0
    """Forward passes beside each training pass: a reference that weighs every batch, or each row once."""

    @property
    def tokens(self) -> int:
        """Most tokens of a micro-batch."""
        return self.micro_batch_size * self.sequence_length

    @property
    def accumulation(self) -> int:
        """Micro-batches for each optimiser step."""
        return -(-(self.batch_size or self.micro_batch_size) // self.micro_batch_size)


class EvaluationShape(Record):
    """How answers are generated while a model is judged."""

    batch_size: int
    """Prompts at once."""
    prompt_tokens: int
    """Tokens of the longest prompt."""
    new_tokens: int
    """Most tokens of an answer."""
    rows: int = 0
    """Prompts in all, for time."""
