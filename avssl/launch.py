"""Several processes of one command, through torchrun with the flags that make signals and exit codes mean what we say.

By default torchrun dies of SIGUSR1 and SIGUSR2, leaving its processes behind, kills them 30 s after a SIGTERM, and
turns every exit code into 1. Here all watched signals are passed on, the processes have time to save, and the
command's own exit code comes back.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from avssl.errors import Exit, check
from avssl.training.signals import WATCHED

STATUS = "AVSSL_STATUS"  # a folder in which each process leaves its exit code


def launch(arguments: Sequence[str], processes: int, extra: Sequence[str] = (), grace: int = 600) -> int:
    """Run `avssl ARGUMENTS` in `processes` processes of this machine; the exit code that stands for all of them.

    extra: further flags of torchrun (`--nnodes=2 --rdzv-endpoint=HOST:PORT` for several machines). grace: seconds that
    the processes have to finish a step and save after a signal. Raises UsageError for impossible arguments.
    """
    check(processes > 0, f"-n {processes}: give at least one process", fix="avssl launch -n 2 -- pretrain ...")
    check(bool(arguments), "there is no command to launch", fix="avssl launch -n 2 -- pretrain ...")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say themselves what went wrong
    signals = ",".join(signal.Signals(n).name for n in WATCHED)
    with tempfile.TemporaryDirectory(prefix="avssl-launch-") as status:
        os.environ[STATUS] = status
        words = [
            f"--nproc-per-node={processes}",
            f"--signals-to-handle={signals}",
            f"--shutdown-timeout={grace}",
            *extra,
            "--no-python",
            sys.executable,
            "-c",
            "from avssl.launch import worker; worker()",
            *arguments,
        ]
        failed = False
        try:
            run(parse_args(words))
        except (ChildFailedError, SignalException):
            failed = True
        codes = {int(p.stem): json.loads(p.read_text(encoding="utf-8")) for p in Path(status).glob("*.json")}
    code = overall(codes, processes)
    return Exit.BUG if failed and code == Exit.OK else code


def overall(codes: Mapping[int, int], processes: int) -> int:
    """One exit code for all: 0 or 75 when all that could say so agree, else the first that tells a reason."""
    told = [codes[rank] for rank in sorted(codes)]
    reasons = [c for c in told if c not in (Exit.OK, Exit.BUG, Exit.STOPPED)]
    if reasons:
        return reasons[0]
    if Exit.BUG in told:
        return Exit.BUG
    if Exit.STOPPED in told:
        return Exit.STOPPED
    return Exit.OK if len(told) == processes else Exit.BUG


def worker() -> None:
    """One process of a launched command: runs it and leaves its exit code."""
    from avssl.cli import main

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: if the launcher is killed, stop and save
    code = int(Exit.BUG)
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(Exit.BUG if end.code else Exit.OK)
    finally:
        folder = os.environ.get(STATUS, "")
        if os.path.isdir(folder):
            target = Path(folder) / f"{os.environ.get('LOCAL_RANK', '0')}.json"
            target.write_text(json.dumps(int(code)), encoding="utf-8")
    sys.exit(0 if code == Exit.STOPPED else code)  # "stopped" is no failure: torchrun must not end the others for it


__all__ = ["launch", "overall", "worker"]
