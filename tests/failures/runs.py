"""Runs of the command line as real processes, started from a server that has already imported torch.

A run takes well under a second this way instead of five, so that twenty kills fit into a test.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "no_network",
        "avssl.training.run",
        "avssl.training.replay",
        "avssl.cli.train",
        "torch.utils.tensorboard",
        "torch._dynamo",
        "soundfile",
        "av",
        "avssl_tiny.frontend",
        "avssl_tiny.masked",
        "avssl.nn.mel",
        "toy",
        "pyarrow.dataset",
        "pyarrow.parquet",
        "sklearn.metrics",
        "torchaudio.transforms",
        "torchvision.transforms.v2",
    ]
)
SMALL = (
    "backbone.dim=16",
    "backbone.layers=1",
    "backbone.ff=32",
    "backbone.heads=2",
    "data.batch_size=8",
    "train.log_every=1",
    "monitor.every=5",
    "frontend.seconds=0.6",
    "train.ema=0.9",
)


def write_sounds(folder: Path, items: int = 24, rate: int = 8000, seed: int = 0) -> Path:
    """Noise of unequal lengths around a second."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(items):
        wave = 0.1 * rng.normal(size=rate // 2 + i * rate // 20)
        soundfile.write(folder / f"{i:03d}.wav", wave.astype(np.float32), rate)
    return folder


def pretrain_arguments(
    data: Path,
    out: Path,
    *overrides: str,
    resume: bool = False,
    workers: int = 0,
    recipe: str = "tiny/masked",
    updates: int = 12,
) -> list[str]:
    """`avssl pretrain` with a model of a few thousand parameters."""
    changes = [*SMALL, f"train.updates={updates}", *overrides] if recipe == "tiny/masked" else list(overrides)
    return [
        "pretrain",
        recipe,
        "--data",
        str(data),
        "--out",
        str(out),
        "--workers",
        str(workers),
        "--device",
        "cpu",
        *(word for change in changes for word in ("--set", change)),
        *(["--resume"] if resume else []),
    ]


@dataclass
class Ended:
    """code: the exit code, negative for a signal."""

    code: int
    stdout: str
    stderr: str

    @property
    def last(self) -> str:
        """The last line on stderr: where errors are."""
        return self.stderr.strip().splitlines()[-1] if self.stderr.strip() else ""


class Running:
    """A process that executes `avssl ARGUMENTS`, or a function. folder: where, and the first place to import from."""

    def __init__(
        self,
        logs: Path,
        what: Sequence[str] | Callable[..., None],
        *args: Any,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.files = logs / "stdout", logs / "stderr"
        target = what if callable(what) else list(what)
        files = [str(path.absolute()) for path in self.files]
        self.process = FORKS.Process(target=_child, args=(target, args, *files, dict(environment or {}), folder))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def end(self, timeout: float = 300.0) -> Ended:
        """Wait for it. It is killed and the test fails when it takes longer than the timeout."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout} s; stderr: {self.files[1].read_text()[-2000:]}")
        return Ended(self.process.exitcode, *(path.read_text(errors="backslashreplace") for path in self.files))


def _child(
    what: list[str] | Callable[..., None],
    args: tuple[Any, ...],
    stdout: str,
    stderr: str,
    environment: dict[str, str],
    folder: Path | None,
) -> None:
    os.environ.update(environment)
    if folder:
        os.chdir(folder)
        sys.path.insert(0, str(folder))
    for path, number in ((stdout, 1), (stderr, 2)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    if callable(what):
        what(*args)
        return
    from avssl.cli import main

    main(what)


def fragile(arguments: list[str], steps: int, saves: int) -> None:
    """`avssl ARGUMENTS` in a process that dies of SIGKILL in its n-th step, or inside its n-th save: the files are
    written, the directory has not got its name. 0: never."""
    from avssl.cli import main
    from avssl.training import checkpoint
    from avssl.training.loop import Run

    step, write, count = Run._step, checkpoint._write, {"steps": 0, "saves": 0}

    def counted(name: str, last: int) -> None:
        count[name] += 1
        if count[name] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(run: Run, micros: list[Any]) -> None:
        step(run, micros)
        counted("steps", steps)

    def writing(*written: Any) -> None:
        write(*written)
        counted("saves", saves)

    Run._step, checkpoint._write = stepping, writing  # type: ignore[method-assign]
    main(arguments)


def avssl(logs: Path, *arguments: str, **options: Any) -> Ended:
    """Run a command to its end."""
    return Running(logs, arguments, **options).end()


def wait_until(condition: Callable[[], Any], timeout: float = 200.0) -> None:
    """Poll; AssertionError when it stays false."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


def updates_logged(out: Path) -> int:
    """The update of the last record in metrics.jsonl."""
    from avssl.training.meter import read_journal

    return max((r["update"] for r in read_journal(out)), default=0)


def outcome(out: Path) -> dict[str, Any]:
    """What a finished run promises to be the same: weights, the training state, records less timings, bad items."""
    from avssl.safeload import load_safetensors
    from avssl.training import checkpoint

    files = {n: load_safetensors(out / n) for n in ("weights.safetensors", "training.safetensors")}
    saved, notes = checkpoint.newest(out / "checkpoints")
    assert saved is not None and not notes
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("timing", None)
    meta = {k: v for k, v in saved.meta.items() if k != "offset"}
    report = json.loads((out / "report.json").read_text())
    bad = (out / "bad_files.csv").read_text() if (out / "bad_files.csv").exists() else ""
    return {
        "files": files,
        "state": dict(saved.tensors),
        "meta": meta,
        "records": records,
        "bad": bad,
        "report": {k: v for k, v in report.items() if k not in ("seconds", "memory_gib")},
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    if isinstance(a, Mapping):
        assert a.keys() == b.keys(), f"{where}: {sorted(a)} and {sorted(b)}"
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes(), (
            f"{where} differs"
        )
    else:
        assert a == b, f"{where}: {a!r} and {b!r}"


def children_of(pid: int) -> list[int]:
    """Pids of all descendants."""
    import psutil

    try:
        return [p.pid for p in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def alive(pids: Sequence[int]) -> list[int]:
    """Those that run (a zombie does not)."""
    import psutil

    out = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                out.append(pid)
        except psutil.NoSuchProcess:
            pass
    return out
