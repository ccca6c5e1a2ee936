"""Reading foreign checkpoint files without ever executing what is in them."""

from __future__ import annotations

import collections
import contextlib
import mmap
import pickle
import tarfile
import types
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from avssl.errors import CheckpointError

MAX_RATIO = 20  # a torch archive stores its members; more than this is a bomb
# torch.load knows the typed storages itself
STORAGES = frozenset({("torch", "UntypedStorage"), ("torch.storage", "UntypedStorage")})
_PLAIN = frozenset({
    ("collections", "OrderedDict"), ("collections", "defaultdict"), ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("torch", "device"), ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "complex"), ("builtins", "slice"),
    ("builtins", "range"),
})  # fmt: skip


class Inert(dict):
    """Stands for an object of a class that is not loaded: its state as a plain dictionary, and the class's name."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        if args or kwargs:
            self["__args__"] = [*args, *kwargs.items()]

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and all(s is None or isinstance(s, dict) for s in state):
            for part in state:
                self.update(part or {})
        elif isinstance(state, dict):
            self.update(state)
        else:
            self["__state__"] = state

    def append(self, value: Any) -> None:
        self.setdefault("__items__", []).append(value)

    def extend(self, values: Any) -> None:
        self.setdefault("__items__", []).extend(values)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Knows tensors and containers; every other class becomes an `Inert` one.

    The unpickler in pure Python: the one in C allocates whatever index a memo operation names.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _PLAIN or (module, name) in STORAGES:
            return super().find_class(module, name)
        if (module, name) in _OWN:
            return _OWN[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name.rpartition(".")[2], (Inert,), {"kind": f"{module}.{name}"})

    def load_build(self) -> None:
        """State for an inert object. The pickle's own rule would set attributes of functions and classes, for good."""
        state, instance = self.stack.pop(), self.stack[-1]
        if isinstance(instance, Inert):
            instance.__setstate__(state)
        elif not isinstance(instance, dict):  # attributes of a dictionary (torch's `_metadata`) carry nothing we need
            raise pickle.UnpicklingError(f"state for a {type(instance).__name__}")

    def refuse(self) -> None:
        raise pickle.UnpicklingError("an operation that no checkpoint needs")

    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4):
        dispatch[_code[0]] = refuse


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any) -> Any:
    """torch's `_rebuild_tensor_v2`, which enlarges a storage that is too small, with a check instead."""
    import torch

    last = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    available = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if min([offset, *size, *stride], default=0) < 0 or offset + last > available:
        raise pickle.UnpicklingError("a tensor reaches beyond its data")
    return torch._utils._rebuild_tensor_v2(storage, offset, tuple(size), tuple(stride), False, None)


def _data(data: Any, *rest: Any) -> Any:
    """A parameter is its tensor: hooks and attributes stay behind."""
    return data


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How Python 3 writes bytes into a Python 2 pickle; other codecs are code."""
    if encoding.replace("-", "").lower() != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    """A bytearray's content; `bytearray(n)` would take n bytes of memory."""
    if not args:
        return b""
    return args[0] if isinstance(args[0], bytes) else _encode(*args)


_OWN = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _data, ("torch._utils", "_rebuild_parameter_with_state"): _data,
    ("_codecs", "encode"): _encode, ("builtins", "bytearray"): _bytes, ("__builtin__", "bytearray"): _bytes,
}  # fmt: skip


def _pickle_module() -> types.SimpleNamespace:
    """What torch.load takes for `pickle`."""

    def load(file: Any, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()

    return types.SimpleNamespace(Unpickler=_Unpickler, load=load, __name__="avssl.safeload")


def load_torch(path: str | Path) -> Any:
    """The contents of a `torch.save` file, tensors on the CPU.

    First torch's own weights-only reader; a file that needs more (argparse.Namespace, OmegaConf, ...) is read by an
    unpickler that knows tensors and containers alone and turns every other object into an `Inert` dictionary.
    Raises CheckpointError for a file that is missing, damaged, no checkpoint, a program (TorchScript) or a bomb.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", fix="give the path of a checkpoint")
    try:
        size, suspect = _look_inside(path)
        value = None
        if not suspect:
            with contextlib.suppress(Exception):  # not weights alone, or damaged: the second reader decides
                value = torch.load(path, map_location="cpu", weights_only=True)
        if value is None:
            value = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_pickle_module())
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
    `bytearray(n)` makes it take n bytes. Raises CheckpointError for what is not even opened."""
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
            return stored, content.find(b"bytearray") >= 0
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
            pickles = b"".join(archive.read(m) for m in members if m.filename.endswith(".pkl"))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged archive: {error}", fix="download it again") from None
    return max(size, stored), b"bytearray" in pickles or start != b"PK\x03\x04"


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
    """`Inert` objects and ordered containers as plain dicts, lists and tensors; what is shared stays shared.

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
    if id(value) not in known:
        known[id(value)] = None  # being made
        known[id(value)] = (
            {k: _plain(v, known, depth + 1) for k, v in value.items()}
            if isinstance(value, dict)
            else [_plain(v, known, depth + 1) for v in value]
        )
    return known[id(value)]
