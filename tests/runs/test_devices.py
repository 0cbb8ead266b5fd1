"""A device by name, the one with most room, and what else would fit."""

import pytest

from llamacpp.conftest import speaking
from luthier.errors import DoesNotFit, UsageError
from luthier.llamacpp.runtime import ServerSettings
from luthier.planning.hypothetical import parse_hardware
from luthier.runs.devices import listed, on_device, pick, places, plan_on
from luthier.schema.hardware import Hardware

GIB = 2**30


def machine(*free: float) -> Hardware:
    """GPUs with so much memory free, in GiB, and the CPU that words describe."""
    whole = parse_hardware(f"{len(free)}x24GB")
    gpus = [
        gpu.model_copy(update={"memory_free": int(gib * GIB)})
        for gpu, gib in zip(whole.accelerators, free, strict=True)
    ]
    return whole.model_copy(update={"accelerators": tuple(gpus)})


def test_the_one_with_most_room_is_taken_unless_another_is_named() -> None:
    found = machine(2, 20, 8)
    assert [one.name for one in places(found)] == ["gpu:0", "gpu:1", "gpu:2", "cpu"]
    assert pick(found).name == "gpu:1"
    assert pick(found, "gpu").name == "gpu:1"
    assert pick(found, "gpu:2").free == 8 * GIB
    assert pick(found, "cpu").index is None
    assert pick(parse_hardware("cpu:16GB")).name == "cpu"
    assert "gpu:2 (" in listed(places(found))
    assert "8.00 GiB of" in listed(places(found))


def test_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="no device 'gpu:3'") as error:
        pick(machine(2, 20), "gpu:3")
    assert "gpu:1 (" in str(error.value.hint)
    assert "cpu (" in str(error.value.hint)
    with pytest.raises(UsageError):
        pick(parse_hardware("cpu:16GB"), "gpu")


def test_what_does_not_fit_names_devices_that_have_room(tmp_path) -> None:
    file = speaking(tmp_path / "m.gguf")
    found = machine(0.0001, 20)
    with pytest.raises(DoesNotFit) as error:
        plan_on(found, pick(found, "gpu:0"), file, context=None, slots=1, trained=None)
    assert "or --device gpu:1" in str(error.value.hint)
    plan = plan_on(found, pick(found), file, context=None, slots=1, trained=None)
    assert plan.free == 20 * GIB


def test_a_server_keeps_to_its_device() -> None:
    found = machine(2, 20)
    assert on_device(ServerSettings(), pick(found, "cpu")).gpu_layers == 0
    kept = on_device(ServerSettings(), pick(found, "gpu:1"))
    assert kept.gpu == 1
    assert kept.gpu_layers == -1
