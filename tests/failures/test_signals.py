"""A signal ends a run at the next step, saved; nothing of it stays behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from runs import (
    Running,
    alive,
    assert_same,
    avssl,
    children_of,
    outcome,
    pretrain_arguments,
    updates_logged,
    wait_until,
)

from avssl.errors import Exit, Stopped
from avssl.training import checkpoint
from avssl.training.signals import StopRequest


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"])
def test_stopped_saved_and_resumed(name: str, finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    slow = Running(tmp_path / "first", pretrain_arguments(sounds, out, "train.save_every=3", workers=2))
    wait_until(lambda: updates_logged(out) >= 1)
    helpers = children_of(slow.pid)
    slow.kill(getattr(signal, name))
    ended = slow.end()
    assert not alive(helpers)
    assert not (out / "run.lock").exists()
    if ended.code == 0:  # it was at its last update already
        assert_same(outcome(out), outcome(finished))
        return
    saved, notes = checkpoint.newest(out / "checkpoints")
    assert saved is not None and not notes
    assert ended.code == Exit.STOPPED == 75
    assert ended.last == (
        f"stopped: stopped by {name} after update {saved.updates}/12, saved in {out} "
        "(the same command with --resume goes on)"
    )
    ended = avssl(tmp_path / "second", *pretrain_arguments(sounds, out, "train.save_every=3", workers=2, resume=True))
    assert ended.code == 0, ended.stderr
    assert_same(outcome(out), outcome(finished))


def test_a_signal_to_the_data_workers_is_none_of_their_business(sounds: Path, tmp_path: Path) -> None:
    """A terminal's Ctrl-C or hangup reaches every process of the group; the run decides."""
    import os

    out = tmp_path / "run"
    running = Running(tmp_path / "logs", pretrain_arguments(sounds, out, updates=100_000, workers=2))
    wait_until(lambda: updates_logged(out) >= 4)  # both have made batches: they are past their first lines
    helpers = children_of(running.pid)
    assert len(helpers) == 2
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        for pid in helpers:
            os.kill(pid, getattr(signal, name))
    before = updates_logged(out)
    wait_until(lambda: updates_logged(out) > before + 3)
    assert children_of(running.pid) == helpers
    running.kill()  # and when the run dies without a word, they follow
    running.end()
    wait_until(lambda: not alive(helpers))


def test_a_signal_before_the_first_update_ends_at_once(tmp_path: Path) -> None:
    with pytest.raises(Stopped) as caught, StopRequest():
        signal.raise_signal(signal.SIGTERM)
    assert str(caught.value) == "stopped by SIGTERM before the first update (the same command with --resume goes on)"


def test_a_second_interrupt_ends_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(SystemExit) as caught, StopRequest() as stop:
            stop.busy = True
            signal.raise_signal(signal.SIGTERM)
            assert stop.name == "SIGTERM"
            signal.raise_signal(signal.SIGUSR1)  # only Ctrl-C says "now"
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.code == Exit.INTERRUPTED == 130


def test_what_is_ignored_stays_ignored() -> None:
    """nohup means that a hangup is nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.name == "" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    with StopRequest():
        pass
    assert before == {n: signal.getsignal(n) for n in before}


def test_a_run_inside_a_pipeline_passes_its_signal_on() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            inner.busy = True
            signal.raise_signal(signal.SIGUSR1)
        assert inner.name == outer.name == "SIGUSR1"
        with pytest.raises(Stopped) as caught:
            outer.check("before stage two")
    assert str(caught.value) == "stopped by SIGUSR1 before stage two (the same command with --resume goes on)"
