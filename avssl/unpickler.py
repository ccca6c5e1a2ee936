"""An unpickler that executes nothing, and whose work is bounded by the size of what it reads.

It knows tensors and containers; an object of any other class becomes an `Inert` dictionary. It is the one in pure
Python: the one in C allocates whatever index a memo operation names.

A pickle can refer again to what it has built, so that a few bytes ask for endless work: the hash of a tuple of tuples of
tuples ... visits each as often as it is reached, a shared dictionary is copied into a million objects. Keys are therefore
looked at before they are hashed, and everything that copies pays from a budget.
"""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any, BinaryIO, ClassVar

PLAIN = frozenset({
    ("torch.serialization", "_get_layout"), ("torch", "device"), ("builtins", "complex"),
    ("torch", "UntypedStorage"), ("torch.storage", "UntypedStorage"),  # torch.load knows the typed ones itself
})  # fmt: skip
OWN = {
    ("torch._utils", "_rebuild_tensor_v2"): "tensor", ("torch._utils", "_rebuild_tensor"): "tensor",
    ("torch._utils", "_rebuild_parameter"): "data", ("torch._utils", "_rebuild_parameter_with_state"): "data",
    ("_codecs", "encode"): "encode", ("builtins", "bytearray"): "bytes", ("__builtin__", "bytearray"): "bytes",
    ("builtins", "set"): "set", ("__builtin__", "set"): "set", ("builtins", "frozenset"): "frozenset",
    ("__builtin__", "frozenset"): "frozenset", ("torch", "Size"): "size", ("collections", "OrderedDict"): "ordered",
    ("collections", "defaultdict"): "default", ("collections", "Counter"): "counter",
}  # fmt: skip
KEY_PARTS = 1000  # of a key, counted as often as they are reached
KEY_RANGE = 2**61 - 1  # Python hashes integers modulo this: larger ones may all collide
CLASSES = 10_000  # different ones in one pickle
DIMENSIONS = 64


class Absurd(pickle.UnpicklingError):
    """Work out of all proportion to the size of the pickle: no program writes that by accident."""


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


class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """See above. `budget`: elements and characters that may be copied beyond what the file spells out."""

    budget = 10_000_000
    stack: list[Any]  # these four are the base class's
    append: Any
    pop_mark: Any
    readline: Any
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[attr-defined]

    def __init__(self, file: BinaryIO, **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self._classes: dict[tuple[str, str], Any] = {}

    def load(self) -> Any:
        value = super().load()
        if isinstance(value, list):  # of storage keys, which torch will look up
            for key in value:
                check_key(key)
        return value

    def pay(self, count: int) -> None:
        """Raises Absurd when the budget is spent."""
        self.budget -= count
        if self.budget < 0:
            raise Absurd("its objects multiply far beyond its size")

    # -- classes -------------------------------------------------------------------------------------------------
    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in PLAIN:
            return super().find_class(module, name)
        if (module, name) in OWN:
            return getattr(self, f"make_{OWN[module, name]}")
        if module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype):
            return torch.__dict__[name]
        return self.inert(module, name)

    def inert(self, module: str, name: str) -> type[Inert]:
        """The class that stands for another one."""
        if (module, name) not in self._classes:
            if len(self._classes) >= CLASSES:
                raise Absurd(f"it names more than {CLASSES} classes")
            kind = type(name.rpartition(".")[2], (Inert,), {"kind": f"{module}.{name}"})
            self._classes[module, name] = kind
        return self._classes[module, name]

    # -- what stands for functions that it may call ----------------------------------------------------------------
    @staticmethod
    def make_tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any) -> Any:
        """torch's `_rebuild_tensor_v2`, which enlarges a storage that is too small, with a check instead."""
        import torch

        if not all(isinstance(x, (tuple, list)) and len(x) <= DIMENSIONS for x in (size, stride)):
            raise pickle.UnpicklingError("a tensor whose shape is none")
        last = sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
        available = storage._untyped_storage.nbytes() // storage.dtype.itemsize
        if min([offset, *size, *stride], default=0) < 0 or offset + last > available:
            raise pickle.UnpicklingError("a tensor reaches beyond its data")
        return torch._utils._rebuild_tensor_v2(storage, offset, tuple(size), tuple(stride), False, None)  # type: ignore[arg-type]

    @staticmethod
    def make_data(data: Any, *rest: Any) -> Any:
        """A parameter is its tensor: hooks and attributes stay behind."""
        return data

    def make_encode(self, text: str, encoding: str = "latin1") -> bytes:
        """How Python 3 writes bytes into a Python 2 pickle; other codecs are code."""
        if encoding.replace("-", "").lower() != "latin1":
            raise pickle.UnpicklingError(f"encoding {encoding!r}")
        self.pay(len(text))
        return text.encode("latin1")

    def make_bytes(self, *args: Any) -> bytes:
        """A bytearray's content; `bytearray(n)` would take n bytes of memory."""
        if not args:
            return b""
        return args[0] if isinstance(args[0], bytes) else self.make_encode(*args)

    def make_set(self, values: Any = ()) -> set[Any]:
        return set(self.keys(values))

    def make_frozenset(self, values: Any = ()) -> frozenset[Any]:
        return frozenset(self.keys(values))

    def make_size(self, values: Any = ()) -> Any:
        import torch

        return torch.Size(self.counted(values))

    def make_ordered(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        out: OrderedDict[Any, Any] = OrderedDict()
        for key, value in self.counted(pairs):
            check_key(key)
            out[key] = value
        return out

    def make_default(self, factory: Any = None, pairs: Any = ()) -> OrderedDict[Any, Any]:
        """What a missing key would call stays behind."""
        return self.make_ordered(pairs)

    def make_counter(self, counts: Any = ()) -> dict[Any, Any]:
        if isinstance(counts, dict):
            self.pay(len(counts))
            return dict(counts)
        return dict(Counter(self.keys(counts)))

    def counted(self, values: Any) -> Any:
        """A container's elements, paid for; anything else might have no end."""
        if not isinstance(values, (list, tuple, set, frozenset)):
            raise pickle.UnpicklingError(f"the elements of a {type(values).__name__}")
        self.pay(len(values))
        return values

    def keys(self, values: Any) -> Any:
        for value in self.counted(values):
            check_key(value)
        return values

    # -- operations ------------------------------------------------------------------------------------------------
    def load_build(self) -> None:
        """State for an inert object. The pickle's own rule would set attributes of functions and classes, for good."""
        state, instance = self.stack.pop(), self.stack[-1]
        for part in state if isinstance(state, tuple) else (state,):
            self.pay(len(part) if isinstance(part, dict) else 0)
        if isinstance(instance, Inert):
            instance.__setstate__(state)
        elif not isinstance(instance, dict):  # attributes of a dictionary (torch's `_metadata`) carry nothing we need
            raise pickle.UnpicklingError(f"state for a {type(instance).__name__}")

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple) or getattr(function, "__name__", "") == "UntypedStorage":  # of any size
            raise pickle.UnpicklingError(f"a call of {function!r}")
        self.append(function(*self.counted(args)))

    def load_newobj(self) -> None:
        """An object of a class, without a call of its `__init__`."""
        _, kind = self.stack.pop(), self.stack.pop()
        if not (isinstance(kind, type) and issubclass(kind, Inert)):
            raise pickle.UnpicklingError(f"an object of {kind!r}")
        self.append(kind.__new__(kind))

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    def load_inst(self) -> None:
        """A call, as Python 2 wrote it: the class in text, the arguments above the mark."""
        names = [self.readline()[:-1].decode("ascii") for _ in range(2)]
        args = tuple(self.pop_mark())
        self.stack += [self.find_class(*names), args]
        self.load_reduce()

    def load_obj(self) -> None:
        """A call: the class and the arguments above the mark."""
        function, *args = self.pop_mark()
        self.stack += [function, tuple(args)]
        self.load_reduce()

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError(f"items for a {type(target).__name__}")
        for i in range(0, len(items), 2):
            check_key(items[i])
            target[items[i]] = items[i + 1]

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise pickle.UnpicklingError(f"elements for a {type(target).__name__}")
        target.update(self.keys(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()  # sets `append` to the stack below the mark
        self.append(frozenset(self.keys(items)))

    def load_binpersid(self) -> None:
        check_key(self.stack[-1])  # torch looks its parts up
        pickle._Unpickler.load_binpersid(self)  # type: ignore[attr-defined]

    def refuse(self) -> None:
        raise pickle.UnpicklingError("an operation that no checkpoint needs")

    dispatch.update({getattr(pickle, _name.upper())[0]: _own for _name, _own in {
        "build": load_build, "reduce": load_reduce, "newobj": load_newobj, "newobj_ex": load_newobj_ex,
        "inst": load_inst, "obj": load_obj, "setitem": load_setitem, "setitems": load_setitems, "dict": load_dict,
        "additems": load_additems, "frozenset": load_frozenset, "binpersid": load_binpersid, "bytearray8": refuse,
        "next_buffer": refuse, "readonly_buffer": refuse, "ext1": refuse, "ext2": refuse, "ext4": refuse,
    }.items()})  # fmt: skip


class Screen(Unpickler):
    """Reads a pickle without its tensors, to find out what it asks for. foreign: it names classes that torch's own reader
    would refuse, or make at a size of the pickle's choice."""

    foreign = False

    def find_class(self, module: str, name: str) -> Any:
        import torch

        of_torch = module == "torch" and (isinstance(torch.__dict__.get(name), torch.dtype) or name.endswith("Storage"))
        if module.startswith("torch"):
            self.foreign = self.foreign or not (of_torch or (module, name) in PLAIN or (module, name) in OWN)
            return super().inert(module, name)
        return super().find_class(module, name)

    def inert(self, module: str, name: str) -> type[Inert]:
        self.foreign = True
        return super().inert(module, name)

    def persistent_load(self, pid: Any) -> Any:
        return Inert()


def check_key(key: Any) -> None:
    """Raises Absurd for a key whose hash would take for ever, or overflow the stack."""
    waiting, parts = [key], 0
    while waiting:
        part = waiting.pop()
        if isinstance(part, (tuple, frozenset)):
            waiting += part
        elif isinstance(part, int) and not -KEY_RANGE < part < KEY_RANGE:
            raise Absurd("a key that is a huge number")
        parts += 1
        if parts + len(waiting) > KEY_PARTS:
            raise Absurd("a key that is nested without end")
