"""`avssl doctor` tells the truth, and how to mend it."""

from __future__ import annotations

import json
import re
import types
from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image
from runs import avssl

from avssl import doctor
from avssl.words import counted


def test_a_working_machine(tmp_path: Path) -> None:
    ended = avssl(tmp_path, "doctor", "--json")
    result = json.loads(ended.stdout)
    found = {f["name"]: f for f in result["findings"]}
    assert ended.code == (0 if result["ready"] else 5)
    assert found["torch"]["state"] == "ok" and found["decode wav"]["state"] == "ok"
    assert re.fullmatch(r"64x48, \d+ samples at 8000 Hz", found["decode mp4 (pictures and sound)"]["value"])
    assert found["decode wav"]["value"] == "8000 samples at 8000 Hz" and found["decode png"]["value"] == "32x24"
    assert re.fullmatch(r"\d+ cores, \d+ threads, [\w ]+", found["cpu"]["value"])
    assert all(f["fix"] for f in result["findings"] if f["state"] == "bad")
    table = avssl(tmp_path, "doctor")
    assert table.stdout.splitlines()[0].split() == ["what", "found", "fix"]
    bad = sum(" BAD " in line for line in table.stdout.splitlines())  # memory may be short now, and was not before
    assert table.last == (counted(bad, "problem") if bad else "ready")


def test_a_missing_package_and_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor.importlib.metadata,
        "requires",
        lambda name: ["no-such-package>=3", "numpy<1", "av>=1", "x; extra == 'y'"],
    )
    found = {f.name: f for f in doctor.versions()}
    assert found["no-such-package"] == doctor.Finding(
        "no-such-package", "bad", "not installed", "pip install 'no-such-package>=3'"
    )
    version = doctor.importlib.metadata.version("numpy")
    assert found["numpy"] == doctor.Finding("numpy", "bad", f"{version}, but <1 is needed", "pip install 'numpy<1'")
    assert found["av"].state == "ok" and "x" not in found


def test_a_decoder_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> str:
        raise OSError("libsndfile is missing")

    monkeypatch.setattr(doctor, "_read_sound", broken)
    found = {f.name: f for f in doctor.decoders()}
    assert found["decode wav"] == doctor.Finding(
        "decode wav", "bad", "OSError: libsndfile is missing", "pip install --force-reinstall av soundfile pillow"
    )
    assert found["decode png"].state == "ok"


def test_little_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "MEMORY", 1e9)
    monkeypatch.setattr(doctor, "DISK", 1e9)
    found = {f.name: f for f in doctor.room(tmp_path)}
    memory, disk = found["memory"], found[f"disk of {tmp_path}"]
    assert (memory.state, memory.fix) == ("bad", "close other programs, or lower data.batch_size and --workers")
    assert (disk.state, disk.fix) == ("bad", "free some space, or give --out a directory on another disk")
    assert re.fullmatch(r"\d+\.\d GiB available", memory.value) and re.fullmatch(r"\d+\.\d GiB free", disk.value)


def test_a_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl.registry import PluginStatus, Registry

    reg = Registry(
        plugins=[
            PluginStatus("bird", "bird", "avssl-bird", "1.0", error="ImportError: no ears"),
            PluginStatus("off", "off", disabled=True),
        ]
    )
    monkeypatch.setattr("avssl.registry.registry", lambda: reg)
    broken, off = doctor.plugins()
    assert broken == doctor.Finding(
        "plugin bird", "bad", "ImportError: no ears", "mend or uninstall avssl-bird 1.0; `--without bird` leaves it out"
    )
    assert off == doctor.Finding("plugin off", "missing", "switched off", "unset AVSSL_DISABLE_PLUGINS")


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError(f"lib{name}.so: cannot open\nshared object file")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    value = "does not import: OSError: libonnx.so: cannot open shared object file"
    assert doctor._imported("onnx", "onnx") == doctor.Finding(
        "onnx", "bad", value, "pip install --force-reinstall onnx"
    )
    assert doctor._package("av", ">=1").fix == "pip install 'av>=1'"


def test_what_cannot_be_written_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, tone: object) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr(doctor, "_write_video", refuse)
    value = "not tried, it cannot be written here: RuntimeError: no encoder"
    assert list(doctor.decoders())[-1] == doctor.Finding("decode mp4 (pictures and sound)", "missing", value)


def test_decoders_that_give_other_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_write_picture", lambda path: Image.new("RGB", (32, 24), (9, 9, 9)).save(path))
    monkeypatch.setattr(doctor, "_write_sound", lambda path, tone: soundfile.write(path, 0 * tone, 8000))
    found = {f.name: f for f in doctor.decoders()}
    fix = "pip install --force-reinstall av soundfile pillow"
    for name, value in (
        ("png", "ValueError: the pixels are not what was written"),
        ("wav", "ValueError: the samples are not what was written"),
    ):
        assert found[f"decode {name}"] == doctor.Finding(f"decode {name}", "bad", value, fix)


def test_a_driver_without_its_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = {f.name: f for f in doctor.devices()}
    assert found["cuda"] == doctor.Finding(
        "cuda",
        "bad",
        "this machine has an NVIDIA driver, this torch has no CUDA",
        "install a torch with CUDA: https://pytorch.org/get-started/locally",
    )
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    found = {f.name: f for f in doctor.devices()}
    assert found["cuda"] == doctor.Finding("cuda", "missing", "none; training runs on the CPU")


def test_few_open_files_and_no_room_for_temporary_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2**26))
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    found = {f.name: f for f in doctor.room(tmp_path)}
    assert found["open files"] == doctor.Finding("open files", "bad", "256", "ulimit -n 4096")
    assert found[f"disk of {tmp_path}"].value == "0.1 GiB free, read-only"
    name = f"disk of {doctor.tempfile.gettempdir()}"
    assert found[name] == doctor.Finding(name, "bad", "0.1 GiB free", "set TMPDIR to a directory with more room")
