"""A small run on generated videos: the same one for all tests of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from avssl.data.manifest import read_rows
from avssl.demo.clips import make_clips
from avssl.demo.story import demo_recipe
from avssl.training.run import pretrain
from avssl.training.setup import Machine

QUICK = ("train.updates=6", "train.log_every=1", "data.batch_size=12", "monitor.every=2")


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """24 training and 16 held-back videos of 8 classes."""
    folder = tmp_path_factory.mktemp("media") / "clips"
    make_clips(folder, train=3, test=2, seed=5)
    return folder


@pytest.fixture(scope="session")
def run(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    pretrain(demo_recipe(QUICK), read_rows(clips), folder, machine=Machine(device="cpu", workers=0))
    return folder


@pytest.fixture(scope="session")
def other(clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "second"
    pretrain(demo_recipe([*QUICK, "optim.lr=1e-4"]), read_rows(clips), folder, machine=Machine(device="cpu", workers=0))
    return folder
