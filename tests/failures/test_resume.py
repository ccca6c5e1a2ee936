"""A run that was killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from runs import Running, assert_same, avssl, fragile, outcome, pretrain_arguments, updates_logged


def test_averages_of_epochs_go_on_where_they_were() -> None:
    """The mean over epochs 2 to 4, saved and loaded in between, in another order than it was built."""
    import torch
    from toy import Toy, ToyConfig

    from avssl.loss import Loss
    from avssl.training.weights import Averages

    states = []
    whole, part = Averages(epochs=(2, 4)), Averages(epochs=(2, 4))
    for epoch in range(1, 6):
        torch.manual_seed(epoch)
        loss = Loss(Toy(ToyConfig()), None)
        states.append(loss.state_dict())
        whole.epoch(epoch, loss)
        part.epoch(epoch, loss)
        fresh = Averages(epochs=(2, 4))
        fresh.load({"averages": dict(sorted(part.sums.items()))} if part.sums else {}, part.state())
        part = fresh
    mean = {k: torch.stack([s[k].double() for s in states[1:4]]).mean(0).float() for k in states[0]}
    assert_same(whole.result(states[-1]), mean)
    assert_same(part.result(states[-1]), mean)


def test_resume_of_a_finished_run_changes_nothing(finished: Path, sounds: Path, tmp_path: Path) -> None:
    before = outcome(finished)
    ended = avssl(tmp_path, *pretrain_arguments(sounds, finished, "train.save_every=3", resume=True))
    assert ended.code == 0 and ended.stderr.splitlines()[0] == f"{finished} is finished already"
    assert_same(outcome(finished), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_in_the_middle_of_an_epoch(workers: int, finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = pretrain_arguments(sounds, out, "train.save_every=3", workers=workers, resume=True)
    for steps, logged in ((4, 3), (5, 7)):  # in update 4; and in update 8, from the checkpoint of 3
        assert Running(tmp_path / "logs", fragile, arguments, steps, 0).end().code == -9
        assert updates_logged(out) == logged
    ended = avssl(tmp_path / "last", *arguments)
    assert ended.code == 0, ended.stderr
    assert_same(outcome(out), outcome(finished))


def test_killed_between_the_last_update_and_the_model_files(finished: Path, sounds: Path, tmp_path: Path) -> None:
    """A run is finished when its last file is there, not when its weights are."""
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for name in ("checksums.json", "report.json"):
        (out / name).unlink()
    (out / "weights.safetensors").write_bytes(b"half")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, out, "train.save_every=3", resume=True))
    assert ended.code == 0, ended.stderr
    assert_same(outcome(out), outcome(finished))


def test_another_recipe_is_refused(finished: Path, sounds: Path, tmp_path: Path) -> None:
    import shutil

    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checksums.json").unlink()
    ended = avssl(
        tmp_path / "logs", *pretrain_arguments(sounds, out, "train.save_every=3", "optim.lr=0.1", resume=True)
    )
    assert ended.code == 2
    assert ended.last == (
        f"error: {out} was started with another recipe: optim.lr 0.0005 -> 0.1 "
        "(resume with the same recipe and --set options, or start a new run with --init)"
    )


def test_without_resume_a_directory_is_left_alone(finished: Path, sounds: Path, tmp_path: Path) -> None:
    ended = avssl(tmp_path, *pretrain_arguments(sounds, finished))
    assert ended.code == 2
    assert (
        ended.last
        == f"error: --out {finished} exists already (add --resume to go on with that run, or choose another directory)"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_random_instants(sounds: Path, tmp_path: Path) -> None:
    """SIGKILL at 24 random instants, in starting, training, saving and finishing, with 0, 2 and 4 workers in turn."""
    whole = tmp_path / "whole"

    def start(out: Path, workers: int) -> Running:
        arguments = pretrain_arguments(sounds, out, "train.save_every=3", updates=20, workers=workers, resume=True)
        return Running(tmp_path / "logs", arguments)

    for out in (whole, tmp_path / "again"):  # the first of them may have to start the fork server, too
        began = time.monotonic()
        ended = start(out, 2).end()
        assert ended.code == 0, ended.stderr
    horizon = time.monotonic() - began
    rng = random.Random(11)
    kills = runs = attempts = 0
    while kills < 24:
        out = tmp_path / f"run{runs}"
        while True:
            # Instants follow the speed of the machine: later after a kill, or no run would end; sooner after an end, or
            # none would be killed.
            attempts += 1
            assert attempts < 400, f"{kills} kills in {runs} runs; the last within {horizon:.2f} s"
            running = start(out, (0, 2, 4)[attempts % 3])
            running.process.join(rng.uniform(0.2, 1.0) * horizon)
            if running.process.exitcode is None and kills < 24:
                running.kill()
            ended = running.end()
            if ended.code != -9:
                break
            kills += 1
            horizon *= 1.1
        assert ended.code == 0, ended.stderr  # it ended by itself, perhaps just before the signal came
        horizon *= 0.6
        assert_same(outcome(out), outcome(whole))
        runs += 1
