"""`--fail-under` and `--fail-over NAME=VALUE`: numbers that a pipeline insists on. Torch-free, as everything that only reads
metrics may import it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from avssl.errors import GateError, UsageError, check, nearest

# Last parts of the names of metrics that are better when lower; all others are better when higher
LOWER_IS_BETTER = frozenset(
    (
        "loss",
        "cross_entropy",
        "bce",
        "ctc",
        "perplexity",
        "mse",
        "rmse",
        "mae",
        "wer",
        "cer",
        "eer",
        "median_rank",
        "std",
    )
)
Option = Literal["--fail-under", "--fail-over"]


def lower_is_better(name: str) -> bool:
    """Of a full metric name; `NAME.fold.F` is judged as NAME."""
    return name.partition(".fold.")[0].rpartition(".")[2] in LOWER_IS_BETTER


def check_gates(metrics: Mapping[str, float], under: Sequence[str] = (), over: Sequence[str] = ()) -> list[str]:
    """Hold metrics against gates `NAME=VALUE`, bounds from below and from above; returns the names that were checked.

    NAME is a full metric name, or a prefix of whole parts, which must then hold for every match: "retrieval" or
    "retrieval.audio->vision.class.r". A bound from below is for metrics that are better when higher, one from above for
    the others: a prefix matches no others, and by name they are refused. A metric without a value (nan) fails. Raises
    GateError listing every metric that is out of bounds, UsageError for a gate that matches nothing.
    """
    failed, checked = [], []
    for option, name, bound in parsed(under, over):
        for found in matching(metrics, name, option):
            checked.append(found)
            value = metrics[found]
            if not (value >= bound if option == "--fail-under" else value <= bound):
                failed.append(f"{found} = {value:.4f} {'<' if option == '--fail-under' else '>'} {bound:g}")
    if failed:
        raise GateError("; ".join(failed), fix=f"{len(failed)} of {len(checked)} gated metrics failed")
    return checked


def parse(gate: str, option: Option) -> tuple[str, float]:
    """("retrieval.audio->vision.class.r@1", 0.3) of "retrieval.audio->vision.class.r@1=0.3"."""
    name, equals, text = gate.rpartition("=")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    example = "retrieval.audio->vision.class.r@1=0.3" if option == "--fail-under" else "speech.wer=0.1"
    check(
        bool(equals) and bool(name) and value == value,
        f"{option} {gate!r} is no NAME=VALUE",
        fix=f'e.g. {option} "{example}"',
    )
    return name.strip(), value


def matching(metrics: Collection[str], name: str, option: Option) -> list[str]:
    """The metrics that a gate's name means."""
    low = option == "--fail-over"
    found = [name] if name in metrics else [m for m in metrics if _begins(m, name)]
    if not found:
        raise UsageError(f"{option} {name}: no such metric", fix=nearest(name, set(metrics)))
    fitting = [m for m in found if lower_is_better(m) == low]
    better, other = ("higher", "--fail-under") if low else ("lower", "--fail-over")
    check(bool(fitting), f"{option} {name}: better when {better}", fix=f"{other} {name}=VALUE")
    return fitting


def check_names(known: Collection[str], under: Sequence[str] = (), over: Sequence[str] = ()) -> None:
    """Refuse gates that none of the known metric names can satisfy, before they are computed. A "*" in a known name
    stands for anything."""
    for option, name, _ in parsed(under, over):
        possible = name not in known and any(fnmatchcase(name, metric) for metric in known)
        matching([name] if possible else known, name, option)


def parsed(under: Sequence[str], over: Sequence[str]) -> list[tuple[Option, str, float]]:
    """(option, name, bound) of each gate. Raises UsageError for one that is no NAME=VALUE."""
    gates: list[tuple[Option, str]] = [("--fail-under", g) for g in under]
    gates += [("--fail-over", g) for g in over]
    return [(option, *parse(gate, option)) for option, gate in gates]


def _begins(metric: str, name: str) -> bool:
    return metric.startswith(name) and metric[len(name) :].startswith((".", "@", "->"))
