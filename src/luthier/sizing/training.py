"""Memory of a training run in closed form: what is held at each phase, part by part.

The tensors are enumerated as the trainer makes them, not fitted. Each formula's parts are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from luthier.errors import UsageError
from luthier.schema.estimate import EvaluationShape, Part, Phase, TrainingShape
from luthier.schema.model import Architecture
from luthier.schema.recipe import Full, Lora, Method, QLora, without_masters
from luthier.sizing.activations import OURS, Kernels, Layer
from luthier.sizing.divided import Gathered, divided
from luthier.sizing.layers import distinct_layers, layer_matrices
from luthier.sizing.loss_chunks import chunk_rows, row_stride
from luthier.sizing.offload import on_device
from luthier.sizing.padding import pieces_of
from luthier.sizing.parameters import (
    ParameterCount,
    count_parameters,
    expert_parameters,
    new_rows,
)
from luthier.sizing.reductions import column_sum_bytes
from luthier.sizing.resident import BYTES, Resident, narrow_gradients, resident
from luthier.sizing.states import update_bytes
from luthier.sizing.vision import tower_memory

MIB = 1 << 20
PARTS = 8
"""Parts of torchtune's loss (0.6, CEWithChunkedOutputLoss)."""
TILE_TOKENS, TILE_WORDS = 4096, 32768
"""Sides of the tile of logits in TRL's loss (1.16, ChunkedLogProbFunction)."""
IN_FLIGHT = 2
"""Layers' inputs on the device while the others are on the host (training.layers, mode offload)."""
CUBLAS_WORKSPACE = {True: 32 * MIB, False: 8_519_680}
"""Bytes of one cuBLAS handle's workspace, on Hopper and after, and before it (ATen's
getChosenWorkspaceSize); the forward and the autograd thread have one each."""


@dataclass(frozen=True, slots=True)
class TrainingMemory:
    """Phases of one step with what is held at the height of each, and the trained parameters."""

    phases: tuple[Phase, ...]
    trainable: int
    total: int

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)


def training_memory(
    arch: Architecture,
    method: Method,
    shape: TrainingShape,
    *,
    dtype: str,
    kernels: Kernels = OURS,
    hopper: bool = False,
    cuda: bool = True,
) -> TrainingMemory:
    """Tensors of one training step by phase, the caching allocator's rounding and the context not counted.

    hopper: whether cuBLAS takes its larger workspace. cuda: False leaves that workspace out.
    Errors: UsageError for a shape of no tokens or beyond the model's positions.
    """
    check_shape(arch, shape)
    if shape.update_in_backward:
        kernels = replace(kernels, updates_in_backward=True)
    if not cuda:
        kernels = replace(kernels, fused_update=False)
    count, gathered = count_parameters(arch), Gathered()
    held = resident(
        arch, count, method, dtype, kernels, shape.optimizer, narrow=narrow_gradients(kernels, shape)
    )
    if shape.offload_parameters:
        held = on_device(held, arch, method, BYTES[dtype])
    if shape.shard > 1:
        held, gathered = divided(held, arch, method, shape, dtype=dtype, kernels=kernels)
    element = 4 if kernels.wide_residual else BYTES[dtype]
    pieces = _pieces(shape) if cuda else [shape]
    steps = [_Step(arch, method, one, kernels, element, count, held, gathered, cuda=cuda) for one in pieces]
    forward, backward = _together(steps, held, element, recomputed=shape.accumulation > 1)
    lasting: dict[Part, int] = {
        "weights": held.weights,
        "adapters": held.adapters,
        "optimizer": held.optimizer + 4 * held.trainable * shape.ema,
        "buffers": shape.tokens * (8 * 8 + 2 * arch.head_dim * element) + _beside_rows(arch, method, element),
        "workspace": (2 * CUBLAS_WORKSPACE[hopper] if cuda else 0) + _casts(arch, method, shape.tokens),
    }

    def phase(name: Literal["forward", "backward", "optimizer"], moments: list[_Moment]) -> Phase:
        highest = max(moments, key=lambda moment: moment.total)
        return Phase(
            name=name,
            parts={
                **lasting,
                "buffers": lasting["buffers"] + highest.gathered,
                "activations": round(highest.activations),
                "gradients": round(highest.gradients),
                "logits": round(highest.logits),
                "workspace": lasting["workspace"] + round(highest.workspace),
            },
        )

    total = count.total + (held.trainable if held.adapters else 0)
    phases = (
        Phase(name="load", parts={"weights": held.weights + _longer(arch, count, element)}),
        phase("forward", forward),
        phase("backward", backward),
        phase("optimizer", steps[0].update()),
    )
    return TrainingMemory(phases, held.trainable, total)


def _pieces(shape: TrainingShape) -> list[TrainingShape]:
    """What goes through the model at once, one shape each, as a step's vectors are compared in pieces."""
    found = pieces_of(shape)
    if len(found) == 1:
        return [shape]
    if shape.accumulation > 1:  # one at a time: the highest are longer than those of more texts, or of more
        found = tuple(
            one for place, one in enumerate(found) if one[0] > max((0, *(n for n, _ in found[:place])))
        )
    return [
        shape.model_copy(
            update={
                "micro_batch_size": texts,
                "documents": 1,
                "sequence_length": length,
                "batch_size": texts * shape.accumulation,
            }
        )
        for texts, length in found
    ]


def _together(
    steps: list[_Step], held: Resident, element: int, *, recomputed: bool
) -> tuple[list[_Moment], list[_Moment]]:
    """The moments of both passes over all pieces.

    recomputed: each piece is computed again when its gradient is known, and nothing is left of the others;
    else all stay until the last has run, whose backward pass is the first. From then on a weight's gradient
    waits until that of the first piece is added to it.
    """
    if len(steps) == 1 or recomputed:
        return [m for step in steps for m in step.forward()], [m for step in steps for m in step.backward()]
    waiting = held.gradients if steps[0].divided else held.adapters or held.trainable * element
    forward, backward, before = [], [], 0.0
    for place, step in enumerate(steps):
        forward += [moment.beside(before) for moment in step.forward()]
        if place < len(steps) - 1:
            step.early = max(step.early, waiting)
        backward += [moment.beside(before) for moment in step.backward()]
        before += step.kept
    return forward, backward


def _casts(arch: Architecture, method: Method, tokens: int) -> int:
    """Most bytes of one layer's operands in eight bits, each by rows and by columns, beside those in 16 bits.

    Inputs that are kept in eight bits are smaller than they are counted: what that saves is not measured.
    """
    if not isinstance(method, Full) or method.products is None:
        return 0
    matrices = [one for index, _ in distinct_layers(arch) for one in layer_matrices(arch, index)]
    return max(2 * (one.weights + tokens * (one.inputs + one.outputs)) for one in matrices)


def _beside_rows(arch: Architecture, method: Method, element: int) -> int:
    """Beside trained rows of new tokens: which token is which, and their values before training."""
    tables, numbers = new_rows(arch)
    if not numbers or isinstance(method, Full):
        return 0
    return tables * (4 * arch.vocab_size + numbers * element)


def _longer(arch: Architecture, count: ParameterCount, element: int) -> int:
    """A table that is made longer for new tokens stands there twice for a moment."""
    return max(count.embedding, count.head) * element if arch.new_tokens else 0


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is held at one moment beside what always is. Bytes."""

    activations: float
    gradients: float
    logits: float = 0.0
    workspace: float = 0.0
    gathered: int = 0

    @property
    def total(self) -> float:
        return self.activations + self.gradients + self.logits + self.workspace + self.gathered

    def beside(self, activations: float) -> _Moment:
        """The same moment beside what another piece keeps."""
        return replace(self, activations=self.activations + activations)


class _Step:
    """The moments of one micro-batch at which memory can be highest."""

    def __init__(  # noqa: PLR0917 (private, called once)
        self,
        arch: Architecture,
        method: Method,
        shape: TrainingShape,
        kernels: Kernels,
        element: int,
        count: ParameterCount,
        held: Resident,
        gathered: Gathered,
        *,
        cuda: bool,
    ) -> None:
        self.cuda, self.gathered = cuda, gathered
        self.arch, self.shape, self.kernels, self.element = arch, shape, kernels, element
        self.held, self.tokens = held, shape.tokens
        self.full = isinstance(method, Full)
        documents = shape.micro_batch_size * shape.documents
        span = shape.sequence_length // shape.documents
        inside = 2 if kernels.autocast else element  # products are narrow whatever the weights are
        made = [
            (times, Layer(arch, index, method, kernels, inside, span, documents))
            for index, times in distinct_layers(arch)
        ]
        layers = [(times, layer.memory) for times, layer in made]
        self.first = layers[0][1]
        # What is kept of a checkpointed layer is its input, which some norms keep anyway.
        self.stream = arch.hidden_size * (4 if kernels.autocast and isinstance(method, Full) else element)
        self.keeps_stream = element == 4 or kernels.layers != "plain" or self.stream > arch.hidden_size * 2
        # Of the kinds of layers the one whose backward pass is highest stands for the last: safe, and
        # nearly always so, since every kind recurs near the end.
        self.last = max((memory for _, memory in layers), key=lambda memory: memory.transient + memory.kept)
        h = arch.hidden_size
        outside = 4 * h + h * element * (2 if self.full else 1)  # the final norm and its output
        if arch.layer_norm and not arch.causal:
            outside = h * element * 2 + h  # the norm over the embeddings, and what is dropped of it
        mode = shape.activation_checkpointing
        self.checkpoints = mode != "none" and shape.recomputed_layers != 0
        whole = float(sum(times * memory.kept for times, memory in layers))
        again = whole
        if mode == "full":
            again = float(arch.layers * self.stream)
        elif mode == "offload":
            # A CPU's layers put their inputs aside into the same memory.
            again = float((min(arch.layers, IN_FLIGHT) if cuda else arch.layers) * self.stream)
        elif mode == "selective":
            again = sum(times * layer.selected for times, layer in made)
        self.selected = max(layer.selected for _, layer in made) if mode == "selective" else 0.0
        # A graph that computes the layer again has one state of the MLP more at its height.
        self.again = max(layer.again for _, layer in made) if mode in ("full", "selective") else 0.0
        # Gradients of the MLP's first bias, for which its input and product are gone already.
        self.summed, self.gone = 0, 0
        if self.full and cuda and arch.mlp_bias and not arch.gated_mlp and kernels.layers == "plain":
            self.summed = column_sum_bytes(self.tokens, arch.intermediate_size)
            self.gone = 2 * arch.intermediate_size * element
        share = 1.0
        if shape.recomputed_layers is not None:
            share = min(1.0, shape.recomputed_layers / arch.layers)
        kept = again * share + whole * (1 - share)
        # Layers that keep everything come last, and are gone when those before them run again.
        self.above = self.tokens * whole * (1 - share)
        self.kept = self.tokens * (kept + outside)
        if isinstance(method, Lora):
            # Adapters of experts in the type that they compute in, kept as they are multiplied with.
            self.kept += expert_parameters(arch, method) * inside * (1 if mode == "none" else 1 / arch.layers)
        self.outside = float(self.tokens * outside)
        seen, self.looking = tower_memory(arch, shape, inside)
        self.kept += seen
        self.outside += seen
        self.divided = shape.shard > 1
        self.embedding = 0 if self.divided else count.embedding  # its gradient counts as gathered
        self.head = arch.vocab_size * h if arch.head else 0
        self.last_norm = kernels.layers != "fused"  # compiled layers leave the one after them as it is
        self.trained = self.tokens * shape.trained_share
        self.compared = 12.0 * shape.compared  # cosines, their softmax and the gradient, in fp32
        self.alive = 0.0
        if kernels.keeps_logits and kernels.loss == "logits":
            self.alive = float(self.tokens * arch.vocab_size * element)
        # One 4-bit weight at a time is widened for its product.
        widest = max(arch.intermediate_size, arch.attention_heads * arch.head_dim)
        self.widened = 2 * h * widest if isinstance(method, QLora) else 0
        # Recorded passes leave gradients where they stay from step to step.
        stay = shape.accumulation > 1 or shape.recorded
        self.early = gathered.gradients or (held.gradients if stay else 0)
        wide = kernels.masters and element == 2 and not without_masters(shape.optimizer)
        self.collected = 4 if wide and not narrow_gradients(kernels, shape) else element
        self.updated = update_bytes(
            arch,
            method,
            shape.optimizer,
            wide=BYTES[method.adapter_dtype] if isinstance(method, Lora) else element,
            fused=kernels.fused_update,
        )

    def forward(self) -> list[_Moment]:
        moments = [_Moment(self.kept, self.early, self._loss(), gathered=self.gathered.forward)]
        return [_Moment(self.looking, self.early), *moments] if self.looking else moments

    def backward(self) -> list[_Moment]:
        """The head's gradient, the last layer, the first layer, and (all weights trained) the embedding."""
        last = self.last.transient + (self.last.kept if self.checkpoints else 0)
        stream = self.stream if self.checkpoints else 0
        if self.checkpoints and self.selected:
            last -= min(self.last.kept, self.selected)
        elif self.checkpoints and self.keeps_stream:
            last -= stream
            stream = 0
        if self.checkpoints:
            last += self.again
        below = stream + self.first.kept + self.first.transient + self.again * self.checkpoints
        first = self.tokens * below + self.outside
        finished = max(self.held.gradients, self.gathered.gradients)
        whole, few = self.gathered.last, self.gathered.first
        kept = self.kept - self.above
        moments = [
            _Moment(self.kept, self.early, self._head(), gathered=whole),
            _Moment(
                self.kept + self.tokens * self.last.transient + self.widened,
                self.early + self._head_gradient(), self.alive, gathered=whole,
            ),
            _Moment(
                kept + self.tokens * last + self.widened, self.early + self._head_gradient(), self.alive,
                gathered=whole,
            ),
            _Moment(
                kept + self.tokens * (last - self.gone), self.early + self._head_gradient(), self.alive,
                self.summed, gathered=whole,
            ),
        ]  # fmt: skip
        if not self.full:
            return [*moments, _Moment(first + self.widened, finished, self.alive, gathered=few)]
        embedding, collected = self.embedding * self.element, self.collected
        tied = self.arch.tied_embeddings
        before = max(0, finished - self.embedding * collected) + (embedding if tied else 0)
        return [
            *moments,
            _Moment(first, max(before, self.early + self._head_gradient()), self.alive, gathered=few),
            # A gradient in the model's type beside the fp32 one, or head's and embedding's beside their sum.
            _Moment(
                self.outside, finished + (embedding if tied or collected != self.element else 0), self.alive,
                gathered=few,
            ),
        ]  # fmt: skip

    def update(self) -> list[_Moment]:
        temporary = (self.held.adapters or self.held.weights) if self.kernels.foreach else 0
        return [_Moment(0.0, self.held.gradients + temporary, self.alive, self.updated)]

    def _head_gradient(self) -> float:
        """The head's gradient while the layers run backward."""
        if not self.full or self.divided or self.kernels.updates_in_backward:
            return 0.0
        if self.arch.tied_embeddings:
            return self.head * self.element
        return 0.0 if self.early else self.head * self.collected

    def _loss(self) -> float:
        """Height of the loss in the forward pass."""
        vocab, h, e = self.arch.vocab_size, self.arch.hidden_size, self.element
        if not self.head:
            return self.compared
        if self.kernels.loss == "logits":
            # Logits in the model's type, their fp32 copy and log-probabilities.
            return self.tokens * (vocab * (10 if e == 2 else 12) + h * (e + 4))
        if self.kernels.loss == "fused":
            return self._fused()
        if self.kernels.loss == "tiles":
            tile = min(self.tokens, TILE_TOKENS) * TILE_WORDS * 2
            return float(tile + self.tokens * h * self.stream / h)
        if self.kernels.loss == "parts":
            return self._parts(4 / PARTS)
        if self.shape.log_probs:
            rows, following = self._chunks(fused=self.cuda)
            # logsumexp's temporary is as large as the fp32 logits; the next chunk is made beside the last.
            return self.trained * h * e + vocab * max(rows * 8, rows * 4 + following * (6 if e == 2 else 4))
        if self.cuda and e == 2 and self.kernels.fused_loss:
            # A kernel turns a chunk of 16-bit logits into their gradient; the next takes its place. The
            # head's gradient is added up in fp32 within the product.
            rows, _ = self._chunks(fused=True, trains_weight=self.full)
            found = 2.0 * self.trained * h * e + 4 * self.trained
            return 2 * row_stride(vocab) * rows + found + (self.head * 4 if self.full else 0)
        rows, following = self._chunks(fused=False)
        # fp32 logits with logsumexp's temporary; from the second chunk on beside what the last one left.
        left, made = (4, 8) if e == 4 else (6, 6)
        height = vocab * max(rows * 8, rows * left + following * made) + 2.0 * self.trained * h * e
        return height + (self.head * (4 + e) if self.full else 0)

    def _chunks(self, *, fused: bool, trains_weight: bool = False) -> tuple[float, float]:
        """Rows of the first chunk of logits and of the one after it."""
        rows = min(
            self.trained, float(chunk_rows(self.arch.vocab_size, fused=fused, trains_weight=trains_weight))
        )
        return rows, min(rows, self.trained - rows)

    def _parts(self, fp32: float) -> float:
        """torchtune's loss: all logits in 16 bits, and all log-probabilities in fp32, or (compiled) none.

        fp32: bytes a logit of one part's logits or gradient beside them.
        """
        each = 2 + 2 / PARTS if self.kernels.layers == "compiled" else 6 + fp32
        return self.tokens * (self.arch.vocab_size * each + 2 * self.arch.hidden_size * self.element)

    def _fused(self) -> float:
        """Liger's fused loss: chunks of logits, and the gradient of the hidden states."""
        increments = -(-self.arch.vocab_size // self.arch.hidden_size)
        rows = min(self.tokens, 1 << max(0, (-(-self.tokens // increments) - 1).bit_length()))
        logits = rows * self.arch.vocab_size * self.element
        gradient = self.tokens * (self.arch.hidden_size * self.element + 4)
        return float(logits + gradient + self.element * self.head * self.full)

    def _tiles(self) -> float:
        """TRL's loss in the backward pass: a tile, hidden states picked, their gradient in both types."""
        h, wide = self.arch.hidden_size, 4 if self.stream > 2 * self.arch.hidden_size else self.element
        tile = min(self.tokens, TILE_TOKENS) * TILE_WORDS * 2
        states = self.tokens * h * (wide + 4 + wide) + 32.0 * self.tokens
        return tile + states + (4 + wide) * self.head * self.full

    def _head(self) -> float:
        """Height at the head's gradient, before the last layer."""
        if not self.head:
            return self.compared
        hidden = self.trained * self.arch.hidden_size * self.element
        if self.kernels.loss in ("fused", "tiles"):
            # The last norm's backward pass is in fp32, beside the gradient of its output.
            norm = self.tokens * self.arch.hidden_size * (self.element + (20 if self.last_norm else 0))
            if self.kernels.loss == "tiles":
                return max(self._tiles(), norm)
            return float(norm) + self.element * self.head * self.full
        if self.kernels.loss == "parts":
            # The head's gradient is the sum of those of the parts, one beside it; eager logits are gone.
            return self._parts(6 / PARTS - 2) + 2 * self.element * self.head * self.full
        if self.kernels.loss == "logits":
            # Log-probabilities, the gradient of the loss and that of the softmax, each in fp32.
            numbers = self.arch.vocab_size * 12
            return self.alive + self.tokens * (numbers + self.arch.hidden_size * (self.element + 4))
        if self.shape.log_probs:
            rows, following = self._chunks(fused=self.cuda)
            numbers = 6 if self.element == 2 else 4
            # Hidden states, their gradient, and the chunk's logits made again with what they become.
            height = 2 * hidden + self.arch.vocab_size * numbers * (rows + following)
            return height + (self.head * (4 + self.element) if self.full else 0)
        if self.full and self.kernels.loss == "chunked":
            # The gradient as it was kept, and scaled in the model's type.
            made = self.element if self.kernels.fused_loss or self.element == 4 else 4 + self.element
            return 3 * hidden + self.head * (4 + made)
        return 3 * hidden


def check_shape(arch: Architecture, shape: TrainingShape) -> None:
    """Refuse a shape that cannot be trained. Errors: UsageError."""
    for name in ("micro_batch_size", "sequence_length", "documents"):
        if getattr(shape, name) < 1:
            raise UsageError(f"{name} is {getattr(shape, name)}", hint="it must be at least 1")
    if arch.max_positions is not None and shape.sequence_length > arch.max_positions * shape.documents:
        raise UsageError(
            f"a sequence of {shape.sequence_length:,} tokens is beyond the model's context of "
            f"{arch.max_positions:,}",
            hint=f"set training.sequence_length to at most {arch.max_positions}",
        )
    if not 0 <= shape.trained_share <= 1:
        raise UsageError(f"a share of {shape.trained_share} of the tokens cannot be trained on")


def evaluation_phase(
    arch: Architecture, shape: EvaluationShape, held: Resident, *, dtype: str, cuda: bool
) -> Phase:
    """Generation with a cache, beside weights and adapters."""
    from luthier.sizing.serving import cache_bytes_per_token

    element = BYTES[dtype]
    longest = shape.prompt_tokens + shape.new_tokens
    tokens = shape.batch_size * shape.prompt_tokens
    widest = max(2 * arch.intermediate_size + arch.hidden_size, 4 * arch.hidden_size)
    return Phase(
        name="evaluate",
        parts={
            "weights": held.weights,
            "adapters": held.adapters,
            # The cache grows by copying: one layer stands there twice.
            "buffers": round(
                shape.batch_size * longest * cache_bytes_per_token(arch, element) * (1 + 1 / arch.layers)
            ),
            "activations": tokens * widest * element * 2,
            "logits": shape.batch_size * arch.vocab_size * (4 + element),
            "workspace": CUBLAS_WORKSPACE[False] if cuda else 0,
        },
    )
