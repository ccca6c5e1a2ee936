"""Hot parts, for `pytest tests/benchmarks --benchmark-enable -n 0` (and `-m slow`); in the ordinary suite each runs once.

Groups put alternatives side by side: read the ratios, not the seconds.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from avssl.batch import Batch, item
from avssl.evaluation.ranking import rank, same
from avssl.nn.activation import gelu
from avssl.nn.attention import attention
from avssl.nn.mel import KaldiFbank

SECONDS, RATE = 10, 16_000


@pytest.fixture
def wave() -> torch.Tensor:
    return torch.randn(4, SECONDS * RATE, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.mark.benchmark(group="log-mel, 4 x 10 s")
def test_log_mel_ours(benchmark, wave) -> None:  # type: ignore[no-untyped-def]
    mel = KaldiFbank(rate=RATE, bins=128)
    assert benchmark(mel, wave).shape == (4, 998, 128)


@pytest.mark.benchmark(group="log-mel, 4 x 10 s")
def test_log_mel_torchaudio(benchmark, wave) -> None:  # type: ignore[no-untyped-def]
    from torchaudio.compliance.kaldi import fbank

    def reference() -> torch.Tensor:
        return torch.stack(
            [
                fbank(
                    w[None],
                    sample_frequency=RATE,
                    num_mel_bins=128,
                    window_type="hanning",
                    dither=0.0,
                    use_energy=False,
                    htk_compat=True,
                )
                for w in wave
            ]
        )

    assert benchmark(reference).shape == (4, 998, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["dispatched", "fused"])
@pytest.mark.benchmark(group="attention, forward and backward, 4 x 12 x 177 x 64")
def test_attention(benchmark, dtype, way) -> None:  # type: ignore[no-untyped-def]
    q, k, v = (torch.randn(4, 12, 177, 64, dtype=dtype, requires_grad=True) for _ in range(3))

    def step() -> torch.Tensor:
        run = attention if way == "dispatched" else torch.nn.functional.scaled_dot_product_attention
        run(q, k, v).float().sum().backward()
        return q.grad

    assert benchmark(step).shape == q.shape


@pytest.mark.benchmark(group="collate 32 unequal items")
def test_collate(benchmark) -> None:  # type: ignore[no-untyped-def]
    items = [item(str(i), i, audio=torch.randn(RATE * 2 + 100 * i)) for i in range(32)]
    assert len(benchmark(Batch.cat, items)) == 32


@pytest.mark.benchmark(group="rank 2,000 x 2,000")
def test_ranking(benchmark) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((2000, 128)).astype(np.float32) for _ in range(2))
    keys = np.arange(2000)
    assert len(benchmark(rank, a, b, same(keys, keys))) == 2000


@pytest.mark.parametrize("which", [gelu, torch.nn.functional.gelu], ids=["in place", "torch"])
@pytest.mark.benchmark(group="GELU of a linear layer's output, 998 x 3072")
def test_gelu(benchmark, which) -> None:  # type: ignore[no-untyped-def]
    linear = torch.nn.Linear(768, 3072)
    x = torch.randn(998, 768)
    with torch.inference_mode():
        assert benchmark(lambda: which(linear(x))).shape == (998, 3072)


@pytest.mark.benchmark(group="classify a minute of sound at 16 kHz with tiny-6k, a window every 2.5 s")
def test_classify(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from avssl.classify import Classifier
    from avssl.model import build_backbone, build_frontend, build_loss, open_model, save_model

    tables = {
        "name": "t",
        "backbone": {"name": "tiny"},
        "frontend": {},
        "loss": {"name": "tiny_classify", "classes": 50},
    }
    save_model(tmp_path / "m", build_loss(tables, build_backbone(tables)), build_frontend(tables, tmp_path), tables)
    classifier = Classifier(open_model(tmp_path / "m"))
    sound = np.random.default_rng(0).normal(0, 0.1, 60 * RATE).astype(np.float32)
    assert len(benchmark(lambda: list(classifier.array(sound, RATE)))) == 23


@pytest.mark.slow
@pytest.mark.benchmark(group="search among 100,000 x 768, start of the process included")
def test_search(benchmark, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from embedding.test_search import made

    from avssl.search.index import prepare

    path = made(tmp_path, np.random.default_rng(0).normal(size=(100_000, 768)).astype(np.float32))
    prepare(path)
    code = "import sys; from avssl.search.index import search; print(len(search(sys.argv[1], 'c17')[0].hits))"
    command = [sys.executable, "-c", code, str(path)]
    done = benchmark.pedantic(
        subprocess.run, (command,), {"capture_output": True, "text": True, "check": True}, rounds=3, iterations=1
    )
    assert done.stdout == "10\n"
