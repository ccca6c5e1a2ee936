"""The same bits again: what torch must be told for that, and its refusal in our words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from avssl.errors import UsageError

REFUSAL = " does not have a deterministic implementation"  # torch's words, after the operation's name


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """While active, only algorithms that give the same bits again. Raises UsageError at an operation that has none.

    On a CPU they are all deterministic but for a few; on CUDA exact resume needs this, and it costs speed.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        operation, refused, _ = str(error).partition(REFUSAL)
        if not refused:
            raise
        raise UsageError(
            f"--deterministic: {operation} has no deterministic implementation on this device", fix="train without it"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
