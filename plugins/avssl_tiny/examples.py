"""Small instances for the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SOUND = {"seconds": 1.0}


def encoder(folder: Path) -> dict[str, Any]:
    return {"frontend": SOUND}


def cnn(folder: Path) -> dict[str, Any]:
    return {"backbone": {"name": "tiny_cnn", "widths": [4, 8], "dense": [16]}, "frontend": SOUND}


def taught(folder: Path) -> dict[str, Any]:
    """A student and a teacher of another size, with a head for two classes, saved in `folder`."""
    from avssl.model import build_backbone, build_frontend, build_loss, save_model

    tables = {"name": "teacher", "backbone": {"name": "tiny", "dim": 32}, "frontend": SOUND,
              "loss": {"name": "tiny_classify", "classes": 2}}  # fmt: skip
    save_model(folder / "teacher", build_loss(tables, build_backbone(tables)), build_frontend(tables, folder), tables)
    return {"backbone": {"name": "tiny"}, "frontend": SOUND, "loss": {"teacher": str(folder / "teacher")}}
