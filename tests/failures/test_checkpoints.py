"""A checkpoint is complete or absent, whatever fails while it is written, and whatever happens to it afterwards."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Running, assert_same, avssl, outcome, pretrain_arguments

from avssl.errors import CheckpointError, Exit
from avssl.training import checkpoint
from avssl.training.checkpoint import Saved, newest, read, save, steps
from avssl.training.meter import read_journal

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def state(updates: int) -> Saved:
    x = torch.full((3,), float(updates))
    return Saved(updates, {"loss": {"w": x}, "optimizer": {"exp_avg/w": x / 2}}, {"offset": updates})


def names(folder: Path) -> list[str]:
    return [p.name for p in steps(folder)]


# -- faults while writing ---------------------------------------------------------------------------------------------
class Fault:
    """Lets the n-th of the system calls that saving makes fail; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import safetensors.torch

        self.calls, self.fail_at, self.error = 0, -1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for owner, name in (
            (os, "fsync"),
            (os, "replace"),
            (os, "mkdir"),
            (safetensors.torch, "save_file"),
            (Path, "write_text"),
        ):
            monkeypatch.setattr(owner, name, self.wrap(getattr(owner, name)))

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise self.error
            return function(*args, **kwargs)

        return wrapped


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    yield Fault(monkeypatch)


def test_a_fault_at_any_call_leaves_the_last_good_one(fault: Fault, tmp_path: Path) -> None:
    save(tmp_path / "probe", state(0))
    fault.calls = 0
    save(tmp_path / "probe", state(1), best=True)
    total = fault.calls
    assert total >= 12  # files, folder, fsyncs, renames: this test would prove nothing if they went another way
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        fault.fail_at = -1
        save(folder, state(1))
        fault.calls, fault.fail_at = 0, n
        try:
            save(folder, state(2), best=True)
        except CheckpointError as error:
            left = "step-00000002" if names(folder)[-1] == "step-00000002" else "step-00000001"
            assert str(error) == (
                f"cannot save {folder / 'step-00000002'}: the disk is full; the last good one is {left} "
                "(free some space, then resume with --resume)"
            )
            assert error.code == Exit.CHECKPOINT
        fault.fail_at = -1
        saved, notes = newest(folder)
        assert saved is not None and not notes, n
        assert_same(dict(saved.tensors), dict(state(saved.updates).tensors))
        assert not list(folder.glob(".*")) or n == total, list(folder.iterdir())
        save(folder, state(3))  # and it goes on as if nothing had been
        assert read(folder / "step-00000003").updates == 3


def test_killed_at_any_call(tmp_path: Path) -> None:
    """SIGKILL instead of an error: a child dies at its n-th call."""
    for n in range(1, 22):
        folder = tmp_path / str(n)
        save(folder, state(1))
        child = os.fork()
        if child == 0:
            _die_at(n)
            save(folder, state(2), best=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        saved, notes = newest(folder)
        assert saved is not None and not notes and saved.updates in (1, 2)
        assert_same(dict(saved.tensors), dict(state(saved.updates).tensors))
        save(folder, state(3), keep_last=1)
        assert names(folder) in (["step-00000003"], ["step-00000002", "step-00000003"])
        assert not list(folder.glob(".step*"))
        if os.waitstatus_to_exitcode(status) == 0:
            return
    raise AssertionError("saving makes more calls than this test kills at")


def _die_at(n: int) -> None:
    count = 0

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                os._exit(9)
            return function(*args, **kwargs)

        return wrapped

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (Path, "write_text")):
        setattr(owner, name, dying(getattr(owner, name)))


def test_a_disk_that_is_really_full(tmp_path: Path, sounds: Path) -> None:
    """A limit on the size of files does what a full disk does: the write itself fails."""
    running = Running(
        tmp_path / "logs",
        _with_small_files,
        pretrain_arguments(sounds, tmp_path / "run", "backbone.dim=64", "train.save_every=4"),
    )
    ended = running.end()
    assert ended.code == Exit.CHECKPOINT, ended.stderr
    assert ended.last == (
        f"error: cannot save {tmp_path / 'run/checkpoints/step-00000004'}: File too large; there is no earlier one "
        "(free some space, then resume with --resume)"
    )
    assert not list((tmp_path / "run/checkpoints").iterdir())
    ended = avssl(
        tmp_path / "logs",
        *pretrain_arguments(sounds, tmp_path / "run", "backbone.dim=64", "train.save_every=4", resume=True),
    )
    assert ended.code == 0, ended.stderr


def _with_small_files(arguments: list[str]) -> None:
    import resource
    import signal

    from avssl.cli import main

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    main(arguments)


# -- damage afterwards ------------------------------------------------------------------------------------------------
def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["loss.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, state(1))
    damage(path / name)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    if name != "state.json":  # a damaged state.json may also be no JSON
        assert (
            str(caught.value)
            == f"{path / name} is damaged: its checksum differs (delete it; an older one will be used)"
        )
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "sums", ["", "[]", "{}", "null", '{"state.json": 3}', '{"../../etc/passwd": "00", "state.json": "0"}']
)
def test_damaged_checksums(sums: str, tmp_path: Path) -> None:
    path = save(tmp_path, state(1))
    (path / "checksums.json").write_text(sums)
    with pytest.raises(CheckpointError):
        read(path)


def test_a_run_goes_back_to_the_checkpoint_that_reads_well(finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checksums.json").unlink()
    newest_path = steps(out / "checkpoints")[-1]
    damage(newest_path / "loss.safetensors")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, out, "train.save_every=3", resume=True))
    assert ended.code == 0, ended.stderr
    note = f"note: {newest_path / 'loss.safetensors'} is damaged: its checksum differs; using an older checkpoint"
    assert note in ended.stderr.splitlines()
    assert_same(outcome(out), outcome(finished))  # the damaged one was written anew, too


def test_all_damaged_means_from_the_start(finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checksums.json").unlink()
    damaged = steps(out / "checkpoints")
    for path in damaged:
        (path / "state.json").unlink()
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, out, "train.save_every=3", resume=True))
    assert ended.code == 0, ended.stderr
    notes = [
        f"note: {path}: incomplete or damaged ([Errno 2] No such file or directory: '{path / 'state.json'}'); "
        "using none: the run starts again"
        for path in reversed(damaged)
    ]
    assert ended.stderr.splitlines()[: len(notes)] == notes
    assert_same(outcome(out), outcome(finished))


def test_a_newer_format_is_refused_by_number(tmp_path: Path) -> None:
    save(tmp_path, state(1))
    path = save(tmp_path, state(2))
    meta = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**meta, "format": checkpoint.FORMAT + 1}))
    with pytest.raises(CheckpointError) as caught:
        newest(tmp_path)  # going back silently would lose what a newer avssl has done
    assert str(caught.value) == f"{path} has format 2, this avssl reads up to 1 (upgrade avssl)"


# -- which ones are kept ----------------------------------------------------------------------------------------------
def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    for n in range(1, 7):
        save(tmp_path, state(n), keep_last=2, best=n == 2)
    assert names(tmp_path) == ["step-00000002", "step-00000005", "step-00000006"]
    assert checkpoint.best_name(tmp_path) == "step-00000002"


def test_a_damaged_one_never_pushes_out_a_good_one(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        save(tmp_path, state(n), keep_last=3)
    for n in (2, 3):
        damage(tmp_path / f"step-{n:08d}" / "loss.safetensors")
    saved, notes = newest(tmp_path)
    assert saved is not None and saved.updates == 1 and len(notes) == 2
    save(tmp_path, state(2), keep_last=1)
    saved, notes = newest(tmp_path)
    assert saved is not None and saved.updates == 2 and not notes and names(tmp_path) == ["step-00000002"]


# -- earlier releases -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("release", sorted(p.name for p in GOLDEN.glob("run-*")))
def test_run_directories_of_earlier_releases_open(release: str) -> None:
    from avssl.model import open_model

    model = open_model(GOLDEN / release)
    assert sum(p.numel() for p in model.backbone.parameters()) > 0
    saved, notes = newest(GOLDEN / release / "checkpoints")
    assert saved is not None and not notes and saved.updates == 4
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, saved.tensors["loss"][f"backbone.{name}"])


@pytest.mark.parametrize("release", sorted(p.name for p in GOLDEN.glob("run-*")))
def test_runs_of_earlier_releases_go_on(release: str, tmp_path: Path) -> None:
    """Interrupted then, resumed now, to the end. Its numbers may differ: a release may mend a front-end."""
    from runs import write_sounds

    out = tmp_path / "run"
    shutil.copytree(GOLDEN / release, out)
    for path in (out / "checksums.json", *steps(out / "checkpoints")[1:]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_sounds(tmp_path / "sounds", items=8)
    _repoint(out / "manifest.parquet", tmp_path / "sounds")
    arguments = json.loads((GOLDEN / release / "arguments.json").read_text())
    ended = avssl(
        tmp_path / "logs", "pretrain", *arguments, "--data", str(tmp_path / "sounds"), "--out", str(out), "--resume"
    )
    assert ended.code == 0, ended.stderr
    old, new = (newest(folder / "checkpoints")[0] for folder in (GOLDEN / release, out))
    assert old is not None and new is not None and old.updates == new.updates == 4
    for group in old.tensors:
        assert {k: v.shape for k, v in old.tensors[group].items()} == {
            k: v.shape for k, v in new.tensors[group].items()
        }
    assert [r["update"] for r in read_journal(out)] == [1, 2, 3, 4]


def _repoint(manifest: Path, folder: Path) -> None:
    """The sounds lie elsewhere than when the run began."""
    import dataclasses

    from avssl.data.manifest import read_rows, write_rows

    rows = read_rows(str(manifest), modalities=None)
    write_rows(
        [dataclasses.replace(r, parts={"audio": str(folder / Path(r.parts["audio"]).name)}) for r in rows], manifest
    )
