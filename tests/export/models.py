"""Small random models of a few architectures, and clips for them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from avssl.batch import Batch, Stream
from avssl.data.targets import Codec
from avssl.model import build_backbone, build_frontend, build_loss

RATE = 16000


def clips(count: int, seconds: float = 1.0, seed: int = 0) -> Batch:
    """Noise with a tone that differs from clip to clip, mono at 16 kHz, on the int16 grid."""
    generator = torch.Generator().manual_seed(seed)
    length = round(seconds * RATE)
    time = torch.arange(length) / RATE
    tone = torch.stack([torch.sin(6.283 * (200 + 300 * i) * time) * (time > 0.2) for i in range(count)])
    wave = 0.3 * tone + 0.05 * torch.randn(count, length, generator=generator)
    wave = (wave * 32768).round().clamp(-32768, 32767) / 32768
    return Batch(
        tuple(map(str, range(count))),
        torch.zeros(count, dtype=torch.long),
        {"audio": Stream(wave)},
        Stream(torch.arange(count) % 3),
    )


def tiny_model(
    backbone: dict[str, Any] | None = None, frontend: dict[str, Any] | None = None, loss: dict[str, Any] | None = None
) -> SimpleNamespace:
    """A classifier of three classes with weights large enough to spread its outputs."""
    torch.manual_seed(3)
    tables = {
        "name": "test",
        "backbone": {"name": "tiny", **(backbone or {})},
        "frontend": {"seconds": 1.0, **(frontend or {})},
        "loss": {"name": "tiny_classify", "classes": 3, **(loss or {})},
    }
    built = build_loss(tables, build_backbone(tables)).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in built.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) - 40)
            if name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) * 50 + 50)
    return SimpleNamespace(
        backbone=built.backbone,
        frontend=build_frontend(tables, Path()).eval(),
        head=built.head,
        codec=Codec("index", ("cat", "dog", "rain")),
        licence="CC0",
        recipe=tables,
        path=Path("test"),
    )
