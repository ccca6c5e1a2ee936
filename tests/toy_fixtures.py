"""Fixtures around `tests/toy.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def toy_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The toy system, installed for this process; the folder for the PYTHONPATH of others."""
    import toy

    from avssl.registry import registry

    folder = tmp_path_factory.mktemp("toy-plugin")
    toy.install(folder)
    sys.path.insert(0, str(folder))
    registry.cache_clear()
    yield folder
    sys.path.remove(str(folder))
    registry.cache_clear()


@pytest.fixture(scope="session")
def toy_path(toy_plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory of the toy system."""
    import toy

    return toy.make_model(tmp_path_factory.mktemp("toy-model") / "model")


@pytest.fixture(scope="session")
def toy_model(toy_path: Path):
    from avssl.model import open_model

    return open_model(toy_path)


@pytest.fixture(scope="session")
def toy_classifier(toy_plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with an untrained head of three classes."""
    import toy

    return toy.make_model(tmp_path_factory.mktemp("toy-classifier") / "model", ["class 0", "class 1", "class 2"])


@pytest.fixture(scope="session")
def toy_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 audio-visual clips of three classes in four lengths."""
    import toy

    return toy.write_media(tmp_path_factory.mktemp("toy-media"), items=30)
