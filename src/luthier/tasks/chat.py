"""Tune a causal language model on conversations: one model from baseline to merged weights.

The base weights are loaded once. The same model answers as the base (adapters off, or before
training), is trained, answers as tuned, and is merged last.
"""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from luthier.errors import RecipeError, Unsupported
from luthier.models.generate import TorchGenerator
from luthier.models.load import DTYPES, load_causal, quiet, weights_digest
from luthier.models.lora import adapters_off, add_lora, merge, save_adapter
from luthier.schema.protocols import Splits, TextTokenizer
from luthier.schema.recipe import Full, Lora, QLora, Recipe
from luthier.schema.results import TrainResult
from luthier.tasks.batches import RowBatches, validation_batches
from luthier.tasks.causal import causal_objective
from luthier.training import checkpoint
from luthier.training.loop import Control, Metrics, fit, selected_checkpoint
from luthier.training.optimizer import put_weights

# Besides the weights, what makes a saved model complete; copied as they are, byte for byte.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class ChatTask:
    """A resolved recipe and its model, from baseline to merged weights.

    ``base_generator()`` -> ``fit(splits, run_directory, ...)`` -> ``tuned_generator(run_directory)``
    -> ``save_adapter(folder)`` -> ``save_merged(folder)`` -> ``free()``. In a new process
    ``load_trained(run_directory)`` stands in for ``fit``; ``tuned_generator`` calls it itself.

    recipe: resolved, with a value for everything that training needs. model_directory: a saved
    model. cache: JSON file that remembers digests of weight files, outside the model's folder.
    """

    def __init__(
        self,
        recipe: Recipe,
        model_directory: Path,
        tokenizer: TextTokenizer,
        *,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
    ) -> None:
        if isinstance(recipe.method, QLora):
            raise Unsupported(
                "QLoRA needs a base quantised to four bits, which is not done yet",
                hint="set method.name: lora, or choose a smaller model",
            )
        _demand_resolved(recipe)
        self.recipe, self.directory, self.tokenizer = recipe, model_directory, tokenizer
        self.device = torch.device(device)
        self.base_digest = weights_digest(model_directory, cache=cache)
        self.model: Any = None
        self._load_base()

    def _load_base(self) -> None:
        """The untouched weights, with fresh adapters beside them where the method has these."""
        choice = self.recipe.model
        assert choice.dtype is not None
        self.model = None
        self.model = load_causal(
            self.directory,
            dtype=choice.dtype,
            device=self.device,
            attention=choice.attention,
            trust_remote_code=choice.trust_remote_code,
        )
        self.trained_digest: str | None = None
        """Names the tuned weights once they are in the model."""
        self.merged = False
        if isinstance(self.recipe.method, Lora):
            add_lora(self.model, self.recipe.method, seed=self.recipe.seed)

    def base_generator(self) -> TorchGenerator:
        """Answers of the untouched model. Weights that were overwritten are read again."""
        if self.merged or (self.trained_digest and isinstance(self.recipe.method, Full)):
            self._load_base()
        return self._generator("base", self.base_digest, lambda: adapters_off(self.model))

    def fit(
        self,
        splits: Splits,
        run_directory: Path,
        *,
        recipe_digest: str,
        on_metrics: Callable[[Metrics], None],
        control: Control | None = None,
        resume: bool = True,
    ) -> TrainResult:
        """Train (see `training.loop.fit`); the selected weights are in the model afterwards.

        recipe_digest: digest of all that the trajectory depends on (recipe and data); the task adds
        that of the base weights. resume: go on from the newest whole checkpoint below run_directory.
        """
        if self.trained_digest is not None:
            self._load_base()
        choice = self.recipe.training
        assert choice.batch_size is not None
        assert choice.micro_batch_size is not None
        assert choice.sequence_length is not None
        source = RowBatches(
            splits.train,
            batch_size=choice.batch_size,
            micro_batch_size=choice.micro_batch_size,
            sequence_length=choice.sequence_length,
            packing=bool(self.recipe.data.packing),
            seed=self.recipe.seed,
            pad_id=self.tokenizer.pad_id,
        )
        held_out = validation_batches(
            splits.validation,
            micro_batch_size=choice.micro_batch_size,
            sequence_length=choice.sequence_length,
            pad_id=self.tokenizer.pad_id,
        )
        full = isinstance(self.recipe.method, Full)
        if full:
            self.model.requires_grad_(True)
        try:
            result = fit(
                self.model,
                causal_objective(self.model),
                source,
                held_out,
                choice=choice,
                seed=self.recipe.seed,
                directory=run_directory,
                recipe_digest=self._checkpoint_digest(recipe_digest),
                device=self.device,
                on_metrics=on_metrics,
                control=control,
                resume=resume,
            )
        finally:
            if full:
                self.model.requires_grad_(False)
        self._now_trained(run_directory / result.selected_checkpoint)
        return result

    def _checkpoint_digest(self, recipe_digest: str) -> str:
        return hashlib.sha256(f"{self.base_digest}\n{recipe_digest}".encode()).hexdigest()

    def load_trained(self, run_directory: Path) -> None:
        """Put the selected weights of a finished training into the model, unless they are there."""
        if self.trained_digest is not None:
            return
        folder = selected_checkpoint(run_directory, self.recipe.training)
        saved = checkpoint.load_weights(folder)
        full = isinstance(self.recipe.method, Full)
        own = {name: weight for name, weight in self.model.named_parameters() if full or weight.requires_grad}
        put_weights(own, saved)
        self._now_trained(folder)

    def _now_trained(self, folder: Path) -> None:
        self.model.eval()
        trained = weights_digest(folder)
        self.trained_digest = hashlib.sha256(f"{self.base_digest}\n{trained}".encode()).hexdigest()

    def tuned_generator(self, run_directory: Path) -> TorchGenerator:
        """Answers of the trained model (merged or with its adapter, which are equal)."""
        self.load_trained(run_directory)
        assert self.trained_digest is not None
        return self._generator("tuned", self.trained_digest, nullcontext)

    def _generator(
        self, label: str, digest: str, scope: Callable[[], AbstractContextManager[None]]
    ) -> TorchGenerator:
        # Answers are kept by this name: the same weights in another type, or asked through another
        # template, may answer otherwise.
        asked = f"{digest}\n{self.recipe.model.dtype}\n{getattr(self.tokenizer, 'digest', '')}"
        return TorchGenerator(
            self.model,
            self.tokenizer,
            label=label,
            weights_digest=hashlib.sha256(asked.encode()).hexdigest(),
            batch_size=self.recipe.evaluation.batch_size,
            scope=scope,
        )

    def save_adapter(self, directory: Path) -> Path:
        """Write the adapter in PEFT's format; raises Unsupported for a full fine-tuning."""
        method = self.recipe.method
        if not isinstance(method, Lora):
            raise Unsupported(
                "a full fine-tuning has no adapter", hint="export.adapter: false, take the merged weights"
            )
        assert self.trained_digest is not None, "load_trained comes first"
        assert not self.merged, "the adapter is saved before the merged model"
        name = self.recipe.model.id
        # A folder of this machine means nothing elsewhere: only its name is kept.
        base = Path(name).name if Path(name).expanduser().exists() else name
        save_adapter(self.model, directory, base_id=base, lora=method, revision=self.recipe.model.revision)
        return directory

    def save_merged(self, directory: Path) -> Path:
        """Write the tuned model as a folder that stands alone. The adapter is merged in memory for good.

        Weights in the dtype that they were trained in; tokenizer, template and generation settings
        copied byte for byte from the base.
        """
        assert self.trained_digest is not None, "load_trained comes first"
        if not self.merged:
            merge(self.model)
            self.merged = True
        directory.mkdir(parents=True, exist_ok=True)
        with quiet(), _named(self.model, self.recipe.model.id):
            self.model.save_pretrained(directory)
        for name in TOKENIZER_FILES:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, directory / name)
        for file in directory.iterdir():
            file.chmod(0o644)
        return directory

    def free(self) -> None:
        """Let the model go."""
        self.model = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _demand_resolved(recipe: Recipe) -> None:
    """Training guesses nothing: every value must stand in the recipe."""
    training = recipe.training
    wanted = {
        "model.dtype": recipe.model.dtype,
        "training.learning_rate": training.learning_rate,
        "training.batch_size": training.batch_size,
        "training.micro_batch_size": training.micro_batch_size,
        "training.sequence_length": training.sequence_length,
        "training.epochs or training.max_steps": training.epochs or training.max_steps,
    }
    if missing := [name for name, value in wanted.items() if value is None]:
        raise RecipeError(
            f"the recipe is not resolved: {', '.join(missing)} has no value",
            hint="let luthier plan derive it, or set it",
        )
    assert recipe.model.dtype in DTYPES


@contextmanager
def _named(model: Any, name: str) -> Iterator[None]:
    """Save the model under its name, not under a path of this machine."""
    before = model.config._name_or_path
    model.config._name_or_path = Path(name).name if Path(name).expanduser().exists() else name
    try:
        yield
    finally:
        model.config._name_or_path = before
