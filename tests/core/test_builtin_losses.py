"""The built-in objectives refuse what they cannot compute, and compute what they say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from avssl.batch import Batch, Stream
from avssl.builtin.classify import supervised
from avssl.errors import DataError, UsageError
from avssl.loss import LossOutput, Term

LOGITS = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
INDEX = torch.tensor([2, 0, 1])
MANY = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])
NUMBERS = torch.tensor([0.5, -1.0, 2.0])


def batch(targets: torch.Tensor | None) -> Batch:
    return Batch(("a", "b", "c"), torch.arange(3), {}, None if targets is None else Stream(targets))


@pytest.mark.parametrize(
    ("targets", "kind", "wanted"),
    [
        (INDEX, "cross_entropy", F.cross_entropy(LOGITS, INDEX)),
        (MANY, "bce", F.binary_cross_entropy_with_logits(LOGITS, MANY)),
        (NUMBERS, "mse", F.mse_loss(LOGITS[:, 0], NUMBERS)),
    ],
)
def test_the_targets_tell_the_loss(targets: torch.Tensor, kind: str, wanted: torch.Tensor) -> None:
    for given in ("auto", kind):
        out = supervised(LOGITS, batch(targets), given)
        assert list(out.terms) == [kind]
        torch.testing.assert_close(out.total(), wanted)


@pytest.mark.parametrize(
    ("targets", "kind"),
    [(INDEX, "bce"), (INDEX, "mse"), (MANY, "mse"), (NUMBERS, "bce"), (NUMBERS, "cross_entropy")],
)
def test_a_loss_for_other_targets_is_refused(targets: torch.Tensor, kind: str) -> None:
    """Squared error to class numbers, or of (B,) against (B, B), would train without a word."""
    with pytest.raises(UsageError, match=f"'{kind}' cannot be computed from targets of shape"):
        supervised(LOGITS, batch(targets), kind)


def test_smoothing_that_nothing_reads_and_missing_targets_are_refused() -> None:
    with pytest.raises(UsageError, match=r"loss\.label_smoothing means nothing to bce"):
        supervised(LOGITS, batch(MANY), "auto", label_smoothing=0.1)
    with pytest.raises(DataError, match="no targets"):
        supervised(LOGITS, batch(None), "auto")


def test_a_term_never_hides_another() -> None:
    one = LossOutput({"distance": Term(1.0, torch.ones(()), 1)})
    with pytest.raises(ValueError, match="two terms or metrics of a loss are called distance"):
        one.merged(one)
