"""One vector a text: load an encoder or a decoder as an embedder, pool its states, encode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from luthier.errors import FileProblem
from luthier.models.load import DTYPES, check_model_directory, demand_all, explained, quiet
from luthier.models.vector_settings import DenseSettings, Pooling, VectorSettings
from luthier.schema.protocols import Progress
from luthier.schema.recipe import Dtype
from luthier.schema.rows import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

Inputs = dict[str, Tensor]
"""input_ids, attention_mask and, where the model has segments, token_type_ids, all [rows, length]."""
Batches = Callable[[Sequence[str]], Iterable[tuple[Sequence[int], Inputs]]]
"""Texts to padded batches on the model's device, each with the places of its texts."""

UNUSED = ("pooler.",)
"""Weights of an encoder that no vector comes from; files may lack them."""


def load_backbone(
    directory: Path,
    *,
    dtype: Dtype,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """The model in that folder without any head: its last states are what vectors are made of.

    Every weight that vectors come from must be in the files. Code in the folder runs only with
    trust_remote_code.
    """
    settings = check_model_directory(directory)
    with quiet():
        from transformers import AutoModel

        try:
            model, report = AutoModel.from_pretrained(
                directory,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise explained(error, directory, settings, trust_remote_code) from error
    demand_all((key for key in report["missing_keys"] if not key.startswith(UNUSED)), directory)
    if getattr(model.config, "is_encoder_decoder", False):
        raise FileProblem(
            f"{model.config.model_type} writes text from text: it has no single stack to take vectors from",
            file=directory,
            hint="choose an encoder or a decoder",
        )
    return model.to(device).eval()


class DenseLayers(nn.Module):
    """Linear layers between pooling and the vector, as saved; [rows, in] to [rows, out]."""

    def __init__(self, layers: Sequence[DenseSettings], directory: Path) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.activations = [layer.activation for layer in layers]
        for layer in layers:
            module = nn.Linear(layer.inputs, layer.outputs, bias=layer.bias)
            module.load_state_dict(_dense_weights(directory / layer.folder))
            self.layers.append(module.requires_grad_(False))

    def forward(self, vectors: Tensor) -> Tensor:
        for layer, activation in zip(self.layers, self.activations, strict=True):
            vectors = layer(vectors)
            if activation == "tanh":
                vectors = vectors.tanh()
        return vectors


def _dense_weights(folder: Path) -> dict[str, Tensor]:
    safe, plain = folder / "model.safetensors", folder / "pytorch_model.bin"
    if safe.is_file():
        found = load_file(safe)
    elif plain.is_file():
        found = torch.load(plain, weights_only=True)
    else:
        raise FileProblem("the weights of a dense layer are missing", file=folder)
    return {name.removeprefix("linear."): tensor.float() for name, tensor in found.items()}


def pool(states: Tensor, mask: Tensor, mode: Pooling) -> Tensor:
    """States [rows, length, width] and mask [rows, length] (1 for tokens) to fp32 [rows, width].

    The first and the last token are those of the mask, whichever side the padding is on.
    """
    rows = torch.arange(len(states), device=states.device)
    if mode == "cls":
        return states[rows, mask.argmax(dim=1)].float()
    if mode == "lasttoken":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return states[rows, last].float()
    if mode == "max":
        return states.masked_fill(mask[:, :, None] == 0, float("-inf")).amax(dim=1).float()
    weights = mask.float()
    if mode == "weightedmean":
        weights = weights * weights.cumsum(dim=1)
    total = torch.einsum("rlw,rl->rw", states.float(), weights)
    share = weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return total / (share.sqrt() if mode == "mean_sqrt_len_tokens" else share)


def embed(
    model: Any,
    settings: VectorSettings,
    inputs: Inputs,
    *,
    dense: nn.Module | None = None,
    prompt_tokens: int = 0,
) -> Tensor:
    """Vectors of tokenised texts: fp32 [rows, dims], with their graph.

    prompt_tokens: leading tokens that are the prompt's; left out where the model leaves them out.
    """
    extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    states = model(**inputs, **extra).last_hidden_state
    mask = inputs["attention_mask"]
    if prompt_tokens and not settings.include_prompt:
        mask = mask * (mask.cumsum(dim=1) > prompt_tokens)
    vectors = torch.cat([pool(states, mask, mode) for mode in settings.pooling], dim=1)
    if dense is not None:
        vectors = dense(vectors)
    return F.normalize(vectors, dim=-1) if settings.normalize else vectors


class TorchEmbedder:
    """`schema.protocols.Embedder` over a loaded model.

    batches: texts, prompts among them, as the model reads them. role: what texts are when ``encode`` is
    not told. dims: keep only the first dimensions, at unit length again where the model's vectors are.
    """

    def __init__(
        self,
        model: Any,
        settings: VectorSettings,
        batches: Batches,
        *,
        label: str,
        weights_digest: str,
        dense: nn.Module | None = None,
        role: Role | None = None,
        dims: int | None = None,
        scope: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.model, self.settings, self.batches, self.dense = model, settings, batches, dense
        self.label, self.weights_digest = label, weights_digest
        self.role, self.dims, self.scope = role, dims, scope

    @torch.inference_mode()
    def encode(
        self, texts: Sequence[str], *, role: Role | None = None, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """Vectors in the order of texts: [texts, dims] float32. Equal texts are computed once."""
        if not texts:
            return np.empty((0, self.width), dtype=np.float32)
        prompt = self.settings.prompt(role or self.role)
        unique = list(dict.fromkeys(texts))
        found: NDArray[np.float32] = np.empty((len(unique), self.width), dtype=np.float32)
        skipped = self._prompt_tokens(prompt)
        done = 0
        was_training = self.model.training
        self.model.eval()
        try:
            with self.scope():
                for places, inputs in self.batches([prompt + text for text in unique]):
                    vectors = embed(
                        self.model, self.settings, inputs, dense=self.dense, prompt_tokens=skipped
                    )
                    found[list(places)] = self._cut(vectors).cpu().numpy()
                    done += len(places)
                    if progress is not None:
                        progress(done, len(unique))
        finally:
            self.model.train(was_training)
        place = {text: i for i, text in enumerate(unique)}
        return found[[place[text] for text in texts]]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        full = width_of(self.model, self.settings)
        return full if self.dims is None else min(full, self.dims)

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens at the start that are not pooled: the prompt's, where the model leaves them out."""
        if not prompt or self.settings.include_prompt:
            return 0
        (_, inputs), *_ = self.batches([prompt])
        return int(inputs["attention_mask"].sum()) - 1  # the special token at the end comes after the text

    def _cut(self, vectors: Tensor) -> Tensor:
        if self.dims is None:
            return vectors
        vectors = vectors[:, : self.dims]
        return F.normalize(vectors, dim=-1) if self.settings.normalize else vectors


def width_of(model: Any, settings: VectorSettings) -> int:
    """Numbers of a vector of this model."""
    if settings.dense:
        return settings.dense[-1].outputs
    return int(model.config.get_text_config().hidden_size) * len(settings.pooling)


def has_segments(model: Any) -> bool:
    """Whether the model tells the two texts of a pair apart by a table of segments."""
    return int(getattr(model.config, "type_vocab_size", 0) or 0) > 0
