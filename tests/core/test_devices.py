"""Frontends, backbones and losses keep their tensors on one device, and need no float64 there; shown without a GPU by
pretended CUDA tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avssl.batch import Batch
from avssl.loss import to_device
from avssl.registry import registry
from avssl.testing import loss_subject, subject
from avssl.training.step import wide
from tests.core.pretend_cuda import CUDA, OnCuda, PretendCuda

BACKBONES = [e.name for e in registry().all("backbone")]
LOSSES = [e.name for e in registry().all("loss")]


def test_a_mixture_of_devices_is_noticed() -> None:
    with PretendCuda():
        x = torch.zeros(3, 4, device=CUDA)
        assert x.device == CUDA and (x + 1).device == CUDA and (x @ torch.zeros(4, 2, device=CUDA)).device == CUDA
        assert x.cpu().device.type == "cpu" and not isinstance(x.cpu(), OnCuda)
        assert float((x + 2).sum()) == 24
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.zeros(3, 4)


def test_a_double_is_noticed_where_there_is_none() -> None:
    with PretendCuda(doubles=False):
        x = torch.zeros(3, device=CUDA)
        assert x.cpu().double().dtype == torch.float64
        with pytest.raises(TypeError, match="no float64"):
            x.double()


@pytest.mark.parametrize("doubles", [True, False], ids=["cuda", "mps"])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_works_on_another_device(name: str, doubles: bool, tmp_path: Path) -> None:
    s = subject(registry().get("backbone", name), tmp_path)
    with torch.no_grad():
        wanted = s.backbone(s.batch()).pooled
        with PretendCuda(doubles):
            s.backbone.to(CUDA), s.frontend.to(CUDA)
            raw = Batch.cat(s.items, s.frontend.pad_values)
            for training in (False, True):
                got = s.backbone(s.frontend.train(training)(raw.to(CUDA))).pooled
                if not training:
                    for stream, x in wanted.items():
                        assert got[stream].device == CUDA
                        torch.testing.assert_close(got[stream].cpu(), x)


@pytest.mark.parametrize("doubles", [True, False], ids=["cuda", "mps"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_works_on_another_device(name: str, doubles: bool, tmp_path: Path) -> None:
    loss, _, batch = loss_subject(registry().get("loss", name), tmp_path)
    with torch.no_grad():
        loss.prepare(batch)
        loss.before_step(1, 10)
        loss.eval()
        draw = to_device(loss.sample(batch), "cpu")
        wanted = loss(batch, draw).total()
        with PretendCuda(doubles):
            loss.to(CUDA)
            batch = batch.to(CUDA)
            got = loss(batch, to_device(loss.sample(batch), CUDA)).total()  # the same draw, made on the CPU
            assert got.device == CUDA
            torch.testing.assert_close(got.cpu(), wanted)
            loss.train()  # dropout, moving statistics and teachers too
            loss(batch, to_device(loss.sample(batch), CUDA))
            loss.after_step(1)


def test_sums_of_a_run_are_as_wide_as_the_device_allows() -> None:
    assert wide(torch.device("cpu")) == wide(torch.device("cuda")) == torch.float64
    assert wide(torch.device("mps")) == torch.float32
