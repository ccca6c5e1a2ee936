"""Is this machine ready: versions, devices, decoders tried for real, memory, plugins; and how to mend what is not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avssl import __version__

EXTRAS = {
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "umap": "umap",
    "faiss": "faiss",
    "wandb": "wandb",
    "mlflow": "mlflow",
}  # module -> the extra that brings it
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}  # distributions whose module is named otherwise
MEMORY, DISK, FILES = 2.0, 2.0, 1024  # GiB, GiB, open files: below these a run gets into trouble


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. state: "ok", "missing" (optional, absent) or "bad" (something will not work)."""

    name: str
    state: str
    value: str
    fix: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at everything. folder: where runs would be written (default: here)."""
    folder = folder or Path.cwd()
    groups: list[Callable[[], Iterator[Finding]]] = [versions, devices, decoders, lambda: room(folder), plugins]
    return [finding for group in groups for finding in group()]


def versions() -> Iterator[Finding]:
    """Python and every package that avssl needs, imported; and the optional ones."""
    from packaging.requirements import Requirement

    yield Finding("avssl", "ok", __version__)
    yield Finding("python", "ok", platform.python_version())
    yield Finding("system", "ok", platform.platform())
    needed = [r for r in map(Requirement, importlib.metadata.requires("avssl") or ()) if r.marker is None]
    for requirement in sorted(needed, key=lambda r: r.name):
        yield _package(requirement.name, str(requirement.specifier))
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(module, "missing", "not installed", f"pip install 'avssl[{extra}]'")
        else:
            yield _imported(module, module)


def _package(name: str, specifier: str) -> Finding:
    from packaging.specifiers import SpecifierSet

    fix = f"pip install '{name}{specifier}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "bad", "not installed", fix)
    if not SpecifierSet(specifier).contains(version, prereleases=True):
        return Finding(name, "bad", f"{version}, but {specifier} is needed", fix)
    return _imported(name, MODULES.get(name, name.replace("-", "_")), fix)


def _imported(name: str, module: str, fix: str = "") -> Finding:
    try:
        importlib.import_module(module)
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        version = "installed"
    except Exception as error:  # a broken binary raises OSError, RuntimeError, ...
        return Finding(name, "bad", f"does not import: {_line(error)}", fix or f"pip install --force-reinstall {name}")
    return Finding(name, "ok", version)


def devices() -> Iterator[Finding]:
    """What torch can compute on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "cpu", "ok", f"{cores} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            try:
                works = bool((torch.ones(8, device=f"cuda:{i}") @ torch.ones(8, device=f"cuda:{i}")).item() == 8)
                reason = "a product of ones is wrong"
            except RuntimeError as error:
                works, reason = False, _line(error)
            value = f"{torch.cuda.get_device_name(i)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
            yield Finding(
                f"cuda:{i}",
                "ok" if works else "bad",
                value if works else f"{value}: {reason}",
                "" if works else "install a torch built for this GPU: https://pytorch.org/get-started/locally",
            )
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        yield Finding(
            "cuda",
            "bad",
            "this machine has an NVIDIA driver, this torch has no CUDA",
            "install a torch with CUDA: https://pytorch.org/get-started/locally",
        )
    else:
        yield Finding("cuda", "missing", "none; training runs on the CPU")
    if torch.backends.mps.is_available():
        yield Finding("mps", "ok", "available")


# -- decoders -------------------------------------------------------------------------------------------------------
def decoders() -> Iterator[Finding]:
    """Each kind of file written, then read with the decoders that training uses."""
    import numpy as np

    tone = (0.3 * np.sin(np.arange(8000) / 10)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="avssl-doctor-") as folder:
        for suffix in ("wav", "flac", "ogg", "mp3"):
            yield _tried(suffix, Path(folder) / f"tone.{suffix}", lambda path: _write_sound(path, tone), _read_sound)
        for suffix in ("png", "jpg"):
            yield _tried(suffix, Path(folder) / f"grey.{suffix}", _write_picture, _read_picture)
        yield _tried(
            "mp4 (pictures and sound)", Path(folder) / "both.mp4", lambda path: _write_video(path, tone), _read_video
        )


def _tried(name: str, path: Path, write: Callable[[Path], None], read: Callable[[Path], str]) -> Finding:
    try:
        write(path)
    except Exception as error:  # an encoder that was left out of this build says nothing about decoding
        return Finding(f"decode {name}", "missing", f"not tried, it cannot be written here: {_line(error)}")
    try:
        return Finding(f"decode {name}", "ok", read(path))
    except Exception as error:
        return Finding(f"decode {name}", "bad", _line(error), "pip install --force-reinstall av soundfile pillow")


def _write_sound(path: Path, tone: Any) -> None:
    import soundfile

    soundfile.write(path, tone, 8000)


def _write_picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 24), (90, 90, 90)).save(path)


def _write_video(path: Path, tone: Any) -> None:
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for _ in range(10):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))))
        container.mux(pictures.encode())
        for start in range(0, 8000, 1000):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1000], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())


def _read_sound(path: Path) -> str:
    from avssl.data.clip import AudioRequest
    from avssl.data.decode import decode_audio

    part = decode_audio(str(path), AudioRequest(0.0, None))
    if not 0.05 < abs(part.samples).mean() < 1:
        raise ValueError("the samples are not what was written")
    return f"{part.samples.shape[-1]} samples at {part.rate} Hz"


def _read_picture(path: Path) -> str:
    from avssl.data.clip import FramesRequest
    from avssl.data.decode import decode_frames

    pixels = decode_frames(str(path), FramesRequest(count=1)).pixels
    if not 85 < pixels.mean() < 95:
        raise ValueError("the pixels are not what was written")
    return f"{pixels.shape[2]}x{pixels.shape[1]}"


def _read_video(path: Path) -> str:
    return f"{_read_picture(path)}, {_read_sound(path)}"


# -- room and plugins -----------------------------------------------------------------------------------------------
def room(folder: Path) -> Iterator[Finding]:
    """Memory, disk, temporary files, open files."""
    import psutil

    memory = psutil.virtual_memory().available / 2**30
    yield Finding(
        "memory",
        "ok" if memory >= MEMORY else "bad",
        f"{memory:.1f} GiB available",
        "" if memory >= MEMORY else "close other programs, or lower data.batch_size and --workers",
    )
    disk = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    yield Finding(
        f"disk of {folder}",
        "ok" if disk >= DISK and writable else "bad",
        f"{disk:.1f} GiB free" + ("" if writable else ", read-only"),
        "" if disk >= DISK and writable else "free some space, or give --out a directory on another disk",
    )
    temporary = Path(tempfile.gettempdir())
    free = shutil.disk_usage(temporary).free / 2**30
    if temporary.resolve() != folder.resolve():
        yield Finding(
            f"disk of {temporary}",
            "ok" if free >= 0.2 else "bad",
            f"{free:.1f} GiB free",
            "" if free >= 0.2 else "set TMPDIR to a directory with more room",
        )
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        enough = soft >= FILES or soft == resource.RLIM_INFINITY
        yield Finding("open files", "ok" if enough else "bad", str(soft), "" if enough else f"ulimit -n {4 * FILES}")
    except ImportError:
        pass


def plugins() -> Iterator[Finding]:
    """Each plugin, and every class that its entries name, imported."""
    from avssl.entries import resolve
    from avssl.registry import registry

    reg = registry()
    for plugin in reg.plugins:
        name = f"plugin {plugin.name}"
        if plugin.disabled:
            yield Finding(name, "missing", "switched off", "unset AVSSL_DISABLE_PLUGINS")
        elif plugin.error:
            yield Finding(
                name, "bad", plugin.error, f"mend or uninstall {plugin.label}; `--without {plugin.name}` leaves it out"
            )
        else:
            broken = []
            for kind, entry in plugin.entries:
                for target in _targets(reg.get(kind, entry)):
                    try:
                        resolve(target)
                    except Exception as error:
                        broken.append(f"{kind} {entry}: {_line(error)}")
            yield Finding(
                name,
                "bad" if broken else "ok",
                broken[0] if broken else f"{len(plugin.entries)} entries, {plugin.label}",
                f"install what {plugin.label} needs" if broken else "",
            )


def _targets(entry: Any) -> list[str]:
    """The import strings of an entry."""
    return sorted({v for v in asdict(entry).values() if isinstance(v, str) and re.fullmatch(r"[\w.]+:[\w.]+", v)})


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


__all__ = ["Finding", "examine"]
