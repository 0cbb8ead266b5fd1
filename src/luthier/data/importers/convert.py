"""A foreign configuration into a recipe: which tool's it is, the recipe's text, what was not carried."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.data.importers.automodel import automodel
from luthier.data.importers.axolotl import axolotl
from luthier.data.importers.huggingface import llamafactory, swift, trl
from luthier.data.importers.keys import Keys
from luthier.data.importers.torchtune import torchtune
from luthier.errors import FileProblem, did_you_mean
from luthier.schema.annotated import read_with_lines, write_with_comments
from luthier.schema.data import ImportReport, NotCarried
from luthier.schema.load import recipe_from

TOOLS: dict[str, tuple[str, Callable[[Keys], None]]] = {
    "axolotl": ("axolotl", axolotl),
    "llamafactory": ("LLaMA-Factory", llamafactory),
    "automodel": ("NeMo Automodel", automodel),
    "trl": ("TRL", trl),
    "swift": ("ms-swift", swift),
    "torchtune": ("torchtune", torchtune),
}
_TITLES = ", ".join(title for title, _ in TOOLS.values())
_FACTORY = {"finetuning_type", "stage", "cutoff_len", "template", "lora_rank", "dataset_dir", "do_train"}
_ORDER = ("name", "task", "model", "method", "data", "preference", "training", "seed")


def detect_tool(values: dict[str, Any]) -> str | None:
    """Whose configuration this is, by the key that names the model."""
    model = values.get("model")
    if "base_model" in values:
        return "axolotl"
    if isinstance(model, dict) and "pretrained_model_name_or_path" in model:
        return "automodel"
    if isinstance(model, dict) and "_component_" in model:
        return "torchtune"
    if "model_name_or_path" in values:
        return "llamafactory" if _FACTORY & set(values) else "trl"
    if isinstance(model, str) and "dataset" in values:
        return "swift"
    return None


def convert(path: Path, *, tool: str | None = None) -> tuple[str, ImportReport]:
    """The recipe's text, each value with its origin, and the account of every key.

    tool: a key of TOOLS; told by the file's keys when None. The recipe is checked as any recipe is.
    Raises FileProblem for files that are no such configuration, RecipeError for values that no recipe
    takes, and Unsupported for what Luthier does not train.
    """
    values, lines = read_with_lines(path, missing=f"give a configuration of one of {_TITLES}")
    if not isinstance(values, dict) or not values:
        raise FileProblem("is not a configuration: a mapping of keys is wanted", file=path)
    if tool is not None and tool not in TOOLS:
        near = did_you_mean(tool, TOOLS)
        raise FileProblem(
            f"there is no importer {tool!r}", file=path, hint=near or f"there are {', '.join(TOOLS)}"
        )
    tool = tool or detect_tool(values)
    if tool is None:
        raise FileProblem(
            "cannot tell whose configuration this is: no key names a model",
            file=path,
            hint="axolotl has base_model, LLaMA-Factory and TRL model_name_or_path, NeMo Automodel "
            "model.pretrained_model_name_or_path, torchtune model._component_; or say it: "
            f"--tool {' | '.join(TOOLS)}",
        )
    title, fill = TOOLS[tool]
    keys = Keys(str(path), title, values, lines)
    fill(keys)
    empty = keys.finish()
    sources = keys.recipe.get("data", {}).get("train", [])
    if any(not one.startswith(("hub:", "/", "~", "FILL_IN")) for one in sources):
        keys.notes.append("paths of data stand as they were; a recipe's are relative to its own folder")
    if not keys.recipe.get("model", {}).get("id"):
        raise FileProblem("no model is named", file=path, hint="set it in the configuration first")
    recipe = {name: keys.recipe[name] for name in _ORDER if name in keys.recipe}
    recipe_from(recipe)  # a value that no recipe takes is said here, before anything is written
    report = ImportReport(
        file=str(path),
        tool=title,
        carried={".".join(target): origin for target, origin in keys.origins.items()},
        not_carried=tuple(
            NotCarried(key=one.key, value=_short(one.value), line=one.line, reason=one.reason)
            for one in keys.left
        ),
        same=tuple(keys.same),
        empty=tuple(empty),
        missing=tuple(keys.missing),
        notes=tuple(keys.notes),
    )
    return write_with_comments(recipe, keys.origins, head=_head(report), tail=_tail(report)), report


def _short(value: Any) -> str:
    text = str(value).replace("\n", " ")
    return text if len(text) <= 80 else text[:77] + "..."


def _head(report: ImportReport) -> str:
    lines = [f"Imported from {report.file} ({report.tool}). Behind each value stands where it came from."]
    lines += [f"To fill in: {one}" for one in report.missing]
    lines += [f"Note: {one}" for one in report.notes]
    return "\n".join(lines)


def _tail(report: ImportReport) -> str:
    if not report.not_carried:
        return "\nEvery key was carried over."
    lines = ["", "Not carried over:"]
    lines += [f"  {one.key}: {one.value}  ({one.reason})" for one in report.not_carried]
    return "\n".join(lines)
