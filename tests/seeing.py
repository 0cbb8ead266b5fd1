"""Tiny random models of every family that is tuned on images, with image processors and templates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for p in m['content'] %}{% if p['type'] == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] | trim }}"
    "{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
SMOL_TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
SPECIAL = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
             "<|image_pad|>", "<|video_pad|>"],
    "gemma": ["<pad>", "<bos>", "<end_of_turn>", "<start_of_turn>", "<start_of_image>", "<end_of_image>",
              "<image_soft_token>"],
    "smol": ["<|endoftext|>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>",
             "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4))],
}  # fmt: skip
TEMPLATES = {"qwen": QWEN_TEMPLATE, "gemma": GEMMA_TEMPLATE, "smol": SMOL_TEMPLATE}
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "idefics3", "smolvlm")
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}


def kind_of(family: str) -> str:
    return "qwen" if family.startswith("qwen") else "gemma" if family == "gemma3" else "smol"


def save_seeing_model(folder: Path, family: str, *, seed: int = 5, depth: int = 2) -> Path:
    """A model that sees of a few ten thousand weights, saved as Hugging Face does. depth: of the tower."""
    import torch
    import transformers

    kind = kind_of(family)
    folder.mkdir(parents=True, exist_ok=True)
    size = _tokenizer(folder, kind)
    config = _config(family, size)
    for name in ("depth", "num_hidden_layers"):
        if hasattr(config.vision_config, name):
            setattr(config.vision_config, name, depth)
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(family)))
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    model.save_pretrained(folder)
    return folder


def _tokenizer(folder: Path, kind: str) -> int:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=SPECIAL[kind],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(
        [f"the square is {name} user assistant What colour?" for name in COLOURS], trainer
    )
    words.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[kind][2],
        "pad_token": SPECIAL[kind][0],
        "model_max_length": 512,
        "chat_template": TEMPLATES[kind],
        **({"bos_token": "<bos>"} if kind == "gemma" else {}),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    size: int = words.get_vocab_size()
    return size


def _config(family: str, size: int) -> Any:
    import transformers

    text = {**TEXT, "vocab_size": size}
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
        return transformers.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope, "rope_scaling": rope},
            vision_config={
                "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                "patch_size": 8, "spatial_merge_size": 2, "window_size": 32, "fullatt_block_indexes": [1],
            },
            image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4,
        )  # fmt: skip
    if family == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                "rope_theta": 10_000.0}  # fmt: skip
        return transformers.Qwen3VLConfig(
            text_config={**text, "head_dim": 8, "rope_parameters": rope, "rope_scaling": rope},
            vision_config={
                "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                "patch_size": 8, "spatial_merge_size": 2, "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            },
            image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4,
        )  # fmt: skip
    if family == "qwen3_5":
        rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True,
                "rope_theta": 10_000.0, "partial_rotary_factor": 1.0}  # fmt: skip
        return transformers.Qwen3_5Config(
            text_config={
                **text, "head_dim": 8, "rope_parameters": rope, "linear_num_key_heads": 2,
                "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
                "layer_types": ["linear_attention", "full_attention"],
            },
            vision_config={
                "depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
                "patch_size": 8, "spatial_merge_size": 2, "num_position_embeddings": 64,
            },
            image_token_id=5, video_token_id=6, vision_start_token_id=3, vision_end_token_id=4,
        )  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    if family == "gemma3":
        return transformers.Gemma3Config(
            text_config={
                **text, "head_dim": 8, "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            vision_config={**vision, "image_size": 32, "patch_size": 8, "vision_use_head": False},
            mm_tokens_per_image=4, boi_token_index=4, eoi_token_index=5, image_token_index=6,
        )  # fmt: skip
    kind = transformers.Idefics3Config if family == "idefics3" else transformers.SmolVLMConfig
    return kind(
        text_config={**text, "model_type": "llama", "architectures": ["VLlama3ForCausalLM"]},
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        scale_factor=2, image_token_id=4, pad_token_id=0,
    )  # fmt: skip


def _processor(family: str) -> dict[str, Any]:
    kind = kind_of(family)
    common = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    if kind == "qwen":
        return {
            **common, "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2,
            "temporal_patch_size": 2, "size": {"shortest_edge": 256, "longest_edge": 4096},
        }  # fmt: skip
    if kind == "gemma":
        size = {"height": 32, "width": 32}
        return {**common, "image_processor_type": "Gemma3ImageProcessor", "size": size}
    name = "Idefics3ImageProcessor" if family == "idefics3" else "SmolVLMImageProcessor"
    return {
        **common, "image_processor_type": name, "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32}, "do_image_splitting": True,
    }  # fmt: skip


def picture(path: Path, colour: str, *, size: tuple[int, int] = (40, 32), seed: int = 0) -> Path:
    """A picture of one colour with a few specks."""
    from PIL import Image

    draw = random.Random(seed)
    image = Image.new("RGB", size, COLOURS[colour])
    for _ in range(6):
        image.putpixel((draw.randrange(size[0]), draw.randrange(size[1])), (0, 0, 0))
    image.save(path)
    return path


def write_pictures(folder: Path, count: int, *, name: str = "train.jsonl") -> Path:
    """Rows that ask for the colour of a picture: image, question, answer."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        colour = list(COLOURS)[number % len(COLOURS)]
        file = f"images/{Path(name).stem}-{number}.png"
        size = ((40, 32), (24, 48), (64, 16))[number % 3]
        picture(folder / file, colour, size=size, seed=number)
        lines.append(json.dumps({"image": file, "question": "What colour?", "answer": colour}))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name
