"""1, 2 and 4 processes, and any division into micro-batches, give the loss, gradients and weights of one big batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from work import group, train

BOUND = 1e-10  # float64
KINDS = ("masked", "masked-uncounted", "contrastive", "both")


def run(*args: Any, ranks: int = 1, **kwargs: Any) -> dict[str, Any]:
    """The first process's result; all must agree with it exactly."""
    results = [train(*args, **kwargs)] if ranks == 1 else group(ranks, _train, args, kwargs)
    assert all(isinstance(r, dict) for r in results), results
    for other in results[1:]:
        compare(other, results[0], bound=0.0)
    return results[0]


def _train(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return train(*args, **kwargs)


def compare(a: dict[str, Any], b: dict[str, Any], bound: float = BOUND) -> None:
    np.testing.assert_allclose(a["losses"], b["losses"], rtol=bound, atol=bound)
    for kind in ("gradients", "weights"):
        assert a[kind].keys() == b[kind].keys()
        for name, x in a[kind].items():
            y = b[kind][name]
            assert (x is None) == (y is None), f"{kind} of {name}"
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=bound, atol=bound, err_msg=f"{kind} of {name}")


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches(kind: str) -> None:
    whole = run(kind, updates=3)
    for micro in (1, 2, 3):  # 3 does not divide 8
        compare(run(kind, micro=micro, updates=3), whole)


def test_what_is_compared_is_not_trivial() -> None:
    for kind in KINDS:
        result = run(kind, updates=3)
        assert result["losses"][0] != result["losses"][2]
        assert all(np.abs(g).max() > 1e-6 for n, g in result["gradients"].items() if g is not None and "key" not in n), kind
    assert run("masked")["gradients"]["unused"] is None
    assert run("contrastive")["gradients"]["log_scale"] is not None


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_processes(kind: str, ranks: int) -> None:
    compare(run(kind, updates=3, ranks=ranks), run(kind, updates=3))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_micro_batches(kind: str) -> None:
    compare(run(kind, micro=2, updates=3, ranks=2), run(kind, updates=3))


def test_negatives_of_each_process_alone() -> None:
    """"rank" is what runs without a gather did: two contrasts of four items."""
    two, grouped = run("contrastive", negatives="rank", ranks=2), run("contrastive", negatives="4")
    compare(two, grouped)
    compare(run("contrastive", negatives="4", ranks=2), grouped)
    assert abs(two["losses"][0] - run("contrastive")["losses"][0]) > 1e-3


@pytest.mark.parametrize("kind", ["masked", "contrastive", "both"])
def test_sharded_parameters(kind: str) -> None:
    """FSDP2 gives what data parallelism gives."""
    compare(run(kind, updates=3, ranks=2, sharded=True), run(kind, updates=3))


def test_sharded_parameters_and_micro_batches() -> None:
    compare(run("both", micro=2, updates=3, ranks=2, sharded=True), run("both", updates=3))
