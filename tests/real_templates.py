"""Real chat templates, each with its own or the closest vocabulary that can be had without the Hub.

LUTHIER_TEST_TEMPLATES names what ``python tools/real_vocabularies.py FOLDER`` wrote. What a template's
family adds to the vocabulary (its markers, its end tokens) is added here, as the family's own
configuration does.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from luthier.data.tokenizer import FileTokenizer
from luthier.schema.protocols import Message

FOLDER = os.environ.get("LUTHIER_TEST_TEMPLATES")
"""Folder that ``tools/real_vocabularies.py`` wrote."""


@dataclass(frozen=True)
class Family:
    """Templates by name, their vocabulary, and what their generation_config.json says of the end."""

    pattern: str
    vocabulary: str
    own: bool
    """Whether the vocabulary is the family's own; else the closest that can be had."""
    ends: tuple[str, ...]
    """End tokens; the first is the tokenizer's eos."""


DEEPSEEK = ("<｜end▁of▁sentence｜>",)
IM_END = ("<|im_end|>",)
LLAMA = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
FAMILIES = (
    Family("meta-llama-*", "llama-3.1", True, LLAMA),
    Family("fireworks-ai-llama-3-*", "llama-3.1", True, LLAMA),
    Family("meetkai-functionary-*", "llama-3.1", True, LLAMA),
    Family("NousResearch-Hermes-*", "llama-3.1", True, IM_END),
    Family("deepseek-ai-DeepSeek-R1-Distill-Llama-*", "llama-3.1", True, DEEPSEEK),
    Family("HuggingFaceTB-SmolLM3-*", "llama-3.1", True, IM_END),
    Family("Qwen3.5-*", "qwen3.5", True, ("<|im_end|>", "<|endoftext|>")),
    Family("Qwen*", "qwen3", True, ("<|im_end|>", "<|endoftext|>")),
    Family("MiMo-VL", "qwen3", True, IM_END),
    Family("deepseek-ai-DeepSeek-R1-Distill-Qwen-*", "qwen3", True, DEEPSEEK),
    Family("deepseek-ai-DeepSeek-V*", "deepseek-v3", True, DEEPSEEK),
    Family("llama-cpp-deepseek-r1", "deepseek-v3", True, DEEPSEEK),
    Family("google-gemma-2-*", "gemma-3", False, ("<end_of_turn>", "<eos>")),
    Family("google-gemma-3-*", "gemma-3", True, ("<end_of_turn>", "<eos>")),
    Family("google-gemma-4-*", "gemma-4", True, ("<turn|>", "<eos>")),
    Family("openai-gpt-oss-*", "gpt-oss", True, ("<|return|>", "<|call|>", "<|endoftext|>")),
    Family("mistralai-Mistral-Nemo-*", "mistral-nemo", True, ("</s>",)),
    Family("Mistral-Small-*", "mistral-small", True, ("</s>",)),
    Family("mistralai-Ministral-*", "mistral-small", False, ("</s>",)),
    Family("unsloth-mistral-Devstral-*", "mistral-small", True, ("</s>",)),
    Family("Apertus-*", "mistral-nemo", False, ("<|assistant_end|>", "</s>")),
    Family("unsloth-Apriel-*", "mistral-small", False, ("</s>",)),
    Family("Apriel-*", "mistral-small", False, ("<|end|>",)),
    Family("NVIDIA-Nemotron-Nano-v2", "mistral-small", False, ("<SPECIAL_12>",)),
    Family("NVIDIA-Nemotron-3-*", "mistral-small", False, IM_END),
    Family("microsoft-Phi-3.5-*", "phi-3", True, ("<|endoftext|>", "<|end|>")),
    Family("CohereForAI-c4ai-command-r-plus-*", "command-r", True, ("<|END_OF_TURN_TOKEN|>",)),
    Family("Cohere*", "command-r", False, ("<|END_OF_TURN_TOKEN|>",)),
    Family("ibm-granite-granite-3*", "starcoder", True, ("<|end_of_text|>",)),
    Family("ibm-granite-*", "gpt-oss", False, ("<|end_of_text|>",)),
    Family("GLM-*", "qwen3", False, ("<|endoftext|>", "<|user|>", "<|observation|>")),
    Family("GigaChat3*", "deepseek-v3", False, ("</s>", "<|message_sep|>")),
    Family("Bielik-*", "llama-3.1", False, IM_END),
    Family("ByteDance-Seed-*", "qwen3", False, ("<seed:eos>",)),
    Family("Kimi-K3", "qwen3", False, ("<|end_of_msg|>",)),
    Family("*Kimi-K2*", "qwen3", False, IM_END),
    Family("LFM2*", "llama-3.1", False, IM_END),
    Family("MiniMax-M1", "gpt-oss", False, ("<end_of_sentence>",)),
    Family("MiniMax-M*", "gpt-oss", False, ("[e~[",)),
    Family("Reka-*", "gpt-oss", False, ("<sep>",)),
    Family("Spark*", "qwen3", False, DEEPSEEK),
    Family("StepFun*", "deepseek-v3", False, IM_END),
    Family("inclusionai-ling-*", "qwen3", False, ("<|role_end|>",)),
    Family("llama-cpp-rwkv-world", "gpt-oss", False, ("<|endoftext|>",)),
    Family("muse-glimmer", "gpt-oss", False, ("<|eot|>", "<|eom|>")),
    Family("openbmb-*", "llama-3.1", False, IM_END),
    Family("poolside-*", "qwen3", False, ("</assistant>",)),
    Family("tencent-Hy3", "qwen3", False, ("<｜hy_eos:opensource｜>",)),
    Family("upstage-*", "gpt-oss", False, ("<|end|>", "<|calls|>")),
)

MARKERS = re.compile(
    r"<\|[^|<>\n'\"{} ]{1,40}\|>|<｜[^｜\n'\"{}]{1,40}｜>|\[/?[A-Z_]{3,30}\]|</?s>"
    r"|<(?:start|end)_of_(?:turn|sentence)>|<\|turn>|<turn\|>|<\|?tool_(?:call|response)\|?>|<bos>"
    r"|</?[a-z_]+:opensource>|\[e~\[|\]~b\]|\]~!b\[|</?think>|</?assistant>|<SPECIAL_\d+>|<seed:[a-z]+>|<sep>"
)
"""What families write as single tokens."""


SYSTEM = {"role": "system", "content": "Zeppelins answer briefly."}
ASK = {"role": "user", "content": "Which zebra is the tallest?"}
ANSWER = {"role": "assistant", "content": "Grevy, I believe."}
AGAIN = {"role": "user", "content": "Which quokka smiles?"}
SECOND = {"role": "assistant", "content": "All of them 🙂 naïvely"}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "abcdef123",
            "function": {"name": "look_up", "arguments": {"animal": "okapi"}},
        }
    ],
}
RESULT = {"role": "tool", "content": '{"height": "tall"}', "name": "look_up", "tool_call_id": "abcdef123"}
REPORT = {"role": "assistant", "content": "Okapis win."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Find it",
            "parameters": {
                "type": "object",
                "properties": {"animal": {"type": "string", "description": "Name"}},
                "required": ["animal"],
            },
        },
    }
]
TWICE = {
    **CALL,
    "tool_calls": [
        *CALL["tool_calls"],
        {
            "type": "function",
            "id": "abcdef456",
            "function": {"name": "look_up", "arguments": {"animal": "tapir"}},
        },
    ],
}
LATER = {**RESULT, "content": '{"height": "small"}', "tool_call_id": "abcdef456"}
CHATS: dict[str, list[Message]] = {
    "single": [ASK, ANSWER],
    "multi": [ASK, ANSWER, AGAIN, SECOND],
    "system": [SYSTEM, ASK, ANSWER],
    "tools": [ASK, ANSWER, AGAIN, CALL, RESULT, REPORT],
    "two calls": [ASK, TWICE, RESULT, LATER, REPORT],
    "thinking": [
        ASK,
        {**ANSWER, "reasoning_content": "Hmm once."},
        AGAIN,
        {**SECOND, "reasoning_content": "Hmm twice."},
    ],
}


def names() -> list[str]:
    """Templates that are there, those of one vocabulary together."""
    found = [path.stem for path in (Path(FOLDER) / "templates").glob("*.jinja")] if FOLDER else []
    return sorted(found, key=lambda name: (family_of(name).vocabulary, name))


def family_of(name: str) -> Family:
    """The first entry that a template's name fits."""
    return next(family for family in FAMILIES if fnmatchcase(name, family.pattern))


@lru_cache(maxsize=1)
def _vocabulary(name: str) -> str:
    return (Path(FOLDER or "") / "vocabularies" / name / "tokenizer.json").read_text(encoding="utf-8")


def real_tokenizer(name: str, folder: Path) -> FileTokenizer:
    """The tokenizer of a template's family, its configuration written into folder."""
    assert FOLDER
    family = family_of(name)
    template = (Path(FOLDER) / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    source = Path(FOLDER) / "vocabularies" / family.vocabulary / "tokenizer_config.json"
    fast = Tokenizer.from_str(_vocabulary(family.vocabulary))
    # Hunyuan writes its markers with a suffix that stands in a variable.
    markers = sorted({*MARKERS.findall(template.replace("{}", ":opensource")), *family.ends})
    fast.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in markers])
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    bos = json.loads(source.read_text(encoding="utf-8")).get("bos_token")
    settings = {"bos_token": bos, "eos_token": family.ends[0]}
    ends = [fast.token_to_id(end) for end in family.ends]
    assert None not in ends
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), encoding="utf-8")
    return FileTokenizer(folder, fast, {name: text for name, text in settings.items() if text})
