"""How many tokens an image becomes, and which, for each family of models that see. No torch.

The layouts are those of transformers' processors, from the same settings files: an image part of a chat
template becomes a marker, and the marker as many soft tokens as the image has places in the sequence.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import DataError, FileProblem, RecipeError, Unsupported

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
IDEFICS = ("idefics3", "smolvlm")
GEMMA = ("gemma3",)
FAMILIES = (*QWEN, *GEMMA, *IDEFICS)
"""Model types whose images are laid out here, as `catalog.trains.SEEING` names them."""
MOST_SIDE = 4_096
"""Idefics3 makes no side of an image longer."""
MOST_RATIO = 200
"""Qwen refuses images that are more than so many times as long as wide."""


class ImageTokens(Protocol):
    """How one family writes an image."""

    @property
    def marker(self) -> str:
        """What the chat template writes for an image part."""

    @property
    def soft(self) -> str:
        """The token whose places are filled with what the vision tower gives."""

    @property
    def around(self) -> tuple[str, ...]:
        """Further tokens that only images bring."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the model's image processor is told beside its own settings."""

    def text(self, width: int, height: int) -> str:
        """What stands in the text for an image of that size, in place of the marker."""

    def patches(self, width: int, height: int) -> int:
        """Patches that the vision tower reads for it."""


@dataclass(frozen=True)
class QwenImages:
    """Qwen2-VL to Qwen3-VL: an image keeps its shape, one token for each square of merged patches."""

    patch: int
    merge: int
    least: int
    most: int
    marker: str = "<|image_pad|>"
    soft: str = "<|image_pad|>"
    around: tuple[str, ...] = ("<|vision_start|>", "<|vision_end|>")

    @property
    def settings(self) -> dict[str, Any]:
        return {"size": {"shortest_edge": self.least, "longest_edge": self.most}}

    def patches(self, width: int, height: int) -> int:
        if max(width, height) > MOST_RATIO * min(width, height):
            raise DataError(
                f"an image of {width} x {height} pixels is too long: this model reads up to "
                f"{MOST_RATIO} times as long as wide",
                hint="cut it, or leave the row out",
            )
        step = self.patch * self.merge
        tall, wide = round(height / step) * step, round(width / step) * step
        if tall * wide > self.most:
            shrunk = math.sqrt(height * width / self.most)
            tall = max(step, math.floor(height / shrunk / step) * step)
            wide = max(step, math.floor(width / shrunk / step) * step)
        elif tall * wide < self.least:
            grown = math.sqrt(self.least / (height * width))
            tall, wide = math.ceil(height * grown / step) * step, math.ceil(width * grown / step) * step
        return (tall // self.patch) * (wide // self.patch)

    def text(self, width: int, height: int) -> str:
        return self.soft * (self.patches(width, height) // self.merge**2)


@dataclass(frozen=True)
class GemmaImages:
    """Gemma 3: every image is one square of the same number of tokens."""

    tokens: int
    per_image: int
    marker: str = "<start_of_image>"
    soft: str = "<image_soft_token>"
    end: str = "<end_of_image>"

    @property
    def around(self) -> tuple[str, ...]:
        return self.marker, self.end

    @property
    def settings(self) -> dict[str, Any]:
        return {"do_pan_and_scan": False}

    def patches(self, width: int, height: int) -> int:
        del width, height
        return self.per_image

    def text(self, width: int, height: int) -> str:
        del width, height
        return f"\n\n{self.marker}{self.soft * self.tokens}{self.end}\n\n"


@dataclass(frozen=True)
class IdeficsImages:
    """Idefics3 and SmolVLM: an image is cut into squares, and shown once more as a whole."""

    tokens: int
    """Of each square."""
    side: int
    """Pixels of a square."""
    longest: int
    """Pixels that the longer side is brought to before the cut."""
    splits: bool
    per_square: int
    marker: str = "<image>"
    soft: str = "<image>"
    fake: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    @property
    def around(self) -> tuple[str, ...]:
        return self.fake, self.whole

    @property
    def settings(self) -> dict[str, Any]:
        return {"size": {"longest_edge": self.longest}}

    def squares(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the cut; 0, 0 for an image that stays whole."""
        if not self.splits:
            return 0, 0
        ratio, most = width / height, self.longest
        if width >= height:
            wide, tall = most, int(most / ratio)
            tall += tall % 2
        else:
            tall, wide = most, int(most * ratio)
            wide += wide % 2
        wide, tall = max(wide, 1), max(tall, 1)
        ratio = wide / tall
        if wide >= tall and wide > MOST_SIDE:
            wide, tall = MOST_SIDE, max(1, int(MOST_SIDE / ratio))
        elif tall > wide and tall > MOST_SIDE:
            tall, wide = MOST_SIDE, max(1, int(MOST_SIDE * ratio))
        # Then to whole squares, the longer side first.
        ratio, side = wide / tall, self.side
        if wide >= tall:
            wide = math.ceil(wide / side) * side
            tall = math.ceil(int(wide / ratio) / side) * side
        else:
            tall = math.ceil(tall / side) * side
            wide = math.ceil(int(tall * ratio) / side) * side
        if tall <= side and wide <= side:
            return 0, 0
        return (tall - side) // side + 1, (wide - side) // side + 1

    def patches(self, width: int, height: int) -> int:
        rows, columns = self.squares(width, height)
        return (rows * columns + 1) * self.per_square

    def text(self, width: int, height: int) -> str:
        rows, columns = self.squares(width, height)
        square = self.soft * self.tokens
        whole = f"{self.fake}{self.whole}{square}{self.fake}"
        if not rows:
            return whole
        lines = [
            "".join(f"{self.fake}<row_{row + 1}_col_{column + 1}>{square}" for column in range(columns))
            for row in range(rows)
        ]
        return "".join(f"{line}\n" for line in lines) + "\n" + whole


def sees(directory: Path) -> bool:
    """Whether a saved model is one whose images are laid out here."""
    return _json(directory / "config.json").get("model_type") in FAMILIES


def image_tokens(directory: Path, *, max_pixels: int | None = None) -> ImageTokens:
    """How a saved model writes images, from its own settings.

    max_pixels: what larger images are made smaller to. Errors: Unsupported for a model that does not see
    or whose images are not laid out here, FileProblem for missing settings, RecipeError where max_pixels
    has no effect.
    """
    config = _json(directory / "config.json")
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        why = "has its own way with images" if "vision_config" in config else "reads text alone"
        raise Unsupported(
            f"vision: {kind} {why}",
            file=directory,
            hint=f"models that are tuned on images: {', '.join(FAMILIES)}; or leave the section vision out",
        )
    settings = _settings(directory)
    if kind in QWEN:
        return _qwen(settings, max_pixels)
    return _gemma(config, max_pixels) if kind in GEMMA else _idefics(config, settings, max_pixels)


def _qwen(settings: dict[str, Any], most: int | None) -> QwenImages:
    size = settings.get("size") or {}
    least = settings.get("min_pixels") or size.get("shortest_edge") or 56 * 56
    own = settings.get("max_pixels") or size.get("longest_edge") or 28 * 28 * 1280
    patch, merge = int(settings.get("patch_size") or 14), int(settings.get("merge_size") or 2)
    if most is not None and most < (patch * merge) ** 2:
        raise RecipeError(
            f"vision.max_pixels: {most} is less than the {(patch * merge) ** 2} pixels of one token",
            hint="64 tokens an image would be " + str(64 * (patch * merge) ** 2),
        )
    most = int(own if most is None else min(most, own))
    return QwenImages(patch, merge, min(int(least), most), most)


def _gemma(config: dict[str, Any], most: int | None) -> GemmaImages:
    tokens, vision = int(config.get("mm_tokens_per_image") or 256), config.get("vision_config") or {}
    if most is not None:
        raise RecipeError(
            f"vision.max_pixels has no effect on gemma3: every image is {tokens} tokens", hint="leave it out"
        )
    side = int(vision.get("image_size") or 896) // int(vision.get("patch_size") or 14)
    return GemmaImages(tokens, side * side)


def _idefics(config: dict[str, Any], settings: dict[str, Any], most: int | None) -> IdeficsImages:
    vision = config.get("vision_config") or {}
    patches = (int(vision.get("image_size") or 224) // int(vision.get("patch_size") or 32)) ** 2
    tokens = patches // int(config.get("scale_factor") or 2) ** 2
    side = int((settings.get("max_image_size") or {}).get("longest_edge") or 364)
    longest = int((settings.get("size") or {}).get("longest_edge") or 4 * 364)
    if most is not None:
        longest = min(longest, max(1, math.isqrt(most) // side) * side)
    splits = settings.get("do_image_splitting")
    return IdeficsImages(tokens, side, longest, splits is None or bool(splits), patches)


def _settings(directory: Path) -> dict[str, Any]:
    """Settings of the image processor, from either of the files that they are saved in."""
    inside = _json(directory / "processor_config.json").get("image_processor")
    found = _json(directory / "preprocessor_config.json") or inside
    if not isinstance(found, dict):
        raise FileProblem(
            "there is no preprocessor_config.json: how images are to be read is not known",
            file=directory,
            hint="download the whole model again: luthier get",
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise FileProblem(f"cannot be read as JSON ({error})", file=path) from error
    return found if isinstance(found, dict) else {}
