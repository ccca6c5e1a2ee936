"""A model that was imported is deployed: nothing in it trains."""

from __future__ import annotations

from pathlib import Path

from avssl.imports import Imported
from avssl.model import build_backbone, build_loss, from_imported


def test_every_part_of_an_imported_model_is_in_evaluation_mode(tmp_path: Path) -> None:
    """A head that kept its dropout would predict something else each time."""
    tables = {"backbone": {"name": "tiny"}, "loss": {"name": "classify", "classes": 2, "dropout": 0.5}}
    tensors = build_loss(tables, build_backbone(tables)).state_dict()
    model = from_imported(Imported(tables["backbone"], tables["loss"], tensors), tmp_path)
    assert model.head is not None
    assert not any(m.training for part in (model.backbone, model.frontend, model.head) for m in part.modules())
