"""What every task shares: one model from baseline to saved weights, one training loop, one way to resume.

A purpose is one file beside this one. It subclasses `ModelTask` and says how its model is loaded, its
objective, its batches and how base and tuned model are judged; all else is done here.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from luthier.data.chat_template import write_template
from luthier.data.new_tokens import write_new_tokens
from luthier.errors import RecipeError, Unsupported
from luthier.models.adapter_files import save_adapter
from luthier.models.attention import lacking
from luthier.models.experts import router_paths
from luthier.models.float8_training import float8_products
from luthier.models.load import DTYPES, quiet, weight_files, weights_digest
from luthier.models.lora import add_lora
from luthier.models.merge_files import FilesMerge, files_merge, without_weights
from luthier.models.merging import merge_and_compare, probe, write_and_compare
from luthier.models.new_tokens import grow, train_rows
from luthier.models.packed import demand_float8, pack_base, packing_of
from luthier.models.streamed import settle_on_host, stream_layers
from luthier.planning.audit import host_memory
from luthier.planning.levers import eight_bit_products
from luthier.planning.solver import HOST_SHARE
from luthier.schema.protocols import Progress, Splits
from luthier.schema.recipe import Full, Lora, Recipe, without_masters
from luthier.schema.results import EvalResult, ParityCheck, TrainResult
from luthier.tasks.parallel import take_part
from luthier.tasks.warm import start_from_adapter
from luthier.training import checkpoint
from luthier.training.events import Metrics
from luthier.training.layers import layers_of, train_all_but
from luthier.training.loop import Control, fit
from luthier.training.objective import MicroBatch, Objective
from luthier.training.optimizer import put_weights
from luthier.training.selection import selected_checkpoint
from luthier.training.sharding import at_once, divide
from luthier.training.source import BatchSource
from luthier.training.world import ALONE, World

if TYPE_CHECKING:
    from luthier.data.tokenizer import FileTokenizer

Rows = Mapping[str, Sequence[Any]]
"""Test split -> its rows, in the type of the purpose."""
Told = Callable[[str], Progress]
"""From words (``tuned on test``) to something that is told of progress."""

MERGE = "luthier_merge.json"
"""Beside merged weights: how far they are from the model that was trained over a packed base."""

# Besides the weights, what makes a saved model complete; copied as they are, byte for byte.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


class ModelTask(ABC):
    """A resolved recipe and its model, from baseline to merged weights.

    ``judge_base`` -> ``fit`` -> ``judge_tuned`` -> ``save_adapter`` -> ``save_merged`` -> ``free``. In a
    new process ``load_trained(run_directory)`` stands in for ``fit``; ``judge_tuned`` calls it itself.

    recipe: resolved, with a value for everything that training needs. model_directory: a saved model.
    cache: JSON file that remembers digests of weight files, outside the model's folder. divided: the
    weights will be divided over devices: they are read into the host's memory, and `fit` moves them.
    """

    task_type: ClassVar[str] = "CAUSAL_LM"
    """PEFT's name of the kind of model."""
    merges_files: ClassVar[bool] = False
    """Whether the model may be let go for the merge: nothing else is asked of it once that is saved."""

    def __init__(
        self,
        recipe: Recipe,
        model_directory: Path,
        tokenizer: Any,
        *,
        device: torch.device | str = "cpu",
        cache: Path | None = None,
        divided: bool = False,
    ) -> None:
        _demand_resolved(recipe)
        if isinstance(recipe.method, Lora) and recipe.method.base == "float8":
            demand_float8(device)
        if eight_bit_products(recipe):
            demand_float8(device, "method.products")
        self.recipe, self.directory = recipe, model_directory
        self.tokenizer: FileTokenizer = tokenizer
        self.device = torch.device(device)
        self.streams = bool(recipe.training.offload_parameters)
        """Whether the layers' frozen weights wait in the host's memory while the model is used."""
        self.home = torch.device("cpu") if divided or self.streams else self.device
        """Where the weights are read to."""
        self.base_digest = weights_digest(model_directory, cache=cache)
        self.model: Any = None
        self.trained_digest: str | None = None
        """Names the tuned weights once they are in the model."""
        self.merged = False
        self.splits: Splits | None = None
        """All rows of the run with their corpora, where judging needs more than the rows it is handed."""
        self.whole: tuple[str, ...] = ()
        """Modules that are trained with all their weights beside adapters: a fresh head."""
        self.prepare()
        self._load_base()

    # -- what a purpose says -----------------------------------------------------------------

    def prepare(self) -> None:  # noqa: B027 (nothing to look at is a good answer)
        """Look at the recipe before anything is loaded; raise what cannot be."""

    @abstractmethod
    def load_model(self) -> Any:
        """The untouched weights with the purpose's head, on the device, ready to answer."""

    def fresh_modules(self) -> tuple[str, ...]:
        """Paths of modules that adapters leave out and that are trained whole (PEFT: modules_to_save)."""
        return ()

    def adapted_modules(self) -> frozenset[str] | None:
        """Paths of the layers that get an adapter; None where the method's targets say it."""
        return None

    @abstractmethod
    def objective(self) -> Objective:
        """What is minimised, for the loaded model."""

    @abstractmethod
    def source(self, splits: Splits) -> BatchSource:
        """Training batches."""

    @abstractmethod
    def held_out(self, splits: Splits) -> Sequence[MicroBatch]:
        """Validation batches."""

    @abstractmethod
    def judge_base(
        self, splits: Splits, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Each test split judged with the untouched model, or with the floor that stands in for it."""

    @abstractmethod
    def judge_tuned(
        self, run_directory: Path, rows: Rows, *, told: Told, cache_dir: Path | None = None
    ) -> dict[str, EvalResult]:
        """Each test split judged with the trained model."""

    def listening(
        self, splits: Splits, told: Callable[[Metrics], None], world: World
    ) -> Callable[[Metrics], None]:
        """What listens to a training, whose model is loaded, and passes every event on to `told`."""
        del splits, world
        return told

    def before_training(  # noqa: B027
        self, splits: Splits, run_directory: Path, digest: str, on_metrics: Callable[[Metrics], None]
    ) -> None:
        """What must be asked of the weights before they change. digest: of all that training depends on."""

    def after_training(self, splits: Splits, run_directory: Path) -> None:  # noqa: B027
        """What is chosen on the validation rows once the weights are final (thresholds, temperature)."""

    def before_answers(self, run_directory: Path) -> None:  # noqa: B027
        """Take up what ``after_training`` left in the run's folder."""

    def save_extra(self, directory: Path) -> None:  # noqa: B027
        """Files of the purpose beside the merged weights."""

    def check_saved(self, directory: Path, rows: Sequence[Any]) -> ParityCheck | None:
        """Read the saved folder back as others will and hold it against the trained model on some rows.

        None where that is shown in another way (a chat's GGUF files answer in llama.cpp).
        """
        del directory, rows
        return None

    # -- the base ----------------------------------------------------------------------------

    def packs_on_reading(self) -> bool:
        """Whether each weight is packed as soon as it has been read, by the device that it is read to.

        On the way to another device that one packs, layer by layer: a GPU is some hundred times as fast. A
        host that cannot hold the whole model in more bits until then packs by itself.
        """
        if self.home == self.device:
            return True
        stored = sum(file.stat().st_size for file in weight_files(self.directory))
        return self.streams and stored > HOST_SHARE * host_memory()[1]

    def _load_base(self) -> None:
        """The untouched weights, with fresh adapters beside them where the method has these."""
        self.model = None
        self.model = self.load_model()
        self.trained_digest, self.merged = None, False
        self.whole = self.fresh_modules()
        if self.recipe.model.new_tokens:
            grow(self.model, self.tokenizer.new_tokens)
        if isinstance(self.recipe.method, Lora):
            if self.recipe.method.router:
                self.whole += tuple(router_paths(self.model))
            pack_base(self.model, self.recipe.method, leave=self.whole, on=self.device)
            add_lora(
                self.model,
                self.recipe.method,
                seed=self.recipe.seed,
                dtype=DTYPES[self.recipe.method.adapter_dtype],
                whole=self.whole,
                only=self.adapted_modules(),
            )
            if self.recipe.model.new_tokens:
                dtype = DTYPES[self.recipe.method.adapter_dtype]
                train_rows(self.model, list(self.tokenizer.new_tokens), dtype=dtype)
            if self.recipe.method.init_from is not None:
                start_from_adapter(self.model, Path(self.recipe.method.init_from), whole=self.whole)
        if self.streams:
            stream_layers(self.model, layers_of(self.model), self.device)

    def ensure_base(self) -> None:
        """Read the weights again where training or merging has overwritten them."""
        overwritten = isinstance(self.recipe.method, Full) or bool(self.whole)
        if self.model is None or self.merged or (self.trained_digest and overwritten):
            self._load_base()

    # -- training ----------------------------------------------------------------------------

    def fit(
        self,
        splits: Splits,
        run_directory: Path,
        *,
        recipe_digest: str,
        on_metrics: Callable[[Metrics], None],
        control: Control | None = None,
        resume: bool = True,
        world: World = ALONE,
    ) -> TrainResult:
        """Train (see `training.loop.fit`); the selected weights are in the model afterwards.

        recipe_digest: digest of all that the trajectory depends on (recipe and data); the task adds
        that of the base weights. resume: go on from the newest whole checkpoint below run_directory.
        world: the processes that train together; the first alone chooses what follows from the weights.
        """
        if self.trained_digest is not None:
            self._load_base()
        on_metrics = self.listening(splits, on_metrics, world)
        digest = self._checkpoint_digest(recipe_digest)
        if world.first and self.task_type == "CAUSAL_LM":
            for text in lacking(self.model):
                on_metrics({"kind": "note", "text": text})
        self.before_training(splits, run_directory, digest, on_metrics)
        source, held_out = self.source(splits), self.held_out(splits)
        full = isinstance(self.recipe.method, Full)
        if full:
            train_all_but(self.model, self.recipe.training.frozen_layers)
        through = at_once
        if world.sharded:
            masters = not without_masters(self.recipe.training.optimizer)
            through = divide(self.model, world, masters=masters)
        try:
            with torch.no_grad():
                objective = through(self.objective)
            objective, division = take_part(
                self.model, objective, world, self.device, compiled=bool(self.recipe.training.compile)
            )
            with self._products():
                result = fit(
                    self.model,
                    objective,
                    source,
                    held_out,
                    choice=self.recipe.training,
                    seed=self.recipe.seed,
                    directory=run_directory,
                    recipe_digest=digest,
                    device=self.device,
                    on_metrics=on_metrics,
                    control=control,
                    resume=resume,
                    world=world,
                    through=through,
                    division=division,
                )
        finally:
            if full:
                self.model.requires_grad_(False)
        if world.first:  # the others may be on a machine that has no folder of the run
            self._now_trained(run_directory / result.selected_checkpoint)
            self.after_training(splits, run_directory)
        return result

    def _products(self) -> AbstractContextManager[object]:
        """Within the block the model computes in the type that the method says."""
        if eight_bit_products(self.recipe):
            return float8_products(self.model, layers_of(self.model))
        return nullcontext()

    def _checkpoint_digest(self, recipe_digest: str) -> str:
        return hashlib.sha256(f"{self.base_digest}\n{recipe_digest}".encode()).hexdigest()

    def load_trained(self, run_directory: Path) -> None:
        """Put the selected weights of a finished training into the model, unless they are there."""
        if self.trained_digest is not None:
            return
        if self.model is None:
            self._load_base()
        folder = selected_checkpoint(run_directory, self.recipe.training)
        saved = checkpoint.load_weights(folder, average=self.recipe.training.select == "ema")
        full = isinstance(self.recipe.method, Full)
        own = {
            name: weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad or (full and name in saved)
        }
        put_weights(own, saved)
        self._now_trained(folder)
        self.before_answers(run_directory)

    def _now_trained(self, folder: Path) -> None:
        self.model.eval()
        trained = weights_digest(folder)
        if self.recipe.training.select == "ema":
            trained += " average"  # of the same folder's files
        self.trained_digest = hashlib.sha256(f"{self.base_digest}\n{trained}".encode()).hexdigest()

    # -- what is saved -----------------------------------------------------------------------

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
        save_adapter(
            self.model,
            directory,
            base_id=base,
            lora=method,
            revision=self.recipe.model.revision,
            task_type=self.task_type,
            whole=self.whole,
        )
        if self.recipe.model.new_tokens:  # an adapter with rows for tokens is read with these tokens
            self._save_tokenizer(directory)
        return directory

    def _save_tokenizer(self, directory: Path) -> None:
        """The base's tokenizer, template and generation settings, with what the recipe adds to them."""
        for name in TOKENIZER_FILES:
            if (self.directory / name).is_file():
                shutil.copyfile(self.directory / name, directory / name)
        new = bool(self.recipe.model.new_tokens)
        if new:
            write_new_tokens(self.tokenizer, directory)
        if self.recipe.model.chat_template is not None or (new and self.tokenizer.turn_end is not None):
            write_template(self.tokenizer, directory)

    def save_merged(self, directory: Path) -> Path:
        """Write the tuned model as a folder that stands alone.

        Weights in the dtype that they were trained in; tokenizer, template and generation settings
        copied byte for byte from the base. Where the purpose allows it and the base's files name their
        weights as the model does, the model is let go and the merge streamed from file to file; else
        the adapter is merged in memory for good.
        """
        assert self.trained_digest is not None, "load_trained comes first"
        directory.mkdir(parents=True, exist_ok=True)
        settle_on_host(self.model)
        streams = self.merges_files and isinstance(self.recipe.method, Lora) and not self.merged
        streams = streams and not self.recipe.model.trust_remote_code  # its code would have to go along
        streamed = files_merge(self.model, self.directory) if streams else None
        if streamed is not None:
            found = self._merge_files(streamed, directory)
        else:
            found = None if self.merged else merge_and_compare(self.model)
            self.merged = True
            with quiet(), _named(self.model, self.recipe.model.id):
                self.model.save_pretrained(directory)
        if found is not None:
            (directory / MERGE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        self._save_tokenizer(directory)
        self.save_extra(directory)
        for file in directory.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
        return directory

    def _merge_files(self, streamed: FilesMerge, directory: Path) -> dict[str, Any] | None:
        """Write configuration and weights, the model let go in between."""
        packing = packing_of(self.model)
        probed = (probe(self.model), without_weights(self.model)) if packing else None
        with _named(self.model, self.recipe.model.id):
            config = self.model.config
            config.architectures, config.dtype = [type(self.model).__name__], streamed.dtype
            config.save_pretrained(directory)
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(directory)
        self.free()
        return write_and_compare(streamed, directory, packing, probed, self.device)

    def free(self) -> None:
        """Let the model go; `load_trained` brings it back."""
        self.model = None
        self.trained_digest = None
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
