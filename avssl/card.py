"""The model card: README.md of a model directory, written from the files that lie there."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avssl.data.clip import Row
from avssl.files import write_text
from avssl.words import counted

CARD = "README.md"
CLASSES = 30  # listed by name; more are counted


def write_card(folder: Path) -> Path:
    """Write README.md of a run or an imported model. Only what its files say: nothing is guessed or praised."""
    path = folder / CARD
    write_text(path, model_card(folder))
    return path


def model_card(folder: Path) -> str:
    """The Markdown of the card. Raises CheckpointError when the directory is no model."""
    from avssl.data.manifest import read_rows
    from avssl.model import read_tables

    tables, report = read_tables(folder), _json(folder / "report.json")
    manifest = folder / "manifest.parquet"
    rows = read_rows(str(manifest)) if manifest.is_file() else []
    evaluations = [_json(p) for p in sorted((folder / "evaluations").glob("*.json"))]
    parts = [
        f"# {folder.resolve().name}",
        _what(tables, report),
        _use(),
        _table("Model", _model(tables, report)),
        _table("Front-end", _flat(tables.get("frontend", {}))),
        _data(rows, report),
        _training(tables, report, _json(folder / "data.json")),
        _metrics(report, evaluations),
        _licence(tables, report),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _what(tables: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    backbone, loss = tables["backbone"]["name"], tables["loss"]["name"]
    if report.get("kind") == "import":
        return f"A `{backbone}` model (objective `{loss}`), imported from a published checkpoint."
    how = {"finetune": "fine-tuned with", "pretrain": "pretrained with"}.get(str(report.get("kind")), "trained with")
    recipe = f", recipe `{tables['name']}`" if tables.get("name") else ""
    version = tables.get("avssl_version", "")
    return f"A `{backbone}` model, {how} the `{loss}` objective{recipe}. Written by avssl {version}.".replace(" .", ".")


def _use() -> str:
    return (
        "```bash\navssl report MODEL\navssl embed FOLDER --model MODEL --out vectors.parquet\n"
        "avssl evaluate --model MODEL --data DATA --task retrieval\n```\n\nMODEL is this directory; "
        "`recipe.toml` holds every setting of the run."
    )


def _model(tables: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {f"backbone.{k}": v for k, v in tables["backbone"].items()}
    if report.get("parameters"):
        out["parameters of the backbone"] = f"{report['parameters']:,}"
    return out


def _data(rows: Sequence[Row], report: Mapping[str, Any]) -> str:
    if not rows:
        return ""
    splits = Counter(r.split or "no split" for r in rows)
    modalities = Counter(m for r in rows for m in r.parts)
    known = [r.duration for r in rows if r.duration is not None]
    labels = Counter(label for r in rows for label in r.labels)
    facts: dict[str, Any] = {
        "items": f"{len(rows):,} ({', '.join(f'{k} {v:,}' for k, v in splits.items())})",
        "with": ", ".join(f"{k} {v:,}" for k, v in modalities.items()),
        "trained on": f"{report.get('items', 0):,}" if report.get("items") else "",
        "left out as bad": report.get("bad_items") or "",
        "duration": f"{sum(known) / 3600:.2f} h in {counted(len(known), 'item')} whose length is known"
        if known
        else "",
    }
    if labels:
        named = ", ".join(f"{k} {v:,}" for k, v in sorted(labels.items())) if len(labels) <= CLASSES else ""
        facts["classes"] = f"{len(labels):,}" + (f" ({named})" if named else "")
    return _table("Data", facts)


def _training(tables: Mapping[str, Any], report: Mapping[str, Any], began: Mapping[str, Any]) -> str:
    if report.get("kind") == "import" or not report:
        return ""
    environment = report.get("environment", {})
    facts: dict[str, Any] = {
        "started from": (began.get("init") or {}).get("path", ""),
        "updates": f"{report.get('updates', 0):,}",
        "batch": tables.get("data", {}).get("batch_size", ""),
        "seed": tables.get("train", {}).get("seed", ""),
        "time": f"{report['seconds']:,.0f} s" if report.get("seconds") else "",
        "machine": environment.get("device", ""),
        "torch": environment.get("packages", {}).get("torch", ""),
        "recipe source": tables.get("source", ""),
    }
    return _table("Training", {**facts, **{f"loss.{k}": v for k, v in tables["loss"].items()}})


def _metrics(report: Mapping[str, Any], evaluations: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    held = report.get("validation") or {}
    if held:
        parts.append(_table("Validation split, as deployed", {k: _number(v) for k, v in held.items()}))
    for found in evaluations:
        intervals = found.get("intervals", {})
        lines = ["| metric | value | interval | chance |", "| --- | ---: | ---: | ---: |"]
        for name, value in found.get("metrics", {}).items():
            between = " – ".join(_number(v) for v in intervals[name]) if name in intervals else ""
            chance = _number(found.get("chance", {}).get(name)) if name in found.get("chance", {}) else ""
            lines.append(f"| {_cell(name)} | {_number(value)} | {between} | {chance} |")
        protocol = {**{f"n.{k}": v for k, v in found.get("n", {}).items()}, **_flat(found.get("protocol", {}))}
        parts.append(f"## Evaluation: {found.get('task', '')}\n\n" + "\n".join(lines))
        parts.append("Protocol: " + ", ".join(f"{k} = {_cell(v)}" for k, v in protocol.items() if v not in ("", [])))
    return "\n\n".join(parts)


def _licence(tables: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    licence = report.get("licence") or tables.get("licence")
    source = report.get("source") if report.get("kind") == "import" else ""
    if report.get("kind") == "import":
        return f"## Licence of the imported weights\n\n{licence or 'Not stated by their source.'}" + (
            f" Source: {source}" if source else ""
        )
    return f"## Licence\n\n{licence}" if licence else ""


def _table(title: str, facts: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(k)} | {_cell(v)} |" for k, v in facts.items() if v not in ("", None, [])]
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *lines]) if lines else ""


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tables.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"


def _json(path: Path) -> dict[str, Any]:
    """A JSON file that may be absent; a damaged one is as good as absent for a card."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
