"""--deterministic: the same numbers, torch left as it was, and an operation that cannot keep the promise named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from messages import says
from runs import assert_same, avssl, outcome, pretrain_arguments

from avssl.errors import UsageError
from avssl.training.determinism import determinism


def test_a_deterministic_run_is_the_same_run_on_a_cpu(finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, out, "train.save_every=3"), "--deterministic")
    assert ended.code == 0, ended.stderr
    assert_same(outcome(out), outcome(finished))


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    text = "--deterministic: put_ has no deterministic implementation on this device (train without it)"
    with says(UsageError, text), determinism(True):
        torch.zeros(3).put_(torch.tensor([1]), torch.tensor([1.0]))


@pytest.mark.parametrize("wanted", [True, False])
def test_torch_is_left_as_it_was(wanted: bool) -> None:
    with pytest.raises(RuntimeError, match="something else"), determinism(wanted):
        assert torch.are_deterministic_algorithms_enabled() == wanted
        raise RuntimeError("something else")
    assert not torch.are_deterministic_algorithms_enabled()
