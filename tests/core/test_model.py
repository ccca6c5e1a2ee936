"""A model that was imported is deployed: nothing in it trains."""

from __future__ import annotations

from pathlib import Path

from avssl.frontend import Frontend
from avssl.imports import Imported
from avssl.model import Model, build_backbone, build_loss, from_imported


def test_the_digest_changes_with_a_file_of_the_frontend(tmp_path: Path) -> None:
    """Two tokenizers under one name give different embeddings."""
    tables = {"backbone": {"name": "tiny"}, "frontend": {"tokenizer": "assets/tokenizer.txt"}}
    (tmp_path / "assets").mkdir()
    backbone = build_backbone(tables)
    digests = set()
    for content in ("a", "b", "a"):
        (tmp_path / "assets" / "tokenizer.txt").write_text(content)
        digests.add(Model(backbone, Frontend(None), None, None, tables, tmp_path).digest)
    assert len(digests) == 2


def test_every_part_of_an_imported_model_is_in_evaluation_mode(tmp_path: Path) -> None:
    """A head that kept its dropout would predict something else each time."""
    tables = {"backbone": {"name": "tiny"}, "loss": {"name": "classify", "classes": 2, "dropout": 0.5}}
    tensors = build_loss(tables, build_backbone(tables)).state_dict()
    model = from_imported(Imported(tables["backbone"], tables["loss"], tensors), tmp_path)
    assert model.head is not None
    assert not any(m.training for part in (model.backbone, model.frontend, model.head) for m in part.modules())
