"""What must hold on a CUDA device; skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from avssl.nn.attention import attention
from avssl.nn.mel import KaldiFbank
from avssl.recipe import load_recipe
from avssl.registry import registry
from avssl.testing import subject
from avssl.training.run import pretrain
from avssl.training.setup import Machine

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
BACKBONES = [e.name for e in registry().all("backbone")]


def test_log_mel_on_the_device_is_that_of_the_cpu() -> None:
    wave = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    mel = KaldiFbank()
    torch.testing.assert_close(mel.cuda()(wave.cuda()).cpu(), KaldiFbank()(wave), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_and_its_gradients_are_those_of_the_cpu(dtype: torch.dtype) -> None:
    inputs = [torch.randn(2, 4, 33, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    results = []
    for device in ("cpu", "cuda"):
        q, k, v = (x.to(device, dtype).requires_grad_() for x in inputs)
        out = attention(q, k, v)
        out.float().square().sum().backward()
        results.append((out.detach().float().cpu(), q.grad.float().cpu()))
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for cpu, cuda in zip(*results, strict=True):
        torch.testing.assert_close(cuda, cpu, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    s = subject(registry().get("backbone", name), tmp_path)
    batch = s.batch()
    with torch.inference_mode():
        cpu = s.backbone(batch).pooled
        cuda = s.backbone.cuda()(batch.to("cuda")).pooled
    for stream, x in cpu.items():
        error = (cuda[stream].cpu() - x).abs().max() / x.abs().max()
        assert error < 2e-3, f"{stream}: off by {error:.1e} of the largest value"


@pytest.mark.parametrize("options", [["train.precision=fp32"], ["train.precision=bf16"], ["train.precision=fp16"],
                                     ["train.precision=bf16", "train.compile=true"]], ids=" ".join)  # fmt: skip
def test_a_run_learns_in_every_precision(options: list[str], tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    for i in range(16):
        wave = np.sin(np.arange(16_000) * 0.05 * (1 + i)) * 0.3
        soundfile.write(tmp_path / f"{i}.wav", wave, 16_000)
    recipe = load_recipe("tiny/masked", ["train.updates=30", "train.log_every=5", "data.batch_size=8", *options])
    pretrain(recipe, tmp_path, tmp_path / "run", machine=Machine(device="cuda", workers=0))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"]
