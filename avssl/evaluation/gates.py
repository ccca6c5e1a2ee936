"""`--fail-under NAME=VALUE`: numbers that a pipeline insists on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase

from avssl.errors import GateError, UsageError, check, nearest

LOWER_IS_BETTER = ("median_rank", "mse", "mae", "std", "wer", "cer")


def check_gates(metrics: Mapping[str, float], gates: Sequence[str]) -> list[str]:
    """Hold metrics against gates `NAME=VALUE`; returns the names that were checked.

    NAME is a full metric name, or a prefix of whole parts, which must then hold for every match: "retrieval" or
    "retrieval.audio->vision.class.r". Metrics that are better when lower are not matched by a prefix, and refused by
    name. A metric without a value (nan) fails. Raises GateError listing every metric that is too low, UsageError for a
    gate that matches nothing.
    """
    failed, checked = [], []
    for gate in gates:
        name, value = parse(gate)
        for found in matching(metrics, name):
            checked.append(found)
            if not metrics[found] >= value:
                failed.append(f"{found} = {metrics[found]:.4f} < {value:g}")
    if failed:
        raise GateError("; ".join(failed), fix=f"{len(failed)} of {len(checked)} gated metrics failed")
    return checked


def parse(gate: str) -> tuple[str, float]:
    """("retrieval.audio->vision.class.r@1", 0.3) of "retrieval.audio->vision.class.r@1=0.3"."""
    name, equals, text = gate.rpartition("=")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    check(
        bool(equals) and bool(name) and value == value,
        f"--fail-under {gate!r} is no NAME=VALUE",
        fix='e.g. --fail-under "retrieval.audio->vision.class.r@1=0.3"',
    )
    return name.strip(), value


def matching(metrics: Mapping[str, float], name: str) -> list[str]:
    """The metrics that a gate's name means."""
    if name in metrics:
        check(
            _higher(name),
            f"--fail-under {name}: this metric is better when lower",
            fix="gate one that is better when higher, such as a recall, an accuracy or a correlation",
        )
        return [name]
    found = [m for m in metrics if m.startswith(name) and m[len(name) :].startswith((".", "@", "->")) and _higher(m)]
    if not found:
        raise UsageError(f"--fail-under {name}: no such metric", fix=nearest(name, set(metrics)))
    return found


def check_names(known: Collection[str], gates: Sequence[str]) -> None:
    """Refuse gates that none of the known metric names can satisfy, before they are computed. A "*" in a known name
    stands for anything."""
    for gate in gates:
        name, _ = parse(gate)
        if name in known or not any(fnmatchcase(name, metric) for metric in known):
            matching(dict.fromkeys(known, 0.0), name)


def _higher(name: str) -> bool:
    return name.rpartition(".")[2] not in LOWER_IS_BETTER
