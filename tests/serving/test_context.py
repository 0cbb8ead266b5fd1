"""The context window follows memory, model and training."""

import pytest

from luthier.errors import DoesNotFit, UsageError
from luthier.llamacpp.gguf_file import read_header
from luthier.llamacpp.shape import shape_of_gguf
from luthier.serving.context import plan_context
from luthier.sizing.serving import SERVER_SHARE

GIB = 1 << 30


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from llamacpp.conftest import model

    return model(tmp_path_factory.mktemp("gguf") / "m.gguf", layers=4, heads=8, kv=2)


def test_the_shape_is_the_headers(file):
    shape, header = shape_of_gguf(file), read_header(file)
    assert (shape.layers, shape.hidden_size, shape.attention_heads, shape.kv_heads) == (4, 256, 8, 2)
    assert (shape.head_dim, shape.vocab_size, shape.tied_embeddings) == (32, 64, True)
    assert shape.max_positions == header.of_architecture("context_length") == 512


def test_what_is_asked_for_is_taken_or_refused_with_what_fits(file):
    plan = plan_context(file, free=GIB, where="here", context=300, slots=2)
    assert (plan.context, plan.slots, plan.why) == (300, 2, "asked for")
    # 4 layers, keys and values, 2 heads of 32, fp16, 512 cells (rounded up), 2 slots
    assert plan.cache == 4 * 2 * 2 * 32 * 2 * 512 * 2
    assert plan.longest == plan.model_context == 512
    with pytest.raises(UsageError, match="beyond the model's 512"):
        plan_context(file, free=GIB, where="here", context=513)
    small = int((plan_context(file, free=GIB, where="here", context=256).total + 1000) / SERVER_SHARE)
    with pytest.raises(DoesNotFit) as refused:
        plan_context(file, free=small, where="here", context=512)
    assert refused.value.hint == "--context 256 fits"
    with pytest.raises(DoesNotFit, match="of here may be used"):
        plan_context(file, free=1000, where="here")


def test_what_was_not_asked_for_is_derived_and_said(file):
    whole = plan_context(file, free=GIB, where="here", trained=400)
    assert (whole.context, whole.why) == (512, "all that the model can read")
    small = int((plan_context(file, free=GIB, where="here", context=256).total + 1000) / SERVER_SHARE)
    cut = plan_context(file, free=small, where="here")
    assert cut.context == 256
    assert "would not" in cut.why
