"""Panels of the training charts: what `metrics.jsonl` says over updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

POINTS = 600  # of one line: more than a screen shows


def panels(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{"key", "title", "unit", "lines": [{"name", "kind": train | validation, "x", "y"}]}], only those with numbers.

    x: updates. Loss terms come unweighted, as the journal has them; the loss is their weighted sum.
    """
    train = [r for r in records if r.get("kind") == "train"]
    held = [r for r in records if r.get("kind") == "validation"]
    seen = list(dict.fromkeys(k for r in held for k in r.get("validation", {})))
    terms = list(dict.fromkeys(k for r in train for k in r.get("terms", {})))
    metrics = list(dict.fromkeys(k for r in train for k in r.get("metrics", {})))
    streams = list(dict.fromkeys(k for r in train for k in r.get("spread", {})))
    out = [
        _panel("loss", "Loss", "", [_line("training", train, "loss"), _line("validation", held, "validation", "loss")])
    ]
    for term in terms:
        out.append(
            _panel(
                f"term.{term}",
                _words(term),
                "",
                [_line("training", train, "terms", term), _line("validation", held, "validation", term)],
            )
        )
    for metric in metrics:
        out.append(
            _panel(
                f"metric.{metric}",
                _words(metric),
                "",
                [_line("training", train, "metrics", metric), _line("validation", held, "validation", metric)],
            )
        )
    for name in seen:
        if name != "loss" and name not in terms and name not in metrics:
            out.append(_panel(f"validation.{name}", _words(name), "", [_line("validation", held, "validation", name)]))
    out += [
        _panel("lr", "Learning rate", "", [_line("rate", train, "lr")]),
        _panel("grad_norm", "Gradient norm", "before clipping", [_line("norm", train, "grad_norm")]),
        _panel("clips_per_s", "Throughput", "clips per second", [_line("clips/s", train, "timing", "clips_per_s")]),
        _panel("data_wait", "Waiting for data", "%", [_line("share", train, "timing", "data_wait", scale=100)]),
        _panel(
            "spread.std",
            "Standard deviation",
            "0 is a collapse",
            [_line(s, train, "spread", s, "std") for s in streams],
        ),
        _panel(
            "spread.rank", "Effective rank", "of the vectors", [_line(s, train, "spread", s, "rank") for s in streams]
        ),
        _panel("memory", "Peak memory", "GiB", [_line("memory", train, "timing", "memory_gib")]),
    ]
    return [p for p in out if p["lines"]]


def _panel(key: str, title: str, unit: str, lines: list[dict[str, Any] | None]) -> dict[str, Any]:
    return {"key": key, "title": title, "unit": unit, "lines": [line for line in lines if line]}


def _line(name: str, records: Sequence[Mapping[str, Any]], *path: str, scale: float = 1.0) -> dict[str, Any] | None:
    x, y = [], []
    for record in records:
        value: Any = record
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            x.append(int(record["update"]))
            y.append(float(f"{value * scale:.6g}"))
    if not x:
        return None
    kept = (
        range(len(x)) if len(x) <= POINTS else sorted({round(i * (len(x) - 1) / (POINTS - 1)) for i in range(POINTS)})
    )
    return {
        "name": name,
        "kind": "validation" if path[0] == "validation" else "train",
        "x": [x[i] for i in kept],
        "y": [y[i] for i in kept],
    }


def _words(name: str) -> str:
    """`reconstruct_audio` as a heading."""
    text = name.replace("_", " ").replace(".", " · ")
    return text[:1].upper() + text[1:]
