"""Options that say how to compute are refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avssl.errors import UsageError
from avssl.training.setup import Machine, autocast_dtype

UNKNOWN = "--precision 'fp8' is none (auto, fp32, bf16 or fp16)"


def test_precisions() -> None:
    with pytest.raises(UsageError) as caught:
        Machine(precision="fp8")
    assert str(caught.value) == UNKNOWN
    cpu = torch.device("cpu")
    assert [autocast_dtype(p, cpu) for p in ("auto", "fp32", "bf16")] == [None, None, torch.bfloat16]
    with pytest.raises(UsageError) as caught:
        autocast_dtype("fp16", cpu)
    assert str(caught.value) == "fp16 needs a GPU (--precision bf16)"


@pytest.mark.parametrize(("precision", "message"), [("fp8", UNKNOWN), ("fp16", "fp16 needs a GPU (--precision bf16)")])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_wrong_precision_is_refused_before_data_are_read(
    command: str, precision: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from avssl.cli import main

    (tmp_path / "data").mkdir()  # empty: reading it would be another error
    recipe = "tiny/masked" if command == "pretrain" else "tiny/6k-esc10"
    arguments = [command, recipe, "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--precision", precision, "--device", "cpu"])
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {message}\n")
    assert not (tmp_path / "run").exists()
