"""A small real system, registered like a stranger's: sound and pictures, tokens with padding, views, a fused stream.

`install(folder)` writes an entry point for it, as `pip install` would; the `toy_model` fixtures use it.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avssl import BackboneEntry, hookimpl
from avssl.backbone import Backbone, Features, Grid
from avssl.batch import Batch, Stream, item
from avssl.data.clip import AudioRequest, Clip, FramesRequest, Request, Row
from avssl.frontend import Frontend
from avssl.nn.attention import attention, pad_bias
from avssl.schema import config

RATE = 8000  # Hz: the files of these tests are written at this rate, nothing is resampled
WINDOW = 400  # samples per spectrum: 50 ms
TESTS = Path(__file__).resolve().parent


@config
class ToyConfig:
    dim: int = 16
    depth: int = 2


@config
class ToyFrontendConfig:
    seconds: float = 4.0  # longest view; longer recordings have several
    frames: int = 2  # views of a video


class ToyFrontend(Frontend):
    """20 log energies every 50 ms; pictures averaged down to 8 x 8."""

    modalities = frozenset({"audio", "vision"})

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        wishes = {"audio": AudioRequest(0.0, self.config.seconds), "vision": FramesRequest(count=1)}
        return Request({m: wishes[m] for m in row.parts if m in wishes})

    def views(self, row: Row) -> Sequence[Request]:
        if "vision" in row.parts and isinstance(row.parts["vision"], tuple):
            n = min(self.config.frames, len(row.parts["vision"]))
            audio = {"audio": AudioRequest(0.0, self.config.seconds)} if "audio" in row.parts else {}
            return [Request({**audio, "vision": FramesRequest(indices=(i,))}, view=f"frame {i}") for i in range(n)]
        if set(row.parts) != {"audio"} or row.duration is None or row.duration <= self.config.seconds:
            return [self.plan(row, None)]
        starts = [i * self.config.seconds for i in range(math.ceil(row.duration / self.config.seconds))]
        return [Request({"audio": AudioRequest(s, self.config.seconds)}, view=f"{s:07.1f} s") for s in starts]

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        clip, streams = clips[0], {}
        if "audio" in clip.parts:
            wave = torch.from_numpy(np.ascontiguousarray(clip.parts["audio"].samples.mean(0)))
            short = max(0, WINDOW - len(wave))
            streams["audio"] = torch.nn.functional.pad(wave, (0, short))[: len(wave) // WINDOW * WINDOW or WINDOW]
        if "vision" in clip.parts:
            pixels = torch.from_numpy(np.array(clip.parts["vision"].pixels[0]))  # (H, W, 3)
            streams["vision"] = nn.functional.adaptive_avg_pool2d(pixels.permute(2, 0, 1).float() / 255, 8)
        return item(clip.id, clip.seed, clip.target, **streams)

    def batch(self, batch: Batch) -> Batch:
        if "audio" not in batch.streams:
            return batch
        audio = batch.need("audio")
        spectrum = torch.fft.rfft(audio.x.unfold(1, WINDOW, WINDOW)).abs()[..., 1:]  # (B, T, 200)
        logs = (spectrum.unflatten(-1, (20, 10)).mean(-1) + 1e-3).log()  # (B, T, 20)
        pad = None if audio.pad is None else audio.pad[:, WINDOW - 1 :: WINDOW]
        return batch.with_streams(audio=Stream(logs, pad))


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor, pad: Tensor | None) -> Tensor:  # (B, N, D)
        q, k, v = self.qkv(self.norm1(x))[:, None].chunk(3, -1)
        x = x + self.proj(attention(q, k, v, pad_bias(pad, x.dtype))[:, 0])
        return x + self.mlp(self.norm2(x))


class Toy(Backbone):
    """Linear patches, a class token, transformer blocks; "joint" is the same blocks over both modalities."""

    modalities = frozenset({"audio", "vision"})
    streams = ("audio", "vision", "joint")

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        d = config.dim
        self.audio, self.vision = nn.Linear(20, d), nn.Conv2d(3, d, 4, 4)
        self.cls = nn.Parameter(torch.zeros(1, 1, d))
        self.trunk = nn.ModuleList(Block(d) for _ in range(config.depth))
        self.norm = nn.LayerNorm(d)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.trunk

    def grid(self, batch: Batch) -> dict[str, Grid]:
        out = {}
        if "audio" in batch.streams:
            out["audio"] = Grid((batch.streams["audio"].x.shape[1],), ("time",), prefix=1)
        if "vision" in batch.streams:
            out["vision"] = Grid((2, 2), ("y", "x"), prefix=1)
        return out

    def forward(
        self, batch: Batch, hide: Any = None, keep: Any = None, layers: Any = None, only: Any = None
    ) -> Features:
        size, parts, pads = len(batch), {}, {}
        if "audio" in batch.streams:
            audio = batch.streams["audio"]
            parts["audio"] = self.audio(audio.x)
            if audio.pad is not None:
                pads["audio"] = audio.pad
        if "vision" in batch.streams:
            parts["vision"] = self.vision(batch.streams["vision"].x).flatten(2).mT
        if parts.keys() == {"audio", "vision"}:
            parts["joint"] = torch.cat([parts["audio"], parts["vision"]], 1)
            if "audio" in pads:
                pads["joint"] = torch.cat([pads["audio"], pads["audio"].new_zeros(parts["vision"].shape[:2])], 1)
        out = Features({}, {}, {}, self.grid(batch), {})
        for name in parts if only is None else [n for n in parts if n in only]:
            x = torch.cat([self.cls.expand(size, -1, -1), parts[name]], 1)
            pad = nn.functional.pad(pads[name], (1, 0)) if name in pads else None
            states = []
            for block in self.trunk:
                x = block(x, pad)
                states.append(x)
            x = self.norm(x)
            mask = torch.ones_like(x[..., :1]) if pad is None else (~pad).to(x.dtype)[..., None]
            out.tokens[name] = x  # type: ignore[index]
            out.pooled[name] = (x * mask)[:, 1:].sum(1) / mask[:, 1:].sum(1)  # type: ignore[index]
            if pad is not None:
                out.pad[name] = pad  # type: ignore[index]
            if layers:
                out.layers[name] = states  # type: ignore[index]
        return out


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    return [
        BackboneEntry(
            name="toy",
            summary="For tests",
            cls="toy:Toy",
            config="toy:ToyConfig",
            frontend="toy:ToyFrontend",
            frontend_config="toy:ToyFrontendConfig",
            modalities=frozenset({"audio", "vision"}),
            optional=frozenset({"audio", "vision"}),
            supports=frozenset({"layers:blocks", "joint"}),
        )
    ]


def install(folder: Path) -> None:
    """Register this module through a real entry point in `folder`, which has to be on sys.path."""
    info = folder / "avssl_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: avssl-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[avssl]\ntoy = toy\n")


def environment(folder: Path) -> dict[str, str]:
    """The environment of a process in which the toy is installed."""
    here = [str(folder), str(TESTS), str(TESTS.parent), str(TESTS.parent / "plugins")]
    path = os.pathsep.join([*here, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def make_model(folder: Path, classes: Sequence[str] = (), kind: str = "index", dim: int = 16, seed: int = 0) -> Path:
    """A model directory of random weights, with a head when classes are given."""
    from avssl.builtin.classify import Classify
    from avssl.builtin.configs import ClassifyConfig, ContrastiveConfig
    from avssl.builtin.contrastive import Contrastive
    from avssl.data.targets import Codec
    from avssl.model import save_model

    torch.manual_seed(seed)
    backbone = Toy(ToyConfig(dim=dim))
    table: dict[str, Any] = {"name": "toy/test", "backbone": {"name": "toy", "dim": dim, "depth": 2}, "frontend": {}}
    if classes:
        loss: Any = Classify(backbone, ClassifyConfig(classes=len(classes), streams=("audio", "vision")))
        table["loss"] = {"name": "classify", "classes": len(classes), "streams": ["audio", "vision"]}
    else:
        loss, table["loss"] = (
            Contrastive(backbone, ContrastiveConfig(streams=("audio", "vision"))),
            {"name": "contrastive", "streams": ["audio", "vision"]},
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, loss, ToyFrontend(ToyFrontendConfig()), table, Codec(kind, tuple(classes)) if classes else None)
    return folder


def write_media(folder: Path, items: int = 12, classes: int = 3, seed: int = 0, uneven: bool = True) -> Path:
    """Tones and coloured pictures whose class can be heard and seen, in unequal lengths; returns the manifest."""
    import soundfile
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(items):
        label = i % classes
        seconds = 1.0 + (0.5 * (i % 4) if uneven else 0.0)
        time = np.arange(int(seconds * RATE)) / RATE
        wave = np.sin(2 * np.pi * 300 * (label + 1) * time) + 0.3 * rng.normal(size=len(time))
        soundfile.write(folder / f"{i:04d}.wav", (0.3 * wave).astype(np.float32), RATE)
        colour = np.clip(np.eye(3)[label % 3] * 180 + rng.integers(0, 60, (12, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(colour).save(folder / f"{i:04d}.png")
        lines.append(
            {
                "id": f"{i:04d}",
                "audio": f"{i:04d}.wav",
                "vision": f"{i:04d}.png",
                "label": f"class {label}",
                "split": "train" if i < items * 2 // 3 else "test",
                "fold": i // classes % 3,
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return folder / "manifest.jsonl"


def rows(manifest: Path) -> list[Row]:
    """The rows of such a manifest, without the manifest reader."""
    out = []
    for line in manifest.read_text().splitlines():
        x = json.loads(line)
        parts = {m: str(manifest.parent / x[m]) for m in ("audio", "vision") if m in x}
        out.append(Row(id=x["id"], parts=parts, labels=(x["label"],), split=x["split"], fold=x["fold"]))
    return out


if __name__ == "__main__":
    sys.exit("import me")
