"""`avssl doctor` tells the truth, and how to mend it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import avssl

from avssl import doctor


def test_a_working_machine(tmp_path: Path) -> None:
    ended = avssl(tmp_path, "doctor", "--json")
    result = json.loads(ended.stdout)
    found = {f["name"]: f for f in result["findings"]}
    assert ended.code == (0 if result["ready"] else 5)
    assert found["torch"]["state"] == "ok" and found["decode wav"]["state"] == "ok"
    assert found["decode mp4 (pictures and sound)"]["value"].startswith("64x48, ")
    assert all(f["fix"] for f in result["findings"] if f["state"] == "bad")
    assert avssl(tmp_path, "doctor").stdout.startswith("what ")


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
    assert (
        found["numpy"].state == "bad"
        and found["numpy"].value.endswith(", but <1 is needed")
        and found["numpy"].fix == "pip install 'numpy<1'"
    )
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
    assert found["memory"].fix == "close other programs, or lower data.batch_size and --workers"
    assert found[f"disk of {tmp_path}"].fix == "free some space, or give --out a directory on another disk"


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
    assert off.state == "missing"
