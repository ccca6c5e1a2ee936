"""Sounds that every test of failures may read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 recordings."""
    from runs import write_sounds

    return write_sounds(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="session")
def finished(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 12 updates that saves every 3: what all the interrupted ones must equal."""
    from runs import avssl, pretrain_arguments

    folder = tmp_path_factory.mktemp("finished")
    ended = avssl(folder / "logs", *pretrain_arguments(sounds, folder / "run", "train.save_every=3"))
    assert ended.code == 0, ended.stderr
    return folder / "run"
