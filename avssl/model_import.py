"""An imported checkpoint as a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avssl.card import write_card
from avssl.data.targets import Codec
from avssl.files import write_json
from avssl.imports import Imported, build
from avssl.model import build_frontend, imported_tables, save_model


def write_imported(imported: Imported, out: Path) -> dict[str, Any]:
    """Write the model directory of an imported checkpoint; a short report of what was in it."""
    tables = imported_tables(imported)
    loss = build(imported)
    out.mkdir(parents=True, exist_ok=True)
    codec = Codec.load(imported.assets["targets"], loss.exclusive) if "targets" in imported.assets else None
    save_model(out, loss, build_frontend(tables, out), tables, codec)
    report = {
        "backbone": tables["backbone"]["name"],
        "loss": tables["loss"]["name"],
        "parameters": sum(p.numel() for p in loss.backbone.parameters()),
        "tensors": len(imported.tensors),
        "ignored": len(imported.ignored),
        "licence": imported.licence or "not stated",
        "source": imported.source,
    }
    write_json(out / "report.json", {"kind": "import", **report, "ignored": dict(imported.ignored)})
    write_card(out)
    return report
