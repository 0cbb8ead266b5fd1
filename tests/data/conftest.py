"""A tiny byte-level tokenizer with the special tokens of many families, and templates in their styles."""

# ruff: noqa: E501 - templates and chats stand as written
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from luthier.data.tokenizer import FileTokenizer, load_tokenizer

SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|eom_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "<bos>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|start|>",
    "<|message|>", "<|channel|>", "<|return|>", "<|call|>",
]  # fmt: skip

CHATML = """\
{%- if messages[0].role != 'system' %}<|im_start|>system
Be helpful.<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

# In the style of reasoning models: reasoning of turns before the last question is left out, and the
# last turn gets an empty block where it has none.
THINKING = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{%- set content = message.content %}{% set reasoning = message.reasoning_content or '' %}
{%- if '</think>' in content %}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip() %}
{%- set content = content.split('</think>')[-1].lstrip() %}
{%- endif %}<|im_start|>assistant
{% if loop.index0 > ns.last and (loop.last or reasoning) %}<think>
{{ reasoning }}
</think>

{% endif %}{{ content }}
{%- for call in message.tool_calls or [] %}
<tool_call>
{{ call.function | tojson }}
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + (message.role if message.role != 'tool' else 'ipython') + '<|end_header_id|>\\n\\n' }}
{%- if message.tool_calls %}
{{- '{"name": "' + message.tool_calls[0].function.name + '", "parameters": ' }}
{{- message.tool_calls[0].function.arguments | tojson }}{{- '}' }}
{%- else %}{{- message.content | trim }}{%- endif %}{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# No header for answers, tools before the last question only, roles must alternate.
MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set turns = messages[1:] %}
{%- else %}{% set turns = messages %}{% endif %}
{%- set users = turns | selectattr('role', 'equalto', 'user') | list %}
{%- for message in turns %}
{%- if message.role == 'user' %}
{%- if tools and message == users[-1] %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{{- '[INST] ' }}{% if loop.last and system is defined %}{{ system + '\\n\\n' }}{% endif %}
{{- message.content }}{{ ' [/INST]' }}
{%- elif message.tool_calls %}
{{- '[TOOL_CALLS] [' }}
{%- for call in message.tool_calls %}{{ call.function | tojson }}{% if not loop.last %}, {% endif %}{% endfor %}
{{- ']' + eos_token }}
{%- elif message.role == 'assistant' %}{{- ' ' + message.content | trim + eos_token }}
{%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}
{%- else %}{{ raise_exception('only user and assistant roles are supported') }}{% endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- message.content | trim }}{{ '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Writes an end of text after a finished chat, once.
PHI = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# The prompt opens a reasoning block that finished answers do not show.
OPENED = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|assistant|>' + message.content.split('</think>')[-1] + '<|end|>' }}
{%- else %}{{ '<|user|>' + message.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}"""

# The last answer ends otherwise than earlier ones, and carries a channel that the prompt does not.
CHANNELS = """\
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content }}{{ '<|return|>' if loop.last else '<|end|>' }}
{%- else %}{{ '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Answers have no end of their own: the next header ends them, and nothing ends the last.
HEADERS = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

TEMPLATES = {
    "chatml": (CHATML, "<|endoftext|>", ["<|im_end|>"]),
    "thinking": (THINKING, "<|endoftext|>", ["<|im_end|>", "<|endoftext|>"]),
    "llama3": (LLAMA3, "<|begin_of_text|>", ["<|eot_id|>", "<|eom_id|>"]),
    "mistral": (MISTRAL, "<s>", ["</s>"]),
    "gemma": (GEMMA, "<bos>", ["<end_of_turn>"]),
    "phi": (PHI, None, ["<|endoftext|>", "<|end|>"]),
    "opened": (OPENED, None, ["<|end|>"]),
    "channels": (CHANNELS, None, ["<|return|>"]),
    "headers": (HEADERS, None, ["<|endoftext|>"]),
}
"""Style -> template, bos token, end tokens (the first one is the tokenizer's eos)."""

MakeTokenizer = Callable[..., FileTokenizer]


def _words() -> list[str]:
    text = (Path(__file__).parent / "test_render.py").read_text(encoding="utf-8")
    return [text, "Paris is the capital of France. The weather in Rome is sunny, 21 degrees. " * 4]


@pytest.fixture(scope="session")
def vocabulary() -> str:
    """tokenizer.json of a byte-level BPE of 600 tokens, trained on this folder's own text."""
    fast = Tokenizer(models.BPE())
    # Words with their space, single digits, and line ends apart from what follows them, as in current
    # vocabularies: the header's last line end must not depend on the answer's first letter.
    words = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(_words(), trainer)
    fast.post_processor = processors.ByteLevel(trim_offsets=True)
    return str(fast.to_str())


@pytest.fixture(scope="session")
def make_tokenizer(vocabulary: str, tmp_path_factory: pytest.TempPathFactory) -> MakeTokenizer:
    """Write a model folder in the style of a family and load its tokenizer."""

    def make(style: str | None = "chatml", **config: object) -> FileTokenizer:
        folder = tmp_path_factory.mktemp(style or "none")
        template, bos, ends = TEMPLATES[style] if style else (None, None, ["<|endoftext|>"])
        known = {name: index for index, name in enumerate(SPECIALS)}
        (folder / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
        settings = {"eos_token": ends[0], "pad_token": "<|endoftext|>", "bos_token": bos, **config}
        settings = {key: value for key, value in settings.items() if value is not None}
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings}), encoding="utf-8"
        )
        (folder / "generation_config.json").write_text(
            json.dumps({"eos_token_id": [known[end] for end in ends]}), encoding="utf-8"
        )
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        return load_tokenizer(folder)

    return make
