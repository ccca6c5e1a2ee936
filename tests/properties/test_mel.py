"""Our filter banks against torchaudio's, and their independence of batch and padding."""

from __future__ import annotations

import pytest
import torch
from torchaudio.compliance import kaldi

from avssl.errors import DataError, UsageError
from avssl.nn.mel import KaldiFbank, mel_bank


def sound(items: int, samples: int, scale: float = 1.0) -> torch.Tensor:
    """Speech-like level changes: loud noise, a quiet tone and digital silence, all with a constant offset."""
    g = torch.Generator().manual_seed(3)
    x = 0.1 * torch.randn(items, samples, generator=g)
    third = samples // 3
    x[:, third : 2 * third] = 1e-3 * torch.sin(torch.arange(third) * 0.2)
    x[:, 2 * third :] = 0
    return ((x + 0.01) * scale).contiguous()


def official(x: torch.Tensor, rate: int, bins: int, window: str, **kwargs: float) -> torch.Tensor:
    return kaldi.fbank(
        x,
        sample_frequency=rate,
        num_mel_bins=bins,
        window_type={"hann": "hanning"}.get(window, window),
        htk_compat=True,
        dither=0.0,
        **kwargs,
    )


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 48000])
@pytest.mark.parametrize("window", ["hann", "povey"])
@pytest.mark.parametrize(("bins", "scale"), [(128, 1.0), (40, 32768.0)])
def test_the_numbers_are_those_of_torchaudio(rate, window, bins, scale):
    x = sound(1, rate, scale)
    exact = official(x.double(), rate, bins, window)
    theirs = (official(x, rate, bins, window) - exact).abs()
    ours = (KaldiFbank(rate, bins, window)(x)[0] - exact).abs()
    assert ours.shape == theirs.shape
    # The logarithm of a pure tone's empty bands is that of rounding noise; float32 torchaudio is as far off there.
    assert ours.max() < max(3 * theirs.max(), 5e-3)
    assert ours.mean() < 1.2 * theirs.mean() + 1e-6
    assert ours.median() < 2e-6


def test_the_edges_of_the_bank_are_options():
    x = sound(1, 16000)
    want = official(x, 16000, 64, "hann", low_freq=125.0, high_freq=-500.0)
    torch.testing.assert_close(KaldiFbank(16000, 64, "hann", low=125.0, high=-500.0)(x)[0], want, atol=5e-3, rtol=0)


def test_an_item_does_not_depend_on_its_neighbours_or_its_padding():
    fbank = KaldiFbank(16000, 32)
    lengths = torch.tensor([16000, 9000, 399, 400])
    x = sound(4, 16000)
    noisy = torch.where(torch.arange(16000) < lengths[:, None], x, 7.0)  # padding is anything but silence
    got = fbank(noisy, lengths, fill=-1.5)
    assert fbank.frames(lengths).tolist() == [98, 54, 0, 1]
    for row, clean, n in zip(got, x, lengths.tolist(), strict=True):
        count = fbank.frames(n)
        if count:
            alone = fbank(clean[None, :n])[0]
            torch.testing.assert_close(row[:count], alone, atol=1e-5, rtol=1e-6)
        assert (row[count:] == -1.5).all()


def test_autocast_does_not_touch_it():
    x, fbank = sound(2, 4000), KaldiFbank(16000, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = fbank(x)
    assert torch.equal(low, fbank(x))


def test_gradients_reach_the_waveform():
    x = sound(1, 2000).requires_grad_()
    KaldiFbank(16000, 32)(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_a_sound_shorter_than_a_frame_is_refused():
    with pytest.raises(DataError, match="399 samples"):
        KaldiFbank()(torch.zeros(1, 399))


def test_a_bank_beyond_nyquist_is_refused():
    with pytest.raises(UsageError, match="9000"):
        mel_bank(40, 512, 16000, high=9000.0)
