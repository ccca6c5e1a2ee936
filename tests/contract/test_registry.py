"""A broken plugin is named and spoils nothing; a stranger's package is as good as ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from avssl import BackboneEntry, LossEntry, hookimpl
from avssl.errors import PluginError, UsageError
from avssl.registry import load_registry

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Point:
    """A fake entry point."""

    name: str
    content: Any  # a module, or what importing it raises
    dist: Any = None

    @property
    def value(self) -> str:
        return f"avssl_{self.name}"

    def load(self) -> ModuleType:
        if isinstance(self.content, BaseException):
            raise self.content
        return self.content


def module(name: str, **contents: Any) -> ModuleType:
    out = ModuleType(f"avssl_{name}")
    for key, value in contents.items():
        if callable(value) and not isinstance(value, type):
            value.__module__ = out.__name__
            value = hookimpl(value) if not key.startswith("unmarked_") else value
        setattr(out, key.removeprefix("unmarked_"), value)
    return out


def backbone(name: str = "bird") -> BackboneEntry:
    return BackboneEntry(
        name=name,
        summary="x",
        cls="no.such:Class",
        config="no.such:Config",
        frontend="no.such:F",
        frontend_config="no.such:C",
        modalities=frozenset({"audio"}),
    )


def good(name: str = "good", entry: str = "wren") -> Point:
    return Point(name, module(name, avssl_backbones=lambda: [backbone(entry)]))


def raises(error: BaseException) -> Any:
    def avssl_backbones() -> list[BackboneEntry]:
        raise error

    return avssl_backbones


BROKEN = {
    "import": (Point("bad", ImportError("No module named 'birdsong'")), "ImportError: No module named 'birdsong'"),
    "syntax": (Point("bad", SyntaxError("invalid syntax")), "SyntaxError: invalid syntax"),
    "exit": (Point("bad", SystemExit(3)), "SystemExit: 3"),
    "hook": (Point("bad", module("bad", avssl_backbones=raises(KeyError("x")))), "KeyError: 'x'"),
    "hook-exit": (Point("bad", module("bad", avssl_backbones=raises(SystemExit("bye")))), "SystemExit: bye"),
    "misspelt": (
        Point("bad", module("bad", avssl_backbone=lambda: [])),
        "unknown hook 'avssl_backbone'; did you mean 'avssl_backbones'?",
    ),
    "misspelt-unmarked": (
        Point("bad", module("bad", unmarked_avssl_loses=lambda: [])),
        "unknown hook 'avssl_loses'; did you mean 'avssl_losses'?",
    ),
    "version": (Point("bad", module("bad", avssl_api=99)), "it is written for plugin API 99, this avssl has API 1"),
    "wrong-kind": (
        Point("bad", module("bad", avssl_losses=lambda: [backbone()])),
        "avssl_losses returned BackboneEntry(",
    ),
    "no-list": (Point("bad", module("bad", avssl_backbones=lambda: 7)), "TypeError: 'int' object is not iterable"),
    "signature": (Point("bad", module("bad", avssl_backbones=lambda extra: [])), "PluginValidationError: "),
    "duplicate-own": (
        Point("bad", module("bad", avssl_backbones=lambda: [backbone(), backbone()])),
        "backbone 'bird' is already registered by",
    ),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_broken_plugin_is_named_and_alone(name: str) -> None:
    point, reason = BROKEN[name]
    registry = load_registry(disabled=(), points=[point, good()])
    status = {p.name: p for p in registry.plugins}
    assert status["bad"].error.startswith(reason) and not status["bad"].entries
    assert not status["good"].error and [b.name for b in registry.all("backbone")] == ["wren"]
    with pytest.raises(UsageError) as caught:
        registry.get("backbone", "bird")
    assert (
        f"no backbone is called 'bird'; plugin 'bad' (avssl_bad) did not load: {status['bad'].error}"
        == caught.value.message
    )


def test_two_plugins_of_one_name() -> None:
    registry = load_registry(disabled=(), points=[good("a", "wren"), good("b", "wren"), good("c", "owl")])
    status = {p.name: p for p in registry.plugins}
    assert status["b"].error == "backbone 'wren' is already registered by avssl_a" and not status["a"].error
    assert [b.name for b in registry.all("backbone")] == ["owl", "wren"] and registry.get(
        "backbone", "wren"
    ).origin == "avssl_a"


def test_a_collision_leaves_nothing_of_the_second() -> None:
    second = Point("b", module("b", avssl_backbones=lambda: [backbone("owl"), backbone("wren")]))
    registry = load_registry(disabled=(), points=[good("a", "wren"), second])
    assert [b.name for b in registry.all("backbone")] == ["wren"]


def test_switched_off() -> None:
    registry = load_registry(disabled=("bad",), points=[Point("bad", SystemExit(1)), good()])
    assert [(p.name, p.disabled, p.error) for p in registry.plugins] == [("bad", True, ""), ("good", False, "")]
    with pytest.raises(UsageError, match="switched off: bad"):
        registry.get("backbone", "bird")


def test_a_missing_dependency_surfaces_when_used_and_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl import registry as module_of_registry

    reg = load_registry(disabled=(), points=[good()])  # listing needs no import
    monkeypatch.setattr(module_of_registry, "registry", lambda: reg)
    with pytest.raises(PluginError) as caught:
        module_of_registry.load("backbone", "wren")
    assert caught.value.message.startswith("backbone 'wren' of avssl_good: ") and "no" in caught.value.message


def test_a_loss_for_another_backbone_says_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl import registry as module_of_registry

    losses = [LossEntry(name="song", summary="", cls="a:B", config="a:C", modalities=frozenset({"vision"}))]
    reg = load_registry(disabled=(), points=[good(), Point("l", module("l", avssl_losses=lambda: losses))])
    monkeypatch.setattr(module_of_registry, "registry", lambda: reg)
    with pytest.raises(UsageError) as caught:
        module_of_registry.check_fit("wren", "song")
    assert str(caught.value) == (
        "loss 'song' cannot train backbone 'wren': it needs vision, which the backbone does not read "
        "(losses for wren: none; backbones for song: none)"
    )


# -- a stranger's package, installed ----------------------------------------------------------------------------------
PULSE = {
    "avssl_pulse/__init__.py": """
from avssl import BackboneEntry, LossEntry, ModalityEntry, RecipeEntry, hookimpl, recipes_in

@hookimpl
def avssl_modalities():
    return [ModalityEntry(name="pulse", summary="Heart beats", suffixes=(".npy",), columns=("pulse",),
                          decode="avssl_pulse.parts:decode", sample="avssl_pulse.parts:sample")]

@hookimpl
def avssl_backbones():
    return [BackboneEntry(name="pulse", summary="Convolution over heart beats", cls="avssl_pulse.parts:Pulse",
                          config="avssl_pulse.config:PulseConfig", frontend="avssl_pulse.parts:PulseFrontend",
                          frontend_config="avssl_pulse.config:FrontConfig", modalities=frozenset({"pulse"}))]

@hookimpl
def avssl_losses():
    return [LossEntry(name="pulse_ahead", summary="Predict the next beat", cls="avssl_pulse.parts:Ahead",
                      config="avssl_pulse.config:AheadConfig", backbones=frozenset({"pulse"}))]

@hookimpl
def avssl_recipes():
    return recipes_in("avssl_pulse")
""",
    "avssl_pulse/config.py": """
from avssl import config

@config
class PulseConfig:
    dim: int = 8

@config
class FrontConfig:
    length: int = 32

@config
class AheadConfig:
    pass
""",
    "avssl_pulse/parts.py": """
import numpy as np
import torch
from torch import nn
from avssl.backbone import Backbone, Features, Grid
from avssl.batch import item
from avssl.data.clip import Request
from avssl.errors import DataError
from avssl.frontend import Frontend
from avssl.loss import Loss, LossOutput, Term

def decode(source, request=None, *, start=None, end=None, limits=None):
    try:
        return np.load(source, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: {error}", fix="mend the file") from None

def sample(folder, number):
    path = folder / f"{number}.npy"
    np.save(path, np.sin(np.arange(40) * 0.3 * (number + 1)))
    return str(path)

class PulseFrontend(Frontend):
    modalities = frozenset({"pulse"})
    def plan(self, row, rng):
        return Request({"pulse": None})
    def item(self, clips, rng):
        x = torch.from_numpy(clips[0].parts["pulse"]).float()[: self.config.length]
        return item(clips[0].id, clips[0].seed, clips[0].target, pulse=x)

class Pulse(Backbone):
    modalities = frozenset({"pulse"})
    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv1d(1, config.dim, 3, padding=1)
    def grid(self, batch):
        return {"pulse": Grid((batch.streams["pulse"].x.shape[1],), ("time",))}
    def forward(self, batch, hide=None, keep=None, layers=None, only=None):
        tokens = self.conv(batch.need("pulse").x[:, None]).mT.tanh()
        return Features({"pulse": tokens}, {"pulse": tokens.mean(1)}, {}, self.grid(batch))

class Ahead(Loss):
    def __init__(self, backbone, config):
        super().__init__(backbone, config)
        self.guess = nn.Linear(backbone.dim, 1)
    def compute(self, batch, draw):
        x = batch.need("pulse").x
        error = (self.guess(self.backbone(batch).tokens["pulse"])[:, :-1, 0] - x[:, 1:]).square()
        return LossOutput({"ahead": Term(1.0, error.sum(), error.numel())})
""",
    "avssl_pulse/recipes/small.toml": """
summary = "Heart beats"
[backbone]
name = "pulse"
[loss]
name = "pulse_ahead"
[data]
batch_size = 4
[optim]
lr = 1e-2
[train]
updates = 6
""",
    "avssl_pulse-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: avssl-pulse\nVersion: 1.0\n",
    "avssl_pulse-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "avssl_pulse-1.0.dist-info/entry_points.txt": "[avssl]\npulse = avssl_pulse\n",
    "avssl_pulse-1.0.dist-info/RECORD": "",
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_from_outside_with_a_modality_of_its_own(tmp_path: Path) -> None:
    """A wheel with a backbone, a loss and a new kind of signal, in a fresh environment: every command works."""
    import numpy as np

    wheel = tmp_path / "avssl_pulse-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in PULSE.items():
            archive.writestr(name, content)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    site = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)  # which is what installing a wheel of pure Python is
    (site / "shared.pth").write_text(
        f"{ROOT}\n{ROOT / 'plugins'}\n{sysconfig.get_path('purelib')}\n"
    )  # torch is not installed twice
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        np.save(tmp_path / f"{i:02d}.npy", np.sin(np.arange(40) * (0.3 + 0.3 * (i % 2))) + 0.1 * rng.normal(size=40))
        lines.append(
            json.dumps(
                {"id": str(i), "pulse": f"{i:02d}.npy", "label": "ab"[i % 2], "split": "train" if i < 16 else "test"}
            )
        )
    (tmp_path / "data.jsonl").write_text("\n".join(lines))

    def avssl(*arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [python, "-c", "from avssl.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**environment, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = {p["name"]: p for p in json.loads(avssl("plugins", "--json"))}
    assert (
        listed["pulse"]["distribution"] == "avssl-pulse"
        and not listed["pulse"]["error"]
        and len(listed["pulse"]["entries"]) == 4
    )
    assert "pulse/small" in avssl("recipes")
    run = str(tmp_path / "run")
    report = json.loads(
        avssl("pretrain", "pulse/small", "--data", "data.jsonl", "--out", run, "--workers", "0", "--json")
    )
    assert report["updates"] == 6 and report["items"] == 16
    avssl("embed", "data.jsonl", "--model", run, "--out", "all.npz", "--workers", "0")
    vectors = np.load(tmp_path / "all.npz")
    assert any(v.shape == (24, 8) for v in vectors.values())
    metrics = json.loads(
        avssl("evaluate", "--model", run, "--data", "data.jsonl", "--task", "knn", "--workers", "0", "--json")
    )["metrics"]
    assert metrics["knn.pulse.accuracy"] > 0.9, metrics
    assert all(not r["error"] for r in json.loads(avssl("plugins", "check", "pulse", "--json")))
