"""The smallest sensible BEATs, for the conformance suite; a fresh tokenizer and teacher where a loss needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "ffn": 48,
    "patch_dim": 16,
    "position_kernel": 8,
    "position_groups": 4,
    "buckets": 16,
    "max_distance": 40,
}
PREDICTOR = {"depth": 1, "ffn": 48}


def backbone(folder: Path) -> dict[str, Any]:
    """30,000 parameters, a second of sound."""
    return {"backbone": dict(SIZES), "frontend": {"seconds": 1.0}}


def random_labels(folder: Path) -> dict[str, Any]:
    return {"loss": {"tokenizer": {"codes": 16, "code_dim": 8}, "predictor": PREDICTOR}}


def labels(folder: Path) -> dict[str, Any]:
    table = {"name": "beats_tokenizer", "codes": 16, "code_dim": 8}
    return {"loss": {"tokenizer": _written(folder / "tokenizer", table), "predictor": PREDICTOR}}


def tokenizer(folder: Path) -> dict[str, Any]:
    teacher = _written(folder / "teacher", {"name": "beats"})
    return {"loss": {"teacher": teacher, "codes": 16, "code_dim": 8, "estimator": PREDICTOR}}


def _written(folder: Path, loss_table: dict[str, Any]) -> str:
    """A model directory with fresh weights (and a codebook that counts as started)."""
    import torch

    from avssl.model import build_backbone, build_frontend, build_loss, save_model
    from avssl_beats.distill import TokenizerDistillation

    tables = {"backbone": {"name": "beats", **SIZES}, "loss": loss_table, "frontend": {}}
    loss = build_loss(tables, build_backbone(tables))
    if loss_table["name"] == "beats_tokenizer":
        assert isinstance(loss, TokenizerDistillation)
        book = loss.tokenizer.codebook
        book.start(torch.randn(64, book.weight.shape[1]), 1, torch.Generator().manual_seed(0))
    save_model(folder, loss, build_frontend(tables, folder), tables)
    return str(folder)
