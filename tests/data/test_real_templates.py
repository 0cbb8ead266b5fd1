"""Masks over real chat templates, where a folder with some is named.

LUTHIER_TEST_TEMPLATES names a folder of ``*.jinja`` files (llama.cpp keeps about seventy under
``models/templates``). Their markers are added to the tests' own vocabulary as special tokens, so what
is tested is where turns begin and end, not how a family cuts words.
"""

# ruff: noqa: E501 - templates and chats stand as written
from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from luthier.data.messages import RowProblem
from luthier.data.render import render_row
from luthier.data.tokenizer import FileTokenizer, load_tokenizer
from luthier.schema.protocols import ChatRow, Message

FOLDER = os.environ.get("LUTHIER_TEST_TEMPLATES")
NAMES = sorted(path.name for path in Path(FOLDER).glob("*.jinja")) if FOLDER else []

MARKERS = re.compile(
    r"<\|[^|<>\n'\"{} ]{1,40}\|>|<｜[^｜\n'\"]{1,40}｜>|\[/?[A-Z_]{3,30}\]|</?s>|<(?:start|end)_of_(?:turn|sentence)>"
    r"|<\|turn>|<turn\|>|<\|?tool_(?:call|response)\|?>|<bos>|\[e~\[|\]~b\]|\]~!b\[|</?think>|</?assistant>|<SPECIAL_\d+>"
    r"|<seed:[a-z]+>|<sep>"
)
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<|eot|>", "<end_of_turn>", "<turn|>", "<|return|>", "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_text|>", "[e~[", "<|end|>", "<seed:eos>", "<|role_end|>", "<|end_of_msg|>",
)  # fmt: skip
"""End-of-turn tokens; the first that a template names stands for its generation_config.json."""

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
CHATS: dict[str, list[Message]] = {
    "single": [ASK, ANSWER],
    "multi": [ASK, ANSWER, AGAIN, SECOND],
    "system": [SYSTEM, ASK, ANSWER],
    "tools": [ASK, ANSWER, AGAIN, CALL, RESULT, REPORT],
    "thinking": [
        ASK,
        {**ANSWER, "reasoning_content": "Hmm once."},
        AGAIN,
        {**SECOND, "reasoning_content": "Hmm twice."},
    ],
}
FOREIGN = re.compile(
    r"zebra|quokka|Zeppelins|tall\"|<\|im_start\|>user|\[INST\]|start_header_id|system", re.IGNORECASE
)
"""What never stands in a trained stretch: other turns' words, other turns' headers."""

ODD = {
    # Has no end for a call: what opens the results stands in the call's own part of the template.
    ("CohereForAI-c4ai-command-r-plus-tool_use.jinja", "tools"),
}
EXACT = {
    ("Qwen-Qwen2.5-7B-Instruct.jinja", "tools"): 'Grevy, I believe.<|im_end|><tool_call>\n{"name": "look_up", "arguments": {"animal": "okapi"}}\n</tool_call><|im_end|>Okapis win.<|im_end|>',
    ("Qwen-Qwen3-0.6B.jinja", "multi"): "Grevy, I believe.<|im_end|><think>\n\n</think>\n\nAll of them 🙂 naïvely<|im_end|>",
    ("Qwen-Qwen3-0.6B.jinja", "thinking"): "Grevy, I believe.<|im_end|><think>\nHmm twice.\n</think>\n\nAll of them 🙂 naïvely<|im_end|>",
    ("Qwen3.5-4B.jinja", "thinking"): "Grevy, I believe.<|im_end|>Hmm twice.\n</think>\n\nAll of them 🙂 naïvely<|im_end|>",
    ("meta-llama-Llama-3.1-8B-Instruct.jinja", "tools"): 'Grevy, I believe.<|eot_id|>{"name": "look_up", "parameters": {"animal": "okapi"}}<|eot_id|>Okapis win.<|eot_id|>',
    ("meta-llama-Llama-3.2-3B-Instruct.jinja", "multi"): "Grevy, I believe.<|eot_id|>All of them 🙂 naïvely<|eot_id|>",
    ("meta-llama-Llama-3.3-70B-Instruct.jinja", "system"): "Grevy, I believe.<|eot_id|>",
    ("mistralai-Mistral-Nemo-Instruct-2407.jinja", "tools"): 'Grevy, I believe.</s>[TOOL_CALLS][{"name": "look_up", "arguments": {"animal": "okapi"}, "id": "abcdef123"}]</s>Okapis win.</s>',
    ("Mistral-Small-3.2-24B-Instruct-2506.jinja", "multi"): "Grevy, I believe.</s>All of them 🙂 naïvely</s>",
    ("google-gemma-2-2b-it.jinja", "multi"): "Grevy, I believe.<end_of_turn>All of them 🙂 naïvely<end_of_turn>",
    ("google-gemma-4-31B-it.jinja", "multi"): "Grevy, I believe.<turn|>All of them 🙂 naïvely<turn|>",
    ("HuggingFaceTB-SmolLM3-3B.jinja", "system"): "Grevy, I believe.<|im_end|>",
    ("microsoft-Phi-3.5-mini-instruct.jinja", "multi"): "Grevy, I believe.<|end|>All of them 🙂 naïvely<|end|>",
    ("openai-gpt-oss-120b.jinja", "multi"): "<|channel|>final<|message|>Grevy, I believe.<|end|><|channel|>final<|message|>All of them 🙂 naïvely<|return|>",
    ("openai-gpt-oss-120b.jinja", "tools"): '<|channel|>final<|message|>Grevy, I believe.<|end|> to=functions.look_up<|channel|>commentary json<|message|>{"animal": "okapi"}<|call|><|channel|>final<|message|>Okapis win.<|return|>',
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "multi"): "Grevy, I believe.<｜end▁of▁sentence｜>All of them 🙂 naïvely<｜end▁of▁sentence｜>",
    ("ibm-granite-granite-4.0.jinja", "system"): "Grevy, I believe.<|end_of_text|>",
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", "tools"): 'Grevy, I believe.<|im_end|><tool_call>\n{"name": "look_up", "arguments": {"animal": "okapi"}}\n</tool_call><|im_end|>Okapis win.<|im_end|>',
}  # fmt: skip


def family(name: str, vocabulary: str, folder: Path) -> FileTokenizer:
    """A model folder with a real template and the tests' vocabulary, its markers added."""
    source = (Path(FOLDER or "") / name).read_text(encoding="utf-8")
    fast = Tokenizer.from_str(vocabulary)
    fast.add_special_tokens([AddedToken(text, special=True) for text in sorted(set(MARKERS.findall(source)))])
    ends = [end for end in ENDS if end in source][:1] or [
        "</s>" if "[INST]" in source or "</s>" in source else "<|endoftext|>"
    ]
    if name.startswith("openai-gpt-oss"):
        ends.append("<|call|>")  # as its generation_config.json says
    (folder / "tokenizer.json").write_text(fast.to_str(), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": ends[0] if not name.startswith("microsoft") else "<|endoftext|>",
            }
        )
    )
    (folder / "generation_config.json").write_text(
        json.dumps(
            {"eos_token_id": [fast.token_to_id(end) for end in ends if fast.token_to_id(end) is not None]}
        )
    )
    return load_tokenizer(folder)


@pytest.mark.skipif(not NAMES, reason="LUTHIER_TEST_TEMPLATES does not name a folder with chat templates")
@pytest.mark.parametrize("name", NAMES)
def test_only_answers_are_trained(name: str, vocabulary: str, tmp_path: Path) -> None:
    tokenizer = family(name, vocabulary, tmp_path)
    rendered = 0
    for kind, messages in CHATS.items():
        try:
            row = render_row(ChatRow(messages, "f", 1, "i", TOOLS if kind == "tools" else None), tokenizer)
        except RowProblem:
            assert (name, kind) not in EXACT
            continue  # the template itself refuses this chat, or writes no tool calls
        rendered += 1
        text = tokenizer.decode(row.ids[row.trained].tolist(), skip_special=False)
        place = 0
        for message in messages:
            if message["role"] == "assistant":
                words = message["content"] or "okapi"
                assert words in text[place:], (kind, text)
                place = text.index(words, place) + len(words)
        assert (name, kind) in ODD or not FOREIGN.search(text), (kind, text)
        if (name, kind) in EXACT:
            assert text == EXACT[name, kind]
    if "firefunction" in name or "tool_use" in name:
        return  # these want tools, or a variable of their own, in every chat
    assert rendered >= 3, "single, multi-turn and at least one more"
