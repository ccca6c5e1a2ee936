"""Frontends, backbones and losses keep their tensors on one device; shown without a GPU by pretended CUDA tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from avssl.batch import Batch
from avssl.loss import to_device
from avssl.registry import registry
from avssl.testing import loss_subject, subject
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


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_works_on_another_device(name: str, tmp_path: Path) -> None:
    s = subject(registry().get("backbone", name), tmp_path)
    with torch.no_grad():
        wanted = s.backbone(s.batch()).pooled
        with PretendCuda():
            s.backbone.to(CUDA), s.frontend.to(CUDA)
            raw = Batch.cat(s.items, s.frontend.pad_values)
            for training in (False, True):
                got = s.backbone(s.frontend.train(training)(raw.to(CUDA))).pooled
                if not training:
                    for stream, x in wanted.items():
                        assert got[stream].device == CUDA
                        torch.testing.assert_close(got[stream].cpu(), x)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_works_on_another_device(name: str, tmp_path: Path) -> None:
    loss, _, batch = loss_subject(registry().get("loss", name), tmp_path)
    with torch.no_grad():
        loss.prepare(batch)
        loss.before_step(1, 10)
        loss.eval()
        draw = to_device(loss.sample(batch), "cpu")
        wanted = loss(batch, draw).total()
        with PretendCuda():
            loss.to(CUDA)
            batch = batch.to(CUDA)
            got = loss(batch, to_device(draw, CUDA)).total()
            assert got.device == CUDA
            torch.testing.assert_close(got.cpu(), wanted)
            loss.train()  # dropout, moving statistics and teachers too
            loss(batch, to_device(loss.sample(batch), CUDA))
            loss.after_step(1)
