"""1, 2 and 4 processes, and any division into micro-batches, give the loss, gradients and weights of one big batch."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from messages import says
from work import World, batch_of, build, group, train, train_all

from avssl.errors import UsageError

BOUND = 1e-10  # float64
KINDS = ("masked", "masked-uncounted", "contrastive", "both")
JOBS = {  # what a group of processes computes in one start: (kind, micro-batch, negatives, sharded)
    2: [
        *((k, m, "global", False) for k in KINDS for m in (None, 2)),
        ("contrastive", None, "rank", False),
        ("contrastive", None, "4", False),
        *((k, m, "global", True) for k, m in (("masked", None), ("contrastive", None), ("both", 2), ("prepared", 2))),
        ("prepared", 2, "global", False),
    ],
    4: [(k, None, "global", False) for k in KINDS],
}


@cache
def alone(kind: str, micro: int | None = None, negatives: str = "global") -> dict[str, Any]:
    """The result of one process."""
    return train(World(), kind, micro, negatives)


@cache
def together(ranks: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The results of a group for its jobs; its members must agree exactly."""
    answers = group(ranks, train_all, JOBS[ranks])
    assert all(isinstance(a, list) for a in answers), answers
    for other in answers[1:]:
        for a, b in zip(other, answers[0], strict=True):
            compare(a, b, bound=0.0)
    return dict(zip(JOBS[ranks], answers[0], strict=True))


def compare(a: dict[str, Any], b: dict[str, Any], bound: float = BOUND) -> None:
    np.testing.assert_allclose(a["losses"], b["losses"], rtol=bound, atol=bound)
    for kind in ("gradients", "weights"):
        assert a[kind].keys() == b[kind].keys()
        for name, x in a[kind].items():
            y = b[kind][name]
            assert (x is None) == (y is None), f"{kind} of {name}"
            if x is not None:
                np.testing.assert_allclose(x, y, rtol=bound, atol=bound, err_msg=f"{kind} of {name}")


def test_what_is_compared_is_not_trivial() -> None:
    for kind in KINDS:
        result = alone(kind)
        assert result["losses"][0] != result["losses"][2]
        gradients = {n: g for n, g in result["gradients"].items() if g is not None}
        assert max(np.abs(g).max() for g in gradients.values()) > 1e-3 and len(gradients) > 20, kind
    assert alone("masked")["gradients"]["unused"] is None
    assert alone("contrastive")["gradients"]["log_scale"] is not None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("micro", [1, 2, 3])  # 3 does not divide 8
def test_micro_batches(kind: str, micro: int) -> None:
    compare(alone(kind, micro), alone(kind))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_processes(kind: str, ranks: int) -> None:
    compare(together(ranks)[kind, None, "global", False], alone(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_processes_and_micro_batches(kind: str) -> None:
    compare(together(2)[kind, 2, "global", False], alone(kind))


def test_negatives_that_do_not_divide_the_batch() -> None:
    with says(UsageError, "train.negatives = 3 does not divide the batch of 8 (choose data.batch_size accordingly)"):
        train(World(), "contrastive", None, "3")


def test_negatives_of_each_process_alone() -> None:
    """ "rank" is what runs without a gather did: two contrasts of four items."""
    grouped = alone("contrastive", negatives="4")
    compare(together(2)["contrastive", None, "rank", False], grouped)
    compare(together(2)["contrastive", None, "4", False], grouped)
    assert abs(grouped["losses"][0] - alone("contrastive")["losses"][0]) > 1e-3


@pytest.mark.parametrize(("kind", "micro"), [("masked", None), ("contrastive", None), ("both", 2)])
def test_sharded_parameters(kind: str, micro: int | None) -> None:
    """FSDP2 gives what data parallelism gives, accumulation and a gathered contrast included."""
    compare(together(2)[kind, micro, "global", True], alone(kind))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_loss_prepares_itself_from_the_first_batch_of_the_first_process(sharded: bool) -> None:
    """Its blocks, its head and its own parameters are whole while it does, sharded or not."""
    found = together(2)["prepared", 2, "global", sharded]
    loss, batch = build("prepared"), batch_of(8)
    with torch.no_grad():
        loss.prepare(batch.rows(slice(0, 4)))
    np.testing.assert_allclose(found["start"], loss.start.numpy(), rtol=BOUND, atol=BOUND)
    assert np.abs(found["start"]).max() > 0.01
    compare(found, together(2)["prepared", 2, "global", not sharded])
