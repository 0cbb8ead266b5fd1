"""What a row of the grid trains: a model with random weights, the objective of a run, and its batches."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from grid_more import ALL, Further, uneven
from grid_rows import METHODS, Row

from luthier.schema.recipe import Full, Lora, RerankingChoice, SimilarityChoice

if TYPE_CHECKING:
    import torch

YES_NO = (9693, 2152)
"""Ids of two words in Qwen3's vocabulary."""
BRIEF_YES_NO = (5, 6)


def skeleton(row: Row) -> Any:
    """The model of a row that chats, on no device: what can be done before the card is free."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    if not chats(row):
        return None
    given = ALL[row.model]
    config = CONFIG_MAPPING[given["model_type"]](**given)
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    return model


def chats(row: Row) -> bool:
    return not isinstance(row, Further) or row.purpose == "chat"


def build(row: Row, device: torch.device, model: Any) -> Any:
    """The model on the device with its adapters. model: of `skeleton`."""
    if model is None:
        model = _of_purpose(row, device)
    else:
        _fill(model, row, device)
    model.config.use_cache = False
    method = METHODS[row.method]
    if isinstance(method, Full):
        return model.requires_grad_(True)
    _adapt(model, row, method, device)
    return model


def _fill(model: Any, row: Row, device: torch.device) -> None:
    """Random weights layer by layer, packed as a run packs them while it reads.

    Of layers that are alike the first alone is packed, and its bytes stand for those of the others.
    """
    import torch
    from torch import nn

    from luthier.models.packed import PackedLinear, pack_linears

    kind = _packing(row)
    first: Any = None
    for part in [*model.model.layers, model]:
        if kind and first is not None and part is not model:
            for path, layer in first:
                own = part.get_submodule(path)
                made = PackedLinear(
                    layer.in_features, layer.out_features, [one.clone() for one in layer.base_tensors()],
                    layer.kind, layer.base_dtype, None if own.bias is None else torch.zeros_like(layer.bias),
                )  # fmt: skip
                parent, _, name = path.rpartition(".")
                setattr(part.get_submodule(parent), name, made)
        for module in part.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                if weight.is_meta:
                    made = torch.empty(weight.shape, dtype=torch.bfloat16, device=device)
                    made.fill_(1.0) if weight.ndim == 1 else made.normal_(0, 0.02)
                    setattr(module, name, nn.Parameter(made))
        if kind and first is None:
            pack_linears(part, kind)
            first = [(path, one) for path, one in part.named_modules() if isinstance(one, PackedLinear)]
    model.tie_weights()
    with torch.device(device):
        model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config)


def _packing(row: Row) -> str | None:
    return {"qlora": "nf4", "float8": "float8"}.get(row.method)


def _of_purpose(row: Row, device: torch.device) -> Any:
    """A model that reads or sees, as transformers begins it."""
    import torch
    from transformers import (
        CONFIG_MAPPING,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
    )

    assert isinstance(row, Further)
    given = ALL[row.model]
    config = CONFIG_MAPPING[given["model_type"]](**given)
    config.num_labels = {"multi-label": 28, "reranking": 1}.get(row.purpose, 4)
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    classes: dict[str, Any] = {
        "similarity": AutoModel, "yes-no": AutoModelForCausalLM, "vision": AutoModelForImageTextToText,
    }  # fmt: skip
    kind = classes.get(row.purpose, AutoModelForSequenceClassification)
    with torch.device(device):
        return kind.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def _adapt(model: Any, row: Row, method: Lora, device: torch.device) -> None:
    """Adapters beside the layers that the purpose's task would choose, and heads that are trained whole."""
    from luthier.models.classifier import fresh_modules
    from luthier.models.embed import UNUSED
    from luthier.models.lora import adapter_paths, add_lora
    from luthier.models.packed import pack_base
    from luthier.models.vision import below, parts_of

    whole: tuple[str, ...] = ()
    only = None
    purpose = row.purpose if isinstance(row, Further) else "chat"
    if purpose in ("classification", "multi-label", "reranking"):
        whole = fresh_modules(model, ())
    if not chats(row):
        pack_base(model, method, leave=whole, on=device)
    if purpose == "similarity":
        only = frozenset(path for path in adapter_paths(model, method) if not path.startswith(UNUSED))
    if purpose == "vision":
        assert isinstance(row, Further)
        language, towers, projectors = parts_of(model)
        parts = (language, *towers) if row.tower == "adapters" else (language,)
        only = frozenset(
            path
            for path in adapter_paths(model, method)
            if below(path, parts) and not below(path, projectors)
        )
    add_lora(model, method, seed=0, whole=whole, only=only)


def objective_of(row: Row, model: Any) -> Any:
    """What is minimised, as the purpose's task makes it."""
    from luthier.models.heads import head_is_right, head_of
    from luthier.models.rerank import RerankSettings
    from luthier.models.vector_settings import VectorSettings
    from luthier.tasks.causal import causal_objective
    from luthier.tasks.classification import ClassificationObjective
    from luthier.tasks.lists import RankingObjective
    from luthier.tasks.texts import VectorObjective
    from luthier.tasks.vision import VisionObjective

    purpose = row.purpose if isinstance(row, Further) else "chat"
    match purpose:
        case "chat":
            return causal_objective(model, compiled=row.compiled, longest=row.length)
        case "vision":
            head = head_of(model)
            if head is not None and not head_is_right(model, head):
                head = None
            return VisionObjective(head, _soft_id(row))
        case "similarity":
            pooling: Any = ("lasttoken",) if _writes(row) else ("mean",)
            settings = VectorSettings(pooling, normalize=True, max_length=None)
            return VectorObjective(settings, None, SimilarityChoice(loss="in-batch-negatives"), ())
        case "reranking":
            return RankingObjective(
                RerankSettings("classification", "sigmoid", has_head=False), RerankingChoice(loss="binary")
            )
        case "yes-no":
            yes, no = YES_NO if model.config.vocab_size > max(YES_NO) else BRIEF_YES_NO
            scores = RerankSettings("yes-no", "sigmoid", has_head=True, yes=yes, no=no)
            return RankingObjective(scores, RerankingChoice(loss="binary"))
        case _:
            return ClassificationObjective(multi=purpose == "multi-label")


def _writes(row: Row) -> bool:
    return "qwen" in str(ALL[row.model]["model_type"])


def _soft_id(row: Row) -> int:
    given = ALL[row.model]
    return int(given.get("image_token_id") or given["image_token_index"])


def batches_of(row: Row, words: int) -> list[Any]:
    """The micro-batches of one step, of all devices, in the host's memory as a run makes them.

    words: of the vocabulary.
    """
    purpose = row.purpose if isinstance(row, Further) else "chat"
    if purpose == "chat":
        devices = row.devices if isinstance(row, Further) else 1
        return [_chat(row, words, number) for number in range(row.accumulation * devices)]
    assert isinstance(row, Further)
    if purpose == "vision":
        return [_images(row, words) for _ in range(row.accumulation)]
    if purpose == "similarity":
        return [_texts(row, words)]
    return [_labelled(row, words) for _ in range(row.accumulation)]


def _chat(row: Row, words: int, number: int) -> Any:
    """Packed documents of one length, or rows that end at different places; half of each is trained."""
    import torch

    size = (row.micro, row.length)
    each = row.length // row.documents
    places = torch.arange(row.length).expand(size)
    ids = torch.randint(0, words, size, generator=torch.Generator().manual_seed(number))
    labels = torch.where(places % each < each // 2, -100, ids)
    documents = places // each + 1
    if isinstance(row, Further) and row.ragged:
        ends = torch.tensor(uneven(row.length, row.micro, spread=32))[:, None]
        documents = documents.where(places < ends, 0)
        labels = labels.where(places < ends, -100)
    fields = {
        "input_ids": ids, "labels": labels, "position_ids": places % each, "document_ids": documents,
    }  # fmt: skip
    return SimpleNamespace(**{name: values.contiguous() for name, values in fields.items()})


def _padded(row: Further, count: int, words: int) -> Any:
    """Texts side by side, longest first, as the tasks lay them."""
    import torch

    from luthier.tasks.encoded import EncodedBatch

    lengths = row.lengths(count)
    ids = torch.randint(7, words, (count, row.length), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(row.length)[None] < torch.tensor(lengths)[:, None]).long()
    segments = torch.zeros_like(ids) if ALL[row.model].get("type_vocab_size", 0) > 1 else None
    return EncodedBatch(ids * mask, mask, torch.zeros(count, dtype=torch.long), segments)


def _labelled(row: Further, words: int) -> Any:
    """Texts with labels, or queries with candidates."""
    import torch

    from luthier.tasks.lists import ListBatch

    texts = _padded(row, row.micro * row.texts, words)
    if row.purpose == "multi-label":
        return replace(texts, labels=torch.zeros(row.micro, 28))
    if row.purpose == "classification":
        return texts
    size = (row.micro, row.texts)
    worth = torch.zeros(size)
    worth[:, 0] = 1.0
    places = torch.arange(row.micro * row.texts).view(size)
    return ListBatch(texts, worth, places, torch.ones(size, dtype=torch.bool))


def _texts(row: Further, words: int) -> Any:
    """A whole step's queries, positives and negatives, in chunks where they are more than a micro-batch."""
    import torch

    from luthier.sizing.padding import chunks_of
    from luthier.tasks.planned import filled_on
    from luthier.tasks.texts import TextsBatch

    batch = row.micro * row.accumulation
    count = batch * row.texts
    texts = _padded(row, count, words)
    lengths = texts.attention_mask.sum(dim=1).tolist()
    most = row.micro * row.texts
    places = torch.arange(count).view(row.texts, batch)
    return TextsBatch(
        texts, places[0], places[1], places[2:].reshape(-1), torch.zeros(batch),
        chunks_of(lengths, most, filled=filled_on(torch.device("cuda"))), recompute=count > most, apart=True,
    )  # fmt: skip


def _images(row: Further, words: int) -> Any:
    """Rows that begin with an image; half of what follows is trained."""
    import torch

    from luthier.tasks.vision import VisionBatch

    size, soft = (row.micro, row.length), _soft_id(row)
    ids = torch.randint(7, min(words, 49000), size, generator=torch.Generator().manual_seed(0))
    ids[:, 1 : 1 + row.image_tokens] = soft
    places = torch.arange(row.length).expand(size)
    labels = torch.where(places < max(row.length // 2, 1 + row.image_tokens), -100, ids)
    pixels = tuple(_pixels(row) for _ in range(row.micro))
    documents = torch.ones(size, dtype=torch.long)
    return VisionBatch(ids, labels, places.contiguous(), documents, pixels)


def _pixels(row: Further) -> dict[str, Any]:
    """One image as the family's processor gives it. Not of zeros: SmolVLM takes such for no image."""
    import torch

    given = ALL[row.model]
    side = row.image
    if given["model_type"] == "qwen2_5_vl":
        vision = given["vision_config"]
        across = side // vision["patch_size"]
        width = 3 * vision["patch_size"] ** 2 * vision["temporal_patch_size"]
        grid = torch.tensor([[1, across, across]])
        return {"pixel_values": torch.rand(across * across, width), "image_grid_thw": grid}
    if given["model_type"] == "gemma3":
        return {"pixel_values": torch.rand(1, 3, side, side)}
    seen = torch.ones(1, 1, side, side, dtype=torch.long)
    return {"pixel_values": torch.rand(1, 1, 3, side, side), "pixel_attention_mask": seen}
