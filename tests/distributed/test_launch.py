"""`avssl launch`: real torchrun, signals to the launcher, exit codes back, nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from runs import Running, alive, children_of, pretrain_arguments, updates_logged, wait_until, write_sounds

from avssl.errors import Exit, UsageError
from avssl.launch import launch, overall
from avssl.training import checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_one_code_for_all() -> None:
    assert overall({0: 0, 1: 0}, 2) == Exit.OK
    assert overall({0: 75, 1: 75}, 2) == Exit.STOPPED
    assert overall({0: 75}, 2) == Exit.STOPPED  # the other one was ended by the launcher's patience
    assert overall({0: 1, 1: 3}, 2) == Exit.DATA  # the reason, not what it did to the others
    assert overall({0: 1}, 2) == overall({0: 0}, 2) == overall({}, 2) == Exit.BUG


def test_nothing_to_launch() -> None:
    with pytest.raises(UsageError) as caught:
        launch([], 2)
    assert str(caught.value) == "there is no command to launch (avssl launch -n 2 -- pretrain ...)"


def start(logs: Path, arguments: list[str]) -> Running:
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "plugins")]), "OMP_NUM_THREADS": "1"}
    return Running(logs, ["launch", "-n", "2", "--", *arguments], environment=environment)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_the_launcher(name: str, tmp_path: Path) -> None:
    """Stopped after a step, saved, 75, no orphan; and it goes on."""
    sounds, out, logs = write_sounds(tmp_path / "sounds"), tmp_path / "run", tmp_path / "logs"
    arguments = ["backbone.dropout=0.0", "train.save_every=1000"]
    launcher = start(logs, pretrain_arguments(sounds, out, *arguments, updates=100_000))
    try:
        wait_until(lambda: updates_logged(out) >= 3, timeout=200)
        members = children_of(launcher.pid)
        assert len(members) >= 2
        launcher.kill(getattr(signal, name))
        ended = launcher.end(120)
        assert ended.code == Exit.STOPPED, ended.stderr
        assert not alive(members)
    finally:
        launcher.process.kill()
    saved, notes = checkpoint.newest(out / "checkpoints")
    assert saved is not None and not notes
    assert (
        f"stopped: stopped by {name} after update {saved.updates}/100000, saved in {out} "
        "(the same command with --resume goes on)" in ended.stderr
    )
    assert not (out / "run.lock").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_codes_and_a_killed_launcher(tmp_path: Path) -> None:
    sounds, out, logs = write_sounds(tmp_path / "sounds"), tmp_path / "run", tmp_path / "logs"
    ended = start(logs, pretrain_arguments(sounds, out, "data.batch_size=7")).end()
    assert ended.code == Exit.USAGE, ended.stderr
    assert "data.batch_size 7 is not a multiple of the 2 processes (--set data.batch_size=6)" in ended.stderr
    launcher = start(logs, pretrain_arguments(sounds, out, updates=100_000, resume=True))
    wait_until(lambda: updates_logged(out) >= 3, timeout=200)
    members = children_of(launcher.pid)
    launcher.kill()  # SIGKILL: it can tell nobody
    launcher.end()
    wait_until(lambda: not alive(members), timeout=60)
    saved, notes = checkpoint.newest(out / "checkpoints")
    assert saved is not None and not notes  # they stopped and saved by themselves
