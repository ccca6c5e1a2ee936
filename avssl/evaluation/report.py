"""What an evaluation says: numbers with their names, intervals, protocol and counts; the JSON is the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(repr=False)
class Report:
    """The result of a protocol.

    Metric names are full, `task.what.metric`: `retrieval.audio->vision.class.r@1`. per_class and confusion are keyed by
    the prefix they belong to (`probe.audio`); confusion rows are true classes, columns predicted ones.
    """

    task: str
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)  # what no information scores, where that is known
    n: dict[str, int] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    per_class: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # prefix -> class -> metric
    confusion: dict[str, list[list[int]]] = field(default_factory=dict)
    hits: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # direction -> examples, for galleries
    bad: list[dict[str, str]] = field(default_factory=list)  # items that could not be read

    def __repr__(self) -> str:
        first = ", ".join(f"{name} {value:.4f}" for name, value in list(self.metrics.items())[:3])
        more = f" and {len(self.metrics) - 3} more" if len(self.metrics) > 3 else ""
        return f"<Report of {self.task}: {first}{more}>"

    def __str__(self) -> str:
        """The table that `avssl evaluate` prints."""
        lines = [("metric", "value", "interval", "chance"), *self.table()]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def add(
        self,
        prefix: str,
        metrics: Mapping[str, float],
        intervals: Mapping[str, tuple[float, float]] | None = None,
        chance: Mapping[str, float] | None = None,
    ) -> None:
        """Metrics under a prefix: `accuracy` becomes `prefix.accuracy`."""
        self.metrics |= {f"{prefix}.{k}": float(v) for k, v in metrics.items()}
        self.intervals |= {f"{prefix}.{k}": (float(v[0]), float(v[1])) for k, v in (intervals or {}).items()}
        self.chance |= {f"{prefix}.{k}": float(v) for k, v in (chance or {}).items()}

    def add_classes(self, prefix: str, per_class: Mapping[str, Any], counts: Any) -> None:
        """Per-class values (C,), in the order of `classes`, with the number of positives (C,) of each."""
        self.per_class[prefix] = {
            name: {"n": int(counts[c]), **{metric: float(values[c]) for metric, values in per_class.items()}}
            for c, name in enumerate(self.classes)
        }

    def plain(self) -> dict[str, Any]:
        """JSON-able; a metric that has no value is null."""
        from avssl import __version__

        out = {
            "task": self.task,
            "avssl": __version__,
            "metrics": self.metrics,
            "intervals": {k: list(v) for k, v in self.intervals.items()},
            "chance": self.chance,
            "n": self.n,
            "protocol": self.protocol,
            "classes": self.classes,
            "per_class": self.per_class,
            "confusion": self.confusion,
            "hits": self.hits,
            "bad": self.bad,
        }
        return {k: v for k, v in out.items() if v or k in ("task", "metrics", "n", "protocol")}

    def hold(self, under: Sequence[str] = (), over: Sequence[str] = ()) -> list[str]:
        """The names of the metrics that gates such as "knn.audio.accuracy=0.5" are about, bounds from below and from
        above. Raises GateError when one is out of bounds; see `avssl.evaluation.gates.check_gates`."""
        from avssl.evaluation.gates import check_gates

        return check_gates(self.metrics, under, over)

    def write(self, path: Path) -> None:
        """The report as JSON, complete or absent."""
        from avssl.files import write_json

        write_json(path, self.plain())

    def table(self) -> list[tuple[str, str, str, str]]:
        """(metric, value, interval, chance) lines for people."""
        lines = []
        for name, value in self.metrics.items():
            low, high = self.intervals.get(name, (None, None))
            interval = "" if low is None or high is None else f"{low:.4f} - {high:.4f}"
            chance = f"{self.chance[name]:.4f}" if name in self.chance else ""
            lines.append((name, f"{value:.4f}", interval, chance))
        return lines
