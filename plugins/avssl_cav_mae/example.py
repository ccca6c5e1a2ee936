"""The smallest sensible CAV-MAE, for the conformance suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def backbone(folder: Path) -> dict[str, Any]:
    """Half a second of sound and a picture of 32 pixels; 60,000 parameters."""
    return {
        "backbone": {
            "image_size": 32,
            "audio_frames": 64,
            "mel_bins": 32,
            "dim": 32,
            "depth": 1,
            "shared_depth": 1,
            "heads": 4,
        },
        "frontend": {"mel_bins": 32, "frames": 64, "image_size": 32, "ensemble": False},
    }


def loss(folder: Path) -> dict[str, Any]:
    return {"loss": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}


def clip(folder: Path) -> dict[str, Any]:
    """Three pictures of a clip, each with a window of its sound."""
    clips = {"together": True, "pictures": 3, "span": 96}
    return {"loss": {"depth": 1}, "frontend": {**backbone(folder)["frontend"], **clips}}
