"""Models that see: loading, their parts by path, and pixels as each family takes them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from luthier.errors import FileProblem, Unsupported
from luthier.models.load import DTYPES, check_model_directory, demand_all, explained, quiet
from luthier.schema.recipe import Dtype

LANGUAGE = ("language_model", "text_model")
TOWERS = ("visual", "vision_tower", "vision_model")
PROJECTORS = ("visual.merger", "visual.deepstack_merger_list", "multi_modal_projector", "connector")
"""Names below the model's body; a projector inside the tower counts as projector alone."""

Pixels = dict[str, Tensor]
"""What the vision tower is given for the images of one row."""


def load_seeing_model(
    directory: Path,
    *,
    dtype: Dtype,
    device: torch.device | str = "cpu",
    attention: Literal["eager", "sdpa"] | None = None,
) -> Any:
    """The model that sees in that folder, ready to answer. Every weight must come from the files.

    Errors: FileProblem, Unsupported, ModelNotFound.
    """
    settings = check_model_directory(directory)
    with quiet():
        from transformers import AutoModelForImageTextToText

        try:
            model, report = AutoModelForImageTextToText.from_pretrained(
                directory,
                dtype=DTYPES[dtype],
                attn_implementation=attention,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:
            raise explained(error, directory, settings, trusted=False) from error
    demand_all(report["missing_keys"], directory)
    if wrong := report.get("mismatched_keys"):
        raise FileProblem(
            f"weights have other shapes than config.json says: {sorted(wrong)[0]}", file=directory
        )
    return model.to(device).eval()


def parts_of(model: Any) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Paths of the language part, of the vision towers, and of what joins them. Errors: Unsupported."""
    known = {name for name, _ in model.named_modules()}
    body = f"{model.base_model_prefix}." if model.base_model is not model else ""

    def there(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(body + name for name in names if body + name in known)

    language, towers, projectors = there(LANGUAGE), there(TOWERS), there(PROJECTORS)
    if len(language) != 1 or not towers or not projectors:
        raise Unsupported(
            f"the parts of {type(model).__name__} are not under names that are known",
            hint="models that are tuned on images: Qwen2-VL to Qwen3-VL, Gemma 3, Idefics3, SmolVLM",
        )
    # One after another where they are a list, which PEFT does not train as one.
    lists = {one: len(model.get_submodule(one)) for one in projectors if one.endswith("_list")}
    apart = [f"{one}.{number}" for one, count in lists.items() for number in range(count)]
    return language[0], towers, tuple(one for one in projectors if one not in lists) + tuple(apart)


def below(path: str, parents: Sequence[str]) -> bool:
    """Whether a path is one of some modules or lies in it."""
    return any(path == one or path.startswith(one + ".") for one in parents)


_PROCESSORS = {
    "qwen": ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
    "gemma3": ("gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil"),
    "idefics3": ("idefics3.image_processing_pil_idefics3", "Idefics3ImageProcessorPil"),
    "smolvlm": ("smolvlm.image_processing_pil_smolvlm", "SmolVLMImageProcessorPil"),
}
"""Model type, or its beginning -> module and class of its processor over Pillow. Named rather than looked up:
before transformers 5.23 `AutoImageProcessor` cannot be had without torchvision."""


def image_processor(directory: Path) -> Any:
    """The model's own image processor, over Pillow. Errors: FileProblem, Unsupported."""
    kind = str(check_model_directory(directory).get("model_type"))
    found = next((one for name, one in _PROCESSORS.items() if kind.startswith(name)), None)
    if found is None:
        raise Unsupported(f"{kind} has no image processor that is known here", file=directory)
    with quiet():
        made = getattr(import_module(f"transformers.models.{found[0]}"), found[1])
        try:
            return made.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise FileProblem(f"the image processor cannot be loaded: {said}", file=directory) from error


def read_pixels(processor: Any, files: Sequence[str], settings: dict[str, Any]) -> Pixels:
    """What the model's own processor makes of the images of one row.

    Errors: FileProblem for an image that cannot be decoded, and one that is gone.
    """
    from PIL import Image

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                # Seen on white: the colours below a transparent ground are not meant to be seen.
                images.append(_opaque(image))
        except (OSError, ValueError, SyntaxError) as error:
            raise FileProblem(f"the image cannot be read: {error}", file=file) from error
    found = processor(images=images, return_tensors="pt", **settings)
    return {
        name: value
        for name, value in found.items()
        if isinstance(value, Tensor) and name in ("pixel_values", "image_grid_thw", "pixel_attention_mask")
    }


def _opaque(image: Any) -> Any:
    from PIL import Image

    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        ground = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, layered).convert("RGB")
    return image.convert("RGB")


def joined(rows: Sequence[Pixels]) -> Pixels:
    """Pixels of the rows of a batch as the model takes them together; empty where no row has an image.

    Patches and grids end to end (Qwen), images end to end (Gemma), or images of each row padded to the row
    with the most of them and to the largest (Idefics).
    """
    held = [row for row in rows if row]
    if not held:
        return {}
    if held[0]["pixel_values"].ndim < 5:
        return {name: torch.cat([row[name] for row in held]) for name in held[0]}
    most = [max(sizes) for sizes in zip(*(row["pixel_values"].shape[1:] for row in held), strict=True)]
    pixels = held[0]["pixel_values"].new_zeros(len(rows), *most)
    mask = torch.zeros(len(rows), most[0], *most[2:], dtype=torch.long, device=pixels.device)
    for place, row in enumerate(rows):
        if row:
            _, count, _, tall, wide = row["pixel_values"].shape
            pixels[place, :count, :, :tall, :wide] = row["pixel_values"][0]
            mask[place, :count, :tall, :wide] = row["pixel_attention_mask"][0]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def token_kinds(model: Any, ids: Tensor, soft_id: int) -> dict[str, Tensor]:
    """Which places hold images, under the name that the model takes it by; empty where it takes none."""
    kind = str(model.config.model_type)
    places = (ids == soft_id).to(torch.long)
    if kind.startswith("qwen"):
        return {"mm_token_type_ids": places.to(torch.int)}
    return {"token_type_ids": places} if kind.startswith("gemma") else {}
