"""Reading foreign checkpoint files without ever executing what is in them."""

from __future__ import annotations

import collections
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

from avssl.errors import CheckpointError

MAX_RATIO = 20  # a torch archive stores its members; more than this is a bomb
_ALLOWED = {
    ("collections", "OrderedDict"), ("collections", "defaultdict"),
    ("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.serialization", "_get_layout"), ("torch", "Size"), ("torch", "device"),
    ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "complex"), ("builtins", "bytearray"),
    ("builtins", "slice"), ("builtins", "range"),
    ("_codecs", "encode"),
}  # fmt: skip


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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name, (Inert,), {"kind": f"{module}.{name}"})


def _pickle_module() -> types.SimpleNamespace:
    """What torch.load takes for `pickle`."""
    def load(file: Any, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()

    return types.SimpleNamespace(Unpickler=_Unpickler, load=load, __name__="avssl.safeload")


def load_torch(path: str | Path) -> Any:
    """The contents of a `torch.save` file, tensors on the CPU.

    First torch's own weights-only reader; a file that needs more (argparse.Namespace, OmegaConf, ...) is read by an
    unpickler that knows tensors and containers alone and turns every other object into an `Inert` dictionary.
    Raises CheckpointError for a file that is missing, damaged, no checkpoint, or a zip bomb.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", fix="give the path of a checkpoint")
    _check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # not weights alone, or damaged: the second reader decides
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_pickle_module())
    except Exception as error:  # a damaged file may raise anything
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: not a readable checkpoint: {type(error).__name__}: {reason}",
                              fix="download it again, or name its format with --format") from None


def _check_zip(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(i.file_size for i in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged archive: {error}", fix="download it again") from None
    if size > MAX_RATIO * max(path.stat().st_size, 1):
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes would unpack to {size}",
                              fix="this is no checkpoint: do not trust its source")


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """Tensors of a safetensors file, on the CPU. Raises CheckpointError, naming the file, when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file", fix="give the path of a model") from None
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: damaged safetensors file: {reason}", fix="restore it from a copy") from None


def plain(value: Any) -> Any:
    """`Inert` objects and ordered containers as plain dicts, lists and tensors."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, collections.deque)):
        return [plain(v) for v in value]
    return value
