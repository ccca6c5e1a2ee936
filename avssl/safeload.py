"""Reading foreign checkpoint files without ever executing what is in them."""

from __future__ import annotations

import collections
import contextlib
import io
import mmap
import tarfile
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from avssl.errors import CheckpointError
from avssl.unpickler import Absurd, Inert, Screen, Unpickler

MAX_RATIO = 20  # a torch archive stores its members; more than this is a bomb
PICKLES = 5  # that begin a file of torch before 1.6: magic number, version, machine, the objects, the storages


def _pickle_module(budget: int) -> types.SimpleNamespace:
    """What torch.load takes for `pickle`."""
    limited = type("Limited", (Unpickler,), {"budget": budget})

    def load(file: Any, **kwargs: Any) -> Any:
        return limited(file, **kwargs).load()

    return types.SimpleNamespace(Unpickler=limited, load=load, __name__="avssl.safeload")


def load_torch(path: str | Path) -> Any:
    """The contents of a `torch.save` file, tensors on the CPU.

    First torch's own weights-only reader; a file that needs more (argparse.Namespace, OmegaConf, ...) is read by an
    unpickler that knows tensors and containers alone and turns every other object into an `Inert` dictionary.
    Raises CheckpointError for a file that is missing, damaged, no checkpoint, a program (TorchScript) or a bomb.
    """
    import torch

    path = Path(path)
    if path.is_dir():
        raise CheckpointError(
            f"{path}: a folder, not a checkpoint file", fix="give the file; a run directory needs no --format"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", fix="give the path of a checkpoint")
    try:
        size, suspect = _look_inside(path)
        value = None
        if not suspect:
            with contextlib.suppress(Exception):  # not weights alone, or damaged: the second reader decides
                value = torch.load(path, map_location="cpu", weights_only=True)
        if value is None:
            value = torch.load(
                path, map_location="cpu", weights_only=False, pickle_module=_pickle_module(_budget(size))
            )
        _check_sizes(path, value, size)
        return value
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: not a readable checkpoint: {type(error).__name__}: {reason}",
            fix="download it again, or name its format with --format",
        ) from None


def _look_inside(path: Path) -> tuple[int, bool]:
    """Bytes that the file holds when unpacked, and whether torch's own reader must be spared it: a
    `bytearray(n)` makes it take n bytes. Raises CheckpointError for what is not even opened, or asks for endless work."""
    stored = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(4)
    if tarfile.is_tarfile(path):
        raise CheckpointError(
            f"{path}: the tar format of torch before 0.2 is not read", fix="load and save it with a newer torch"
        )
    if not zipfile.is_zipfile(path):
        if not stored:
            raise CheckpointError(f"{path}: the file is empty", fix="download it again")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = content.find(b"bytearray") >= 0
        with path.open("rb") as file:
            return stored, _screen(path, [file] * PICKLES, stored) or found
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            size = sum(m.file_size for m in members)
            if size > MAX_RATIO * max(stored, 1):
                raise CheckpointError(
                    f"{path}: {stored} bytes would unpack to {size}",
                    fix="this is no checkpoint: do not trust its source",
                )
            if any(m.filename.endswith(("constants.pkl", ".py")) for m in members):
                raise CheckpointError(
                    f"{path}: a TorchScript archive, which is a program",
                    fix="where you trust it, save its state_dict()",
                )
            pickles = [archive.read(m) for m in members if m.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged archive: {error}", fix="download it again") from None
    suspect = _screen(path, [io.BytesIO(p) for p in pickles], size)
    return max(size, stored), suspect or any(b"bytearray" in p for p in pickles) or start != b"PK\x03\x04"


def _screen(path: Path, pickles: Sequence[BinaryIO], size: int) -> bool:
    """Whether one of the pickles is more than torch's own reader should be given. Raises CheckpointError for one that
    asks for more work than its size explains."""
    suspect = False
    for file in pickles:
        screen = Screen(file)
        screen.budget = _budget(size)
        try:
            screen.load()
        except Absurd as error:
            raise CheckpointError(f"{path}: {error}", fix="this is no checkpoint: do not trust its source") from None
        except Exception:  # a damaged pickle may raise anything; the second reader says what
            return True
        suspect = suspect or screen.foreign
    return suspect


def _budget(size: int) -> int:
    return 1_000_000 + 4 * size


def _check_sizes(path: Path, value: Any, limit: int) -> None:
    """The tensors of a file are no larger than the file: torch enlarges a storage that a tensor reaches beyond."""
    import torch

    seen: set[int] = set()
    storages: dict[int, int] = {}
    waiting = [value]
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, dict):
            waiting += [*x.keys(), *x.values()]
        elif isinstance(x, (list, tuple, set, frozenset)):
            waiting += x
        elif isinstance(x, torch.Tensor) and x.layout == torch.strided and x.device.type == "cpu":
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
    if sum(storages.values()) > limit:
        raise CheckpointError(
            f"{path}: its tensors take {sum(storages.values())} bytes, the file has {limit}", fix="download it again"
        )


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Tensors of a safetensors file, on the CPU. Raises CheckpointError, naming the file, when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", fix="give the path of a model") from None
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: damaged safetensors file: {reason}", fix="restore it from a copy") from None


def plain(value: Any) -> Any:
    """`Inert` objects and ordered containers as plain dicts, lists and tensors; what is shared stays shared. OmegaConf's
    nodes, which know their parents, become what they hold; interpolations stay strings.

    Raises CheckpointError for data that contain themselves or are nested beyond reason.
    """
    return _plain(value, {}, 0)


def _plain(value: Any, known: dict[int, Any], depth: int) -> Any:
    if not isinstance(value, (dict, list, tuple, collections.deque)):
        return value
    if depth > 200 or known.get(id(value), known) is None:
        raise CheckpointError(
            "its objects contain themselves, or are nested too deeply",
            fix="this is no checkpoint: do not trust its source",
        )
    if isinstance(value, Inert) and value.kind.startswith("omegaconf.") and value.keys() & {"_content", "_val"}:
        return _plain(value.get("_content", value.get("_val")), known, depth + 1)
    if id(value) not in known:
        known[id(value)] = None  # being made
        known[id(value)] = (
            {k: _plain(v, known, depth + 1) for k, v in value.items()}
            if isinstance(value, dict)
            else [_plain(v, known, depth + 1) for v in value]
        )
    return known[id(value)]


__all__ = ["Inert", "load_safetensors", "load_torch", "plain"]
