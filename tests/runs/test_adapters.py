"""Which adapters can stand on one base, and what is said of those that cannot."""

import pytest

from luthier.errors import UsageError
from luthier.runs.adapters import adapter_file, one_base
from luthier.runs.directory import RunDirectory
from luthier.runs.served import only_adapter
from luthier.schema.recipe import DataChoice, Full, Lora, ModelChoice, Recipe


def run(root, *, base="a/base", method=None):
    data = DataChoice(train=("/a.jsonl",))
    return RunDirectory.create(
        Recipe(name="x", model=ModelChoice(id=base), method=method or Lora(), data=data), root=root
    )


def test_runs_of_one_base(tmp_path):
    assert one_base([run(tmp_path), run(tmp_path)]).id == "a/base"
    with pytest.raises(UsageError, match="different bases"):
        one_base([run(tmp_path), run(tmp_path, base="b/other")])


def test_a_run_without_adapter(tmp_path):
    with pytest.raises(UsageError, match="full fine-tuning"):
        adapter_file(run(tmp_path, method=Full()), say=print)
    with pytest.raises(UsageError, match="has not written its adapter"):
        adapter_file(run(tmp_path), say=print)


def test_a_request_turns_one_adapter_on_and_the_others_off():
    assert only_adapter(1, 3) == {
        "lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}, {"id": 2, "scale": 0.0}]
    }
    assert only_adapter(None, 2) == {"lora": [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 0.0}]}
    assert only_adapter(None, 0) == {}
