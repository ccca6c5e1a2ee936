"""One directory, one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from runs import Running, alive, avssl, pretrain_arguments, updates_logged, wait_until

from avssl.errors import UsageError
from avssl.training.lock import RunLock, born


def write(folder: Path, **changes: object) -> Path:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": born(os.getpid()), **changes}
    (folder / "run.lock").write_text(json.dumps(owner))
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UsageError) as caught, RunLock(folder):
        pass
    return str(caught.value)


def holder(folder: Path) -> int:
    """Whose lock it is; 0 in the moment between two holders."""
    try:
        return int(json.loads((folder / "run.lock").read_text())["pid"])
    except FileNotFoundError:
        return 0


def taken(folder: Path) -> bool:
    with RunLock(folder):
        owner = json.loads((folder / "run.lock").read_text())
        assert owner == {"host": socket.gethostname(), "pid": os.getpid(), "started": born(os.getpid())}
    return sorted(p.name for p in folder.iterdir()) == []


def test_a_lock_goes_when_the_run_ends(tmp_path: Path) -> None:
    assert taken(tmp_path)


def test_a_live_process_is_respected(tmp_path: Path) -> None:
    assert refusal(write(tmp_path)) == (
        f"{tmp_path} is in use by process {os.getpid()} on this machine (wait for it, or choose another --out)"
    )


def test_another_machine_is_respected(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, host="elsewhere", pid=7)) == (
        f"{tmp_path} is in use by process 7 on elsewhere (if that run is dead, delete {tmp_path / 'run.lock'})"
    )


def test_a_dead_process_is_not(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert taken(write(tmp_path, pid=gone.pid))


def test_a_recycled_pid_is_another_process(tmp_path: Path) -> None:
    assert taken(write(tmp_path, started=born(os.getppid())))


def test_a_zombie_is_dead(tmp_path: Path) -> None:
    """In a container nobody may wait for a run that was killed."""
    gone = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write(tmp_path, pid=gone.pid, started=born(gone.pid))
    refusal(tmp_path)
    gone.kill()
    wait_until(lambda: not alive([gone.pid]))
    assert taken(tmp_path)
    gone.communicate()


def test_a_clock_that_is_set_makes_no_live_run_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    monkeypatch.setattr(
        psutil.Process, "create_time", lambda self: 0.0
    )  # psutil adds the time of the boot by the clock
    assert "is in use by process" in refusal(tmp_path)


def test_a_lock_of_an_older_release_is_respected(tmp_path: Path) -> None:
    assert "is in use by process" in refusal(write(tmp_path, started=psutil.Process().create_time()))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"host": 1}', b'{"host": "a", "pid": "x", "started": "0"}']
)
def test_garbage_is_no_lock(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_bytes(content)
    assert taken(tmp_path)


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    """The moment between judging a lock stale and replacing it belongs to one process."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from avssl.errors import UsageError; from avssl.training.lock import RunLock\n"
        "sys.stdin.readline()\n"
        "try:\n    with RunLock(Path(sys.argv[1])):\n        print('mine', flush=True); sys.stdin.readline()\n"
        "except UsageError:\n    print('refused', flush=True)"
    )
    write(tmp_path, pid=2**22 - 1)
    group = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in group:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in group if process.stdout]
    for process in group:
        process.communicate("done\n")
    assert sorted(said) == ["mine", "refused", "refused", "refused"]


def test_a_second_run_in_the_directory_is_refused(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Running(tmp_path / "first", pretrain_arguments(sounds, out, updates=100_000))
    wait_until(lambda: updates_logged(out) >= 1)
    second = avssl(tmp_path / "second", *pretrain_arguments(sounds, out, updates=100_000, resume=True))
    assert second.code == 2
    assert (
        second.last
        == f"error: {out} is in use by process {first.pid} on this machine (wait for it, or choose another --out)"
    )
    first.kill()
    first.end()
    third = Running(
        tmp_path / "third", pretrain_arguments(sounds, out, updates=100_000, resume=True)
    )  # the lock is stale now
    wait_until(lambda: holder(out) == third.pid)
    third.kill()
    third.end()
