"""The audit: this machine, containers, driver tools that answer oddly, and hardware in words."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from luthier.errors import UsageError
from luthier.planning import audit as module
from luthier.planning.audit import audit, usable_cores
from luthier.planning.findings import findings, hub_finding
from luthier.planning.hypothetical import parse_hardware, parse_size

GIB = 2**30


def test_this_machine() -> None:
    found = audit()
    assert 1 <= found.processor.cores <= 4096
    assert GIB < found.memory_total < 100 * 1024 * GIB
    assert 0 < found.memory_free <= found.memory_total
    assert found.disk_free is not None
    assert found.versions["python"].startswith(f"{sys.version_info.major}.")
    assert not found.hypothetical


def cgroup(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


def test_a_container_counts_not_its_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroup(
        tmp_path,
        cpu_max="100000 100000",
        memory_max=str(2 * GIB),
        memory_current=str(GIB + GIB // 2),
        memory_stat=f"anon 1\ninactive_file {GIB}\n",
    )
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    found = audit()
    assert found.processor.cores == 1
    assert found.memory_total == 2 * GIB
    # Half a GiB is held for good, the page cache can go.
    assert found.memory_free == 2 * GIB - GIB // 2


@pytest.mark.parametrize(("quota", "cores"), [("50000 100000", 1), ("max 100000", None)])
def test_quotas(quota: str, cores: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    free = usable_cores()
    cgroup(tmp_path, cpu_max=quota)
    assert usable_cores() == (free if cores is None else cores)


def test_nvidia_smi_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lines = (
        "0, NVIDIA H100 80GB HBM3, 81559, 80000, 9.0, 570.10, GPU-aaaa\n"
        "1, Tesla T4, 15360, 15000, 7.5, 570.10, GPU-bbbb\n[N/A], broken"
    )
    monkeypatch.setattr(module, "_run", lambda *command, **_: lines)
    first, second = module._nvidia_smi()
    assert (first.bf16, first.fp8, first.compute_capability) == (True, True, (9, 0))
    assert first.memory_total == 81559 * 2**20
    assert first.bf16_flops == 989e12
    assert not second.bf16
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb")
    assert [gpu.name for gpu in module._nvidia_smi()] == ["Tesla T4"]


def test_a_missing_tool_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert module._run("nvidia-smi") is None
    assert module._nvidia_smi() == []


@pytest.mark.parametrize(
    ("words", "count", "low", "high"),
    [
        ("rtx 4090", 1, 23, 24),
        ("RTX4090", 1, 23, 24),
        ("2xh100", 2, 79, 80),
        ("8 x A100", 8, 79, 80),
        ("a100 40GB", 1, 39, 40),
        ("T4", 1, 14.5, 14.6),
        ("vram 24GB", 1, 23, 24),
        ("24GB", 1, 23, 24),
        ("4x vram 48 GB", 4, 46, 48),
        ("mac:32GB", 1, 21, 22),
    ],
)
def test_accelerators_in_words(words: str, count: int, low: float, high: float) -> None:
    found = parse_hardware(words)
    assert len(found.accelerators) == count
    assert low <= found.accelerators[0].memory_total / GIB <= high
    assert found.accelerators[0].memory_free == found.accelerators[0].memory_total
    assert found.hypothetical
    assert found.disk_free is None


@pytest.mark.parametrize(
    ("words", "gib"),
    [("cpu:16GB", 16), ("cpu", 16), ("raspberry-pi", 6.8), ("Raspberry Pi 8GB", 6.8), ("phone:8GB", 4)],
)
def test_machines_without_accelerator(words: str, gib: float) -> None:
    found = parse_hardware(words)
    assert not found.accelerators
    assert found.memory_total / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize(
    ("words", "hint"),
    [("rtx 4091", "rtx-4090"), ("h1000", "h100"), ("0xh100", "vram"), ("vram", "24GB"), ("3xcpu", "one of")],
)
def test_unknown_hardware(words: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_hardware(words)
    assert hint in (caught.value.hint or "")


def test_sizes() -> None:
    assert parse_size("24GB") == parse_size("24 GiB") == parse_size("24") == 24 * GIB
    assert parse_size("1,5 tb") == int(1.5 * 1024 * GIB)
    with pytest.raises(UsageError):
        parse_size("much")


def test_findings_mend_what_is_wrong() -> None:
    machine = parse_hardware("T4").model_copy(
        update={"hypothetical": False, "versions": {"python": "3.12", "torch": "2.13.0+cpu"}}
    )
    found = {finding.what: finding for finding in findings(machine)}
    assert found["torch build"].level == "bad"
    assert "whl/cu" in (found["torch build"].mend or "")
    assert "no bf16" in (found["GPU 0"].means or "")
    assert found["Training"].level == "bad"
    assert found["Export"].mend is not None
    for finding in found.values():
        assert finding.level != "bad" or finding.mend, finding.what


def test_the_hub_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_finding(0.5).level == "warning"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "switched off" in hub_finding(0.5).found


@pytest.mark.parametrize(
    ("card", "driver", "torch", "words"),
    [
        ("rtx 4090", "470.1", "2.13.0+cu128", "needs driver 525"),
        ("rtx 4090", "550.2", "2.13.0+cu130", "needs driver 580"),
        ("v100", "590.1", "2.13.0+cu130", "no kernels for compute capability 7.0"),
        ("v100", "590.1", "2.13.0+cu126", None),
        ("rtx 4090", "590.1", "2.13.0+cu130", None),
    ],
)
def test_torch_matches_driver_and_card(card: str, driver: str, torch: str, words: str | None) -> None:
    machine = parse_hardware(card)
    gpu = machine.accelerators[0].model_copy(update={"driver": driver})
    real = machine.model_copy(
        update={"accelerators": (gpu,), "hypothetical": False, "versions": {"torch": torch}}
    )
    found = {finding.what: finding for finding in findings(real)}["torch build"]
    if words is None:
        assert found.level == "good"
    else:
        assert (found.level, words in found.found) == ("bad", True)
        assert found.mend
