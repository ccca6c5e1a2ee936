"""Reading a file never executes it, changes nothing, and takes no more memory than the file."""

from __future__ import annotations

import argparse
import collections
import io
import json
import os
import pickle
import random
import struct
import sys
import tarfile
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import says
from runs import FORKS, Running
from safetensors.torch import save_file

from avssl.errors import CheckpointError
from avssl.safeload import Inert, load_safetensors, load_torch, plain

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


def in_zip(content: bytes, path: Path) -> Path:
    """A torch archive whose pickle is `content`."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, content if member.filename.endswith("data.pkl") else old.read(member))
    return path


def in_legacy(content: bytes, path: Path) -> Path:
    """The format of torch before 1.6."""
    head = b"".join(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM))
    path.write_bytes(head + content + pickle.dumps([], 2))
    return path


def raw(content: bytes, path: Path) -> Path:
    path.write_bytes(content)
    return path


class Reduced:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def attacks(victim: Path) -> dict[str, bytes]:
    """Pickles that would create `victim`, or leave something behind in this process."""
    shell = f"touch {victim}"
    code = f"open({str(victim)!r}, 'w').close()"
    four = b"\x80\x04"
    import functools
    import subprocess

    return {
        "reduce-os.system": pickle.dumps(Reduced(os.system, shell), 2),
        "reduce-eval": pickle.dumps(Reduced(eval, code), 2),
        "reduce-exec-nested": pickle.dumps({"model": [{"w": Reduced(exec, code)}]}, 2),
        "reduce-popen": pickle.dumps(Reduced(subprocess.Popen, ["touch", str(victim)]), 4),
        "reduce-partial": pickle.dumps(Reduced(functools.partial, os.system, shell), 2),
        "reduce-torch.load": pickle.dumps(Reduced(torch.load, str(victim)), 2),
        "reduce-mkdir-pathlib": pickle.dumps(Reduced(Path.touch, victim), 4),
        "stack-global": four + text("posix") + text("system") + b"\x93" + text(shell) + b"\x85R.",
        "stack-global-dotted": four + text("torch.storage") + text("os.system") + b"\x93" + text(shell) + b"\x85R.",
        "stack-global-dotted-storage": four
        + text("torch")
        + text("serialization.os.system")
        + b"\x93"
        + text(shell)
        + b"\x85R.",
        "inst": b"(" + b"S'" + shell.encode() + b"'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'" + shell.encode() + b"'\no.",
        "newobj": b"\x80\x02cos\nsystem\n" + text(shell) + b"\x85\x81.",
        "newobj-ex": four + b"cos\nsystem\n" + text(shell) + b"\x85}\x92.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\ncos\n__dict__\n"
        + text("system")
        + b"\x86R"
        + text(shell)
        + b"\x85R.",
        "build-defaults": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}"
        + text("__defaults__")
        + text(str(victim))
        + b"\x85s\x86b.",
        "build-own": b"\x80\x02ctorch._utils\n_rebuild_parameter\nN}" + text("__doc__") + text("hacked") + b"s\x86b.",
        "build-class": b"\x80\x02ctorch\nUntypedStorage\nN}" + text("hacked") + text("x") + b"s\x86b.",
        "codec": b"\x80\x02c_codecs\nencode\n" + text("x") + text("this") + b"\x86R.",
        "persistent-id": b"\x80\x02"
        + text("module")
        + b"cos\nsystem\n"
        + text("/etc/passwd")
        + text("x")
        + b"tQ.".replace(b"t", b"\x87"),
        "persistent-text": b"Pos.system\n.",
        "extension": b"\x80\x02\x82\x01.",
    }


def run_attack(wrap: Callable[[bytes, Path], Path], name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    path = wrap(attacks(victim)[name], tmp_path / "evil.pt")
    try:
        result = load_torch(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert not callable(result) and isinstance(result, (dict, str, bytes, list, tuple, type(None), Inert)), result
        plain(result)
    assert not victim.exists(), "it was executed"
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    assert torch._utils._rebuild_parameter.__doc__ != "hacked" and not hasattr(torch.UntypedStorage, "hacked")


@pytest.mark.parametrize("name", sorted(attacks(Path("victim"))))
@pytest.mark.parametrize("wrap", [in_zip, in_legacy, raw])
def test_malicious_pickles(wrap: Callable[[bytes, Path], Path], name: str, tmp_path: Path) -> None:
    run_attack(wrap, name, tmp_path)


def test_attacks_are_real(tmp_path: Path) -> None:
    """The same bytes do harm when they are simply unpickled; otherwise the tests above would prove nothing."""
    worked = 0
    for name, content in attacks(tmp_path / "victim").items():
        if name.startswith(("build", "codec", "persistent", "extension", "reduce-torch", "getattr")):
            continue
        (tmp_path / "victim").unlink(missing_ok=True)
        try:
            result = pickle.loads(content)
            result() if callable(result) else None
        except Exception:
            pass
        time.sleep(0.05 if "popen" in name else 0)
        worked += (tmp_path / "victim").exists()
    assert worked >= 10


# -- configuration objects become plain dictionaries ----------------------------------------------------------------
class Setting:
    """Stands for OmegaConf and its kind: classes that the reader may not have."""

    def __init__(self) -> None:
        self.lr, self.nested = 0.1, argparse.Namespace(x=[1, {"y": 2}])


@pytest.mark.parametrize("legacy", [False, True])
def test_foreign_objects_become_dictionaries(legacy: bool, tmp_path: Path) -> None:
    weight = torch.arange(6.0).view(2, 3)
    content = {
        "model": collections.OrderedDict(a=weight, b=weight.T, p=torch.nn.Parameter(weight[0])),
        "cfg": Setting(),
        "args": argparse.Namespace(name="x"),
        "dtype": torch.float16,
        "path": bytearray(b"abc"),
        "list": [1, (2, "three")],
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    loaded = plain(load_torch(tmp_path / "a.pt"))
    assert torch.equal(loaded["model"]["a"], weight) and torch.equal(loaded["model"]["b"], weight.T)
    assert torch.equal(loaded["model"]["p"], weight[0])
    assert loaded["cfg"] == {"lr": 0.1, "nested": {"x": [1, {"y": 2}]}} and loaded["args"] == {"name": "x"}
    assert loaded["dtype"] is torch.float16 and bytes(loaded["path"]) == b"abc" and loaded["list"] == [1, [2, "three"]]


def test_nodes_of_omegaconf_become_what_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They know their parents: taken as they are, they contain themselves."""
    kinds = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, name in (("omegaconf.dictconfig", "DictConfig"), ("omegaconf.nodes", "AnyNode")):
        kinds[name] = type(name, (), {"__module__": module})
        monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(**{name: kinds[name]}))

    def node(kind: str, parent: object, **held: object) -> object:
        out = kinds[kind]()
        out.__dict__ |= {"_metadata": {"flags": None}, "_parent": parent, **held}
        return out

    root = node("DictConfig", None, _content={})
    inner = node("DictConfig", root, _content={})
    inner._content |= {"lr": node("AnyNode", inner, _val=0.5), "steps": node("AnyNode", inner, _val="${a.b}")}
    root._content |= {"model": inner, "none": node("DictConfig", root, _content=None)}
    torch.save({"cfg": root}, tmp_path / "a.pt")
    loaded = plain(load_torch(tmp_path / "a.pt"))
    assert loaded == {"cfg": {"model": {"lr": 0.5, "steps": "${a.b}"}, "none": None}}
    root._content = root
    torch.save({"cfg": root}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="contain themselves"):
        plain(load_torch(tmp_path / "a.pt"))


# -- bombs ----------------------------------------------------------------------------------------------------------
def test_a_zip_bomb(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(CheckpointError) as caught:
        load_torch(path)
    assert str(caught.value) == (
        f"{path}: {path.stat().st_size} bytes would unpack to 50000000 (this is no checkpoint: do not trust its source)"
    )


def test_a_program_is_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "scripted.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(CheckpointError) as caught:
        load_torch(path)
    assert (
        str(caught.value)
        == f"{path}: a TorchScript archive, which is a program (where you trust it, save its state_dict())"
    )


def test_a_folder_is_no_checkpoint_file(tmp_path: Path) -> None:
    text = f"{tmp_path}: a folder, not a checkpoint file (give the file; a run directory needs no --format)"
    with says(CheckpointError, text):
        load_torch(tmp_path)


def test_a_tar_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    text = f"{path}: the tar format of torch before 0.2 is not read (load and save it with a newer torch)"
    with says(CheckpointError, text):
        load_torch(path)


BOMBS = {
    "bytearray": b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # bytearray(2**36)
    "bytearray8": b"\x80\x05\x96" + struct.pack("<Q", 2**36) + b"x.",
    "memo": b"\x80\x02Nr" + struct.pack("<I", 2**32 - 2) + b".",
    "bytes8": b"\x80\x04\x8e" + struct.pack("<Q", 2**36) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "storage": b"\x80\x02ctorch\nUntypedStorage\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
    "long": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
}


@pytest.mark.parametrize("wrap", [in_zip, in_legacy])
def test_memory_bombs(wrap: Callable[[bytes, Path], Path], tmp_path: Path) -> None:
    """64 GiB each, if it were believed: each is refused, and no memory is taken."""
    for name, content in BOMBS.items():
        wrap(content, tmp_path / f"{name}.pt")
    ended = Running(tmp_path / "logs", _load_all, str(tmp_path)).end()
    assert ended.code == 0, ended.stderr
    assert set(BOMBS) - set(ended.stdout.split()) <= {"memo", "frame"}  # these two read as nothing, at no cost


def _load_all(folder: str) -> None:
    import resource

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted(Path(folder).glob("*.pt")):
        try:
            load_torch(path)
        except CheckpointError:
            print(path.stem)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown
    assert grown < 300_000, f"{grown} kB"


# -- endless work -----------------------------------------------------------------------------------------------------
def nested(levels: int) -> bytes:
    """A tuple of a tuple twice, of a tuple twice, ...: hashing it visits 2^levels, each of five bytes doubles that."""
    return b")" + b"q\x07h\x07\x86" * levels


def huge(text_length: int) -> bytes:
    return b"X" + struct.pack("<I", text_length) + b"a" * text_length


KEY, MANY = "a key that is nested without end", "its objects multiply far beyond its size"
WORK = {  # what a pickle asks for, and what is said of it
    "key": (b"\x80\x02}" + nested(60) + b"Ns.", KEY),
    "keys": (b"\x80\x02}(" + nested(60) + b"Nu.", KEY),
    "dict": (b"\x80\x02(" + nested(60) + b"Nd.", KEY),
    "deep-key": (b"\x80\x02})" + b"\x85" * 2_000_000 + b"Ns.", KEY),  # would overflow the C stack
    "set": (b"\x80\x02c__builtin__\nset\n](" + nested(60) + b"e\x85R.", KEY),
    "set-4": (b"\x80\x04\x8f(" + nested(60) + b"\x90.", KEY),
    "frozenset": (b"\x80\x04(" + nested(60) + b"\x91.", KEY),
    "ordered": (b"\x80\x02ccollections\nOrderedDict\n](" + nested(60) + b"N\x86e\x85R.", KEY),
    "counter": (b"\x80\x02ccollections\nCounter\n](" + nested(60) + b"e\x85R.", KEY),
    "storage": (b"\x80\x02(" + text("storage") + b"ctorch\nFloatStorage\n" + nested(60) + text("cpu") + b"K\x01tQ.", KEY),
    "colliding": (
        b"\x80\x02}("
        + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little", signed=True) + b"N" for n in range(50_000))
        + b"u.",
        "a key that is a huge number",
    ),
    "shared-state": (
        b"\x80\x02]}(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(20_000)) + b"uq\x010("
        + b"cargparse\nNamespace\nq\x020" + b"h\x02)\x81h\x01b" * 20_000 + b"e.",
        MANY,
    ),
    "shared-text": (
        b"\x80\x02" + huge(1_000_000) + b"q\x010c_codecs\nencode\nq\x020" + b"h\x02h\x01\x85R0" * 100_000 + b"N.",
        MANY,
    ),
    "classes": (
        b"\x80\x02" + b"".join(f"cm\n{n:x}\n0".encode() for n in range(100_000)) + b"N.",
        "it names more than 10000 classes",
    ),
}  # fmt: skip
ENDLESS = {  # what is no checkpoint for a simpler reason
    "range": b"\x80\x02c__builtin__\nset\nc__builtin__\nrange\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R\x85R.",
    "size": b"\x80\x02ctorch\nSize\nc__builtin__\nrange\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R\x85R.",
    "default": b"\x80\x02ccollections\ndefaultdict\nNc__builtin__\nrange\n\x8a\x06\x00\x00\x00\x00\x00\x10\x85R\x86R.",
}


def _load_and_tell(folder: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
    for path in sorted(Path(folder).glob("*.pt")):
        began = time.process_time()  # of ours: the machine may be busy with others
        with pytest.raises(CheckpointError) as caught:
            load_torch(path)
        print(json.dumps([path.name, str(caught.value), time.process_time() - began]))


@pytest.mark.parametrize("wrap", [in_zip, in_legacy, raw])
def test_endless_work_is_refused_at_once(wrap: Callable[[bytes, Path], Path], tmp_path: Path) -> None:
    """In a process of its own, which may take eight minutes for all; without the checks each of them takes for ever."""
    for name, (content, _) in WORK.items():
        wrap(content, tmp_path / f"{name}.pt")
    for name, content in ENDLESS.items():
        wrap(content, tmp_path / f"{name}.pt")
    ended = Running(tmp_path / "logs", _load_and_tell, str(tmp_path)).end(timeout=480)
    assert ended.code == 0, ended.stderr[-2000:]
    told = {
        Path(name).stem: (message, seconds) for name, message, seconds in map(json.loads, ended.stdout.splitlines())
    }
    assert told.keys() == WORK.keys() | ENDLESS.keys()
    for name, (_, reason) in WORK.items():
        assert told[name][0] == f"{tmp_path / name}.pt: {reason} (this is no checkpoint: do not trust its source)"
    why = "not a readable checkpoint: UnpicklingError: the elements of a range"
    for name in ENDLESS:
        text = f"{tmp_path / name}.pt: {why} (download it again, or name its format with --format)"
        assert told[name][0] == text
    assert max(seconds for _, seconds in told.values()) < 60


def test_storage_keys_are_looked_at_too(tmp_path: Path) -> None:
    """torch looks the keys of a legacy file's last pickle up."""
    head = b"".join(pickle.dumps(x, 2) for x in (MAGIC, PROTOCOL, SYSTEM, {}))
    path = raw(head + b"\x80\x02](" + nested(60) + b"e.", tmp_path / "x.pt")
    with pytest.raises(CheckpointError) as caught:
        load_torch(path)
    assert str(caught.value) == f"{path}: {KEY} (this is no checkpoint: do not trust its source)"


@pytest.mark.parametrize("name", ["key", "deep-key", "range"])
def test_endless_work_is_real(name: str, tmp_path: Path) -> None:
    """The same bytes hang or crash a process that simply unpickles them."""
    content = WORK[name][0] if name in WORK else ENDLESS[name]
    begun = FORKS.Event()
    process = FORKS.Process(target=_unpickle, args=(content, begun))
    process.start()
    try:
        assert begun.wait(60)
        process.join(3)
        assert process.exitcode != 0  # None: it is still at it
    finally:
        process.kill()


def _unpickle(content: bytes, begun: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    begun.set()
    pickle.loads(content)


def test_what_real_checkpoints_hold_is_read_as_ever(tmp_path: Path) -> None:
    content = {
        "model": collections.OrderedDict(a=torch.ones(2)),
        "size": torch.Size([2, 3]),
        "set": {1, "two", (3, 4)},
        "frozen": frozenset({1, 2}),
        "default": collections.defaultdict(list, {"x": [1]}),
        "counts": collections.Counter("hello"),
        ("a", ("tuple", 3)): 2**80,
        "args": argparse.Namespace(x=1),
    }
    for protocol in (2, 4):
        torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
        loaded = load_torch(tmp_path / "a.pt")
        assert torch.equal(loaded["model"].pop("a"), torch.ones(2)) and dict(loaded.pop("args")) == {"x": 1}
        assert loaded == {
            **{k: v for k, v in content.items() if k not in ("model", "args")},
            "model": {},
        }


def test_a_tensor_beyond_its_data(tmp_path: Path) -> None:
    """torch's own rebuilding would enlarge the storage and hand out whatever lies in memory."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(2), "other": argparse.Namespace()}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        (content,) = (archive.read(m) for m in archive.namelist() if m.endswith("data.pkl"))
    assert content.count(b"K\x02\x85") == 1  # size (2,)
    for evil in (content, content.replace(b"argparse", b"builtins").replace(b"Namespace", b"frozenset")):
        path = in_zip(evil.replace(b"K\x02\x85", b"M\xff\xff\x85"), tmp_path / "long.pt")
        reason = "not a readable checkpoint: UnpicklingError: a tensor reaches beyond its data"
        with says(CheckpointError, f"{path}: {reason} (download it again, or name its format with --format)"):
            load_torch(path)


def test_billion_laughs_and_cycles() -> None:
    laugh: list[Any] = ["ha"]
    for _ in range(60):
        laugh = [laugh, laugh]
    result = plain(laugh)  # shared, not multiplied
    assert result[0] is result[1]
    cycle: dict[str, Any] = {}
    cycle["self"] = [cycle]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for evil in (cycle, deep):
        text = (
            "its objects contain themselves, or are nested too deeply (this is no checkpoint: do not trust its source)"
        )
        with says(CheckpointError, text):
            plain(evil)
    while deep:  # or its destructor recurses
        deep = deep[0]


@pytest.mark.parametrize(
    "content", [b"", b"P", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18, b"\x80", b"\x80\x02.", b"hello", b"\0" * 4096]
)
def test_garbage(content: bytes, tmp_path: Path) -> None:
    path = raw(content, tmp_path / "x.pt")
    for reader in (load_torch, load_safetensors):
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            reader(path)


# -- safetensors ----------------------------------------------------------------------------------------------------
def tensors_file(path: Path, header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return raw(struct.pack("<Q", len(content) if length is None else length) + content + data, path)


F = "F32"
HEADERS: dict[str, tuple[Any, int | None]] = {
    "overlapping": (
        {
            "a": {"dtype": F, "shape": [4], "data_offsets": [0, 16]},
            "b": {"dtype": F, "shape": [2], "data_offsets": [8, 16]},
        },
        None,
    ),
    "hole": ({"a": {"dtype": F, "shape": [2], "data_offsets": [8, 16]}}, None),
    "beyond": ({"a": {"dtype": F, "shape": [8], "data_offsets": [0, 32]}}, None),
    "backwards": ({"a": {"dtype": F, "shape": [4], "data_offsets": [16, 0]}}, None),
    "wrong-size": ({"a": {"dtype": F, "shape": [5], "data_offsets": [0, 16]}}, None),
    "overflow": ({"a": {"dtype": F, "shape": [2**32, 2**32, 4], "data_offsets": [0, 16]}}, None),
    "negative": ({"a": {"dtype": F, "shape": [-4], "data_offsets": [0, 16]}}, None),
    "dtype": ({"a": {"dtype": "Q9", "shape": [4], "data_offsets": [0, 16]}}, None),
    "no-json": (b"{" * 100, None),
    "deep": (b"[" * 100_000 + b"]" * 100_000, None),
    "list": ([1, 2], None),
    "huge-header": ({}, 2**62),
    "header-beyond": ({}, 10_000),
    "not-utf8": (b'{"\xff": 1}', None),
}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_absurd_safetensors(name: str, tmp_path: Path) -> None:
    header, length = HEADERS[name]
    path = tensors_file(tmp_path / "x.safetensors", header, length=length)
    with pytest.raises(CheckpointError) as caught:
        load_safetensors(path)
    assert str(caught.value).startswith(f"{path}: damaged safetensors file: ") and str(caught.value).endswith(
        "(restore it from a copy)"
    )


# -- mutations ------------------------------------------------------------------------------------------------------
def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(data)) if data else 0
        how = rng.randrange(6)
        if how == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1 and data:
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x2E, 0x52, 0x62, 0x93, 0x96, 0x72, 0x8E))
        elif how == 2:
            del data[at : at + rng.randrange(1, 64)]
        elif how == 3:
            data[at:at] = rng.randbytes(rng.randrange(1, 16))
        elif how == 4:
            data[at : at + 8] = struct.pack("<q", rng.choice((-1, 0, 2**31, 2**40, 2**62, len(data))))
        else:
            source = rng.randrange(len(data)) if data else 0
            data[at : at + 32] = data[source : source + 32]
    return bytes(data[: rng.randrange(len(data))] if data and rng.random() < 0.1 else data)


def seeds_of(kind: str, folder: Path) -> tuple[list[bytes], Callable[[Path], Any]]:
    folder.mkdir(exist_ok=True)
    content = {"model": {"a": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.float16)}, "epoch": 3}
    rich = {**content, "args": argparse.Namespace(x=1, y=[2, {"z": (3, "w")}]), "cfg": Setting()}
    if kind == "safetensors":
        save_file(content["model"], folder / "s")
        return [(folder / "s").read_bytes()], load_safetensors
    found = []
    for value in (content, rich):
        torch.save(value, folder / "t", _use_new_zipfile_serialization=kind == "zip")
        found.append((folder / "t").read_bytes())
    if kind == "zip-pickle":  # mutations inside the pickle of a sound archive go deeper
        return [zipfile.ZipFile(io.BytesIO(_saved(v))).read("archive/data.pkl") for v in (content, rich)], load_torch
    return found, load_torch


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _fuzz(kind: str, folder: str, count: int, seed: int) -> None:
    import resource

    rng, here = random.Random(seed), Path(folder)
    contents, read = seeds_of(kind, here / kind)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for n in range(count):
        mutated = mutate(rng.choice(contents), rng)
        path = here / f"{kind}.bin"
        in_zip(mutated, path) if kind == "zip-pickle" else path.write_bytes(mutated)
        began = time.process_time()
        try:
            read(path)
        except CheckpointError:
            refused += 1
        assert time.process_time() - began < 20, f"mutation {n} took long"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base
    assert grown < 500_000, f"{grown} kB"
    print(refused)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "count"), [("zip", 4000), ("zip-pickle", 4000), ("legacy", 4000), ("safetensors", 4000)]
)
def test_mutations(kind: str, count: int, tmp_path: Path) -> None:
    """Either it loads or it is refused, in a process of its own with a time limit: no crash, no hang, no memory."""
    ended = Running(tmp_path / "logs", _fuzz, kind, str(tmp_path), count, 7).end(timeout=850)
    assert ended.code == 0, ended.stderr[-2000:]
    assert count * 0.2 < int(ended.stdout.split()[-1]) <= count  # the mutations do reach something


def test_a_few_mutations(tmp_path: Path) -> None:
    for kind in ("zip", "zip-pickle", "legacy", "safetensors"):
        ended = Running(tmp_path / "logs", _fuzz, kind, str(tmp_path), 60, 3).end()
        assert ended.code == 0, ended.stderr[-2000:]
