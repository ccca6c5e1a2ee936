"""Kaldi-compatible log-mel filter banks, batched and on any device."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor, nn

from avssl.errors import DataError, check

LOG_FLOOR = 1.1920928955078125e-07  # Kaldi floors the energies at the epsilon of float32
BLOCK = 256  # frames that are windowed and transformed together on a CPU: the working set stays in its caches


class KaldiFbank(nn.Module):
    """Log-mel energies with the numbers of `torchaudio.compliance.kaldi.fbank(htk_compat=True, dither=0)`.

    Windows of 25 ms every 10 ms that lie wholly inside the signal (snip_edges), the mean of each frame removed,
    pre-emphasis 0.97 within the frame, FFT of the next power of two, power spectrum, triangles that are equally spaced
    and linear in mel(f) = 1127 ln(1 + f/700), natural logarithm of max(energy, 1.19e-7). No energy column, no dither.

    rate: Hz; bins: number of filters; window: "hann" (symmetric, torchaudio's "hanning") or "povey" (hann^0.85);
    frame_ms, shift_ms: rounded down to whole samples; low, high: edges of the bank in Hz, high <= 0 counts down from
    Nyquist.
    """

    window: Tensor  # (fft,)
    bank: Tensor  # (fft/2 + 1, bins)

    def __init__(
        self,
        rate: int = 16000,
        bins: int = 128,
        window: Literal["hann", "povey"] = "hann",
        *,
        frame_ms: float = 25.0,
        shift_ms: float = 10.0,
        low: float = 20.0,
        high: float = 0.0,
        preemphasis: float = 0.97,
    ) -> None:
        super().__init__()
        self.rate, self.bins, self.preemphasis = rate, bins, preemphasis
        self.size = int(rate * frame_ms * 0.001)
        self.shift = int(rate * shift_ms * 0.001)
        self.fft = 1 << max(self.size - 1, 1).bit_length()
        check(
            self.shift > 0 and self.size > 1,
            f"frames of {frame_ms} ms every {shift_ms} ms at {rate} Hz are empty",
            fix="use longer frames or a higher rate",
        )
        hann = torch.hann_window(self.size, periodic=False)
        # Not persistent: constants of the class, no part of a model's weights.
        shape = hann if window == "hann" else hann.pow(0.85)
        # Both windows begin with 0, so a frame's first sample (its own predecessor in Kaldi) drops out and the FFT
        # starts one sample later: a shift, which the power spectrum does not see. Zeros follow the frame.
        shape = nn.functional.pad(shape[1:], (0, self.fft - self.size + 1))
        self.register_buffer("window", shape, persistent=False)
        self.register_buffer("bank", mel_bank(bins, self.fft, rate, low, high).T.contiguous(), persistent=False)

    @overload
    def frames(self, length: int) -> int: ...
    @overload
    def frames(self, length: Tensor) -> Tensor: ...
    def frames(self, length: Tensor | int) -> Tensor | int:
        """Number of frames of a signal of `length` samples; 0 when it is shorter than one frame."""
        if isinstance(length, int):
            return max(0, 1 + (length - self.size) // self.shift)
        return (1 + (length - self.size).div(self.shift, rounding_mode="floor")).clamp(min=0)

    def forward(self, wave: Tensor, lengths: Tensor | None = None, fill: float = 0.0) -> Tensor:
        """wave: (B, L) float; lengths: (B,) samples of each item that are sound, None = all L.

        Returns (B, T, bins) float32, T = frames(L). A frame never reaches into padding: the first
        frames(lengths[i]) frames of item i are those of the unpadded signal, the others are `fill`.
        Raises DataError when L is shorter than one frame.
        """
        if wave.shape[-1] < self.size:
            raise DataError(
                f"a sound of {wave.shape[-1]} samples is shorter than one frame of {self.size}",
                fix=f"give at least {1000 * self.size / self.rate:g} ms",
            )
        device = wave.device.type
        with torch.autocast(device, enabled=False):  # half precision would ruin the logarithm of quiet frames
            # A view of frames one sample longer than the FFT; the window is 0 on what lies behind `size`.
            tail = self.fft + 1 - self.size
            framed = nn.functional.pad(wave.float(), (0, tail)).unfold(-1, self.fft + 1, self.shift)
            count = framed.shape[1]
            step = BLOCK if device == "cpu" and not torch.compiler.is_compiling() else count
            out = [self._block(framed[:, i : i + step]) for i in range(0, count, step)]
            mel = out[0] if len(out) == 1 else torch.cat(out, 1)
        if lengths is not None:
            late = torch.arange(count, device=mel.device) >= self.frames(lengths.to(mel.device))[:, None]
            mel = mel.masked_fill(late[..., None], fill)
        return mel

    def _block(self, framed: Tensor) -> Tensor:
        """(B, T, fft + 1) raw samples -> (B, T, bins)."""
        x = framed - framed[..., : self.size].mean(-1, keepdim=True)
        # Difference first, window second, as in Kaldi: the other order loses digits of loud low sounds.
        y = torch.sub(x[..., 1:], x[..., :-1], alpha=self.preemphasis).mul_(self.window)
        spectrum = torch.fft.rfft(y)
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)  # (B, T, fft/2 + 1)
        return torch.matmul(power, self.bank).clamp_(min=LOG_FLOOR).log_()

    def extra_repr(self) -> str:
        """Rate, bins and sizes in samples."""
        return f"rate={self.rate}, bins={self.bins}, size={self.size}, shift={self.shift}, fft={self.fft}"


def mel_bank(bins: int, fft: int, rate: int, low: float = 20.0, high: float = 0.0) -> Tensor:
    """(bins, fft/2 + 1) float32 triangles, peak 1, of Kaldi's mel scale; the Nyquist column is zero.

    Computed in float32 like Kaldi's: a bin at the foot of a triangle has a weight of rounding size, and quiet narrow
    filters show it. Raises UsageError when the edges do not lie in 0 <= low < high <= rate/2.
    """
    top = high if high > 0 else rate / 2 + high
    check(
        0 <= low < top <= rate / 2,
        f"a mel bank from {low} to {top} Hz does not fit a rate of {rate} Hz",
        fix="lower the upper edge, or resample",
    )
    first, last = (1127.0 * math.log(1 + f / 700) for f in (low, top))
    step = (last - first) / (bins + 1)
    index = torch.arange(bins)[:, None]
    left, centre, right = first + index * step, first + (index + 1.0) * step, first + (index + 2.0) * step
    mel = 1127.0 * torch.log(1 + rate / fft * torch.arange(fft // 2) / 700)
    up, down = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return nn.functional.pad(torch.minimum(up, down).clamp(min=0), (0, 1))
