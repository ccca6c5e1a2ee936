"""A run whose representations stop differing is stopped."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from runs import assert_same, avssl, outcome, pretrain_arguments

from avssl.training.checkpoint import steps
from avssl.training.monitor import spread


def test_known_spreads() -> None:
    eye = torch.eye(8).repeat(4, 1)  # eight directions, equally often
    found = spread(eye)
    assert found["rank"] == pytest.approx(7.0, rel=1e-4)  # centred: one dimension is gone
    assert found["std"] == pytest.approx(math.sqrt(1 / 8 - 1 / 64), rel=1e-5)
    line = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)
    assert spread(line)["rank"] == pytest.approx(1.0, abs=1e-4)
    same = torch.ones(16, 5)
    assert spread(same)["std"] == pytest.approx(0.0, abs=1e-6)
    many = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert spread(many)["std"] == pytest.approx(1 / math.sqrt(16), rel=0.01) and spread(many)["rank"] > 15.8


def test_scale_does_not_matter() -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    assert spread(1000 * x) == pytest.approx(spread(x), rel=1e-4)


def test_a_collapsed_run_is_stopped(sounds: Path, tmp_path: Path) -> None:
    """No encoder survives a limit above what is possible: the message and the code are those of a real collapse."""
    ended = avssl(
        tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "run", "monitor.every=1", "monitor.min_std=1.0")
    )
    assert ended.code == 5
    assert re.fullmatch(
        r"error: update 3: the audio representations collapsed \(std [\d.e-]+, effective rank \d+\.\d\d over 8 clips, "
        r"3 looks in a row\) \(lower optim\.lr or raise the loss's variance terms; "
        r"monitor\.every=0 switches the watch off\)",
        ended.last,
    )


def test_a_healthy_run_is_not(finished: Path) -> None:
    from avssl.training.meter import read_journal

    looks = [r["spread"]["audio"] for r in read_journal(finished) if "spread" in r]
    assert len(looks) == 2 and all(look["std"] > 1e-3 and look["rank"] > 1.5 for look in looks)


def test_a_look_between_two_log_lines_is_told_with_the_next(sounds: Path, tmp_path: Path) -> None:
    """Also when the run is stopped between the two."""
    from avssl.training.meter import read_journal

    arguments = ("monitor.every=3", "train.log_every=4", "train.save_every=3", "train.keep_last=9")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "run", *arguments))
    assert ended.code == 0, ended.stderr
    told = {r["update"]: r["spread"]["audio"]["rank"] for r in read_journal(tmp_path / "run")}
    assert list(told) == [4, 8, 12] and len(set(told.values())) == 3
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    (again / "checksums.json").unlink()
    for path in steps(again / "checkpoints")[1:]:
        shutil.rmtree(path)
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, again, *arguments, resume=True))
    assert ended.code == 0, ended.stderr
    assert_same(outcome(again), outcome(tmp_path / "run"))
