"""What must hold on a CUDA device; skipped, with the reason, where there is none."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avssl.batch import Batch
from avssl.bench import bench
from avssl.data.samples import sample_rows
from avssl.errors import Stopped
from avssl.loss import to_device
from avssl.nn.attention import attention
from avssl.nn.mel import KaldiFbank
from avssl.recipe import load_recipe
from avssl.registry import registry
from avssl.testing import loss_subject, subject
from avssl.training.loop import Run
from avssl.training.run import pretrain
from avssl.training.setup import Machine

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
BACKBONES = [e.name for e in registry().all("backbone")]
LOSSES = [e.name for e in registry().all("loss")]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """TF32 would hide a wrong number behind a coarse one."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, False
    yield


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


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    loss, _, batch = loss_subject(registry().get("loss", name), tmp_path)
    with torch.no_grad():
        loss.prepare(batch)
    loss.before_step(1, 10)
    loss.eval()  # no dropout: its noise differs between devices
    draw = loss.sample(batch)
    results = []
    for device in ("cpu", "cuda"):
        loss.to(device).zero_grad()
        total = loss(batch.to(device), to_device(draw, torch.device(device))).total()
        total.backward()
        results.append(
            (float(total.detach()), {k: p.grad.cpu() for k, p in loss.named_parameters() if p.grad is not None})
        )
    (cpu, cpu_gradients), (cuda, cuda_gradients) = results
    assert cuda == pytest.approx(cpu, rel=1e-3)
    assert cpu_gradients.keys() == cuda_gradients.keys()
    largest = max(float(g.abs().max()) for g in cpu_gradients.values())
    for key, gradient in cpu_gradients.items():
        error = float((cuda_gradients[key] - gradient).abs().max()) / largest
        assert error < 5e-3, f"the gradient of {key} is off by {error:.1e} of the largest value"


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


def test_compiled_blocks_follow_the_same_curve(tmp_path: Path) -> None:
    curves = []
    for compile in ("false", "true"):
        recipe = load_recipe("cav_mae/tiny", ["train.updates=20", "train.log_every=1", "train.precision=bf16",
                                              "data.batch_size=8", f"train.compile={compile}"])  # fmt: skip
        (tmp_path / compile).mkdir()
        rows = sample_rows(frozenset({"audio", "vision"}), tmp_path / compile, 16)
        pretrain(recipe, rows, tmp_path / compile / "run", machine=Machine(device="cuda", workers=0))
        lines = (tmp_path / compile / "run" / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("cav_mae/tiny", ["train.updates=8", "data.batch_size=8", f"train.precision={precision}"])
    rows = sample_rows(frozenset({"audio", "vision"}), tmp_path, 16)
    machine = Machine(device="cuda", workers=0, deterministic=True)
    pretrain(recipe, rows, tmp_path / "whole", machine=machine)
    step = Run._step

    def signalled(run: Run, micros: list[Batch]) -> None:
        step(run, micros)
        if run.done == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Run, "_step", signalled)
        pretrain(recipe, rows, tmp_path / "halves", machine=machine)
    pretrain(recipe, rows, tmp_path / "halves", resume=True, machine=machine)
    whole, halves = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(whole[k], halves[k]) for k in whole)


def test_the_base_recipe_has_a_speed(capsys: pytest.CaptureFixture[str]) -> None:
    """Clips per second and MFU of the published model; figures come from `avssl bench cav_mae/base`."""
    report = bench(load_recipe("cav_mae/base", ["train.precision=bf16"]), None, Machine(device="cuda", workers=2))
    with capsys.disabled():
        print(json.dumps(report, indent=1))
    assert report["recipe"]["clips_per_s"] > 0 and 0 < report["recipe"]["mfu"] < 1
