"""Tables of the smallest useful models, for the conformance suite and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONV_LAYERS = [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]
_SMALL = {"dim": 32, "depth": 2, "heads": 4, "dropout": 0.0, "attention_dropout": 0.0}
_AUDIO = {
    "conv_layers": CONV_LAYERS,
    "positions_depth": 2,
    "positions_width": 11,
    "positions_groups": 4,
    "layerdrop": 0.0,
}
_VISION = {"image_size": 32, "patch": 8}
_TEXT = {"vocabulary": 261, "mask": 260, "max_tokens": 64}
_TWO = {"mlp_ratio": 2.0, "mlp_dropout": 0.0}


def audio(_: Path) -> dict[str, Any]:
    return {"backbone": {"name": "data2vec_audio", "ffn": 64, **_SMALL, **_AUDIO}, "frontend": {"seconds": 1.0}}


def vision(_: Path) -> dict[str, Any]:
    return {"backbone": {"name": "data2vec_vision", "ffn": 64, **_SMALL, **_VISION}, "frontend": {"size": 32}}


def text(_: Path) -> dict[str, Any]:
    return {"backbone": {"name": "data2vec_text", "ffn": 64, **_SMALL, **_TEXT}, "frontend": {"max_tokens": 64}}


def audio2(_: Path) -> dict[str, Any]:
    own = {"prenet_dropout": 0.0, "prenet_layerdrop": 0.0, "prenet_depth": 1}
    return {"backbone": {"name": "data2vec2_audio", **_SMALL, **_TWO, **_AUDIO, **own}, "frontend": {"seconds": 1.0}}


def vision2(_: Path) -> dict[str, Any]:
    return {
        "backbone": {"name": "data2vec2_vision", **_SMALL, **_TWO, **_VISION, "prenet_depth": 1},
        "frontend": {"size": 32},
    }


def text2(_: Path) -> dict[str, Any]:
    return {
        "backbone": {"name": "data2vec2_text", **_SMALL, **_TWO, **_TEXT, "embedding_dropout": 0.0},
        "frontend": {"max_tokens": 64},
    }


def data2vec(folder: Path) -> dict[str, Any]:
    return {**audio(folder), "loss": {"targets": {"top_k": 2}, "blocks": {"count": 0.5, "min_patches": 2}}}


def data2vec2(folder: Path) -> dict[str, Any]:
    decoder = {"dim": 16, "groups": 4, "kernel": 3, "layers": 2, "input_dropout": 0.0}
    return {
        **vision2(folder),
        "loss": {
            "targets": {"top_k": 2, "mean": ["layer"]},
            "decoder": decoder,
            "class_weight": 0.01,
            "teacher": {"own_local": True},
            "mask": {"clones": 2, "probability": 0.6, "length": 2, "inverse": True},
        },
    }


def ctc(folder: Path) -> dict[str, Any]:
    return {**audio(folder), "loss": {"classes": 5}}


def audio_classify(folder: Path) -> dict[str, Any]:
    return {**audio(folder), "loss": {"classes": 2, "spans": {"probability": 0.3, "length": 2}}}


def text_classify(folder: Path) -> dict[str, Any]:
    return {**text(folder), "loss": {"classes": 2, "dropout": 0.0}}


def image_classify(folder: Path) -> dict[str, Any]:
    return {**vision(folder), "loss": {"classes": 2}}
