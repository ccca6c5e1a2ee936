"""Sounds with an identity: a second or so of something that one recognises, never twice the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RATE = 16000  # Hz

Rng = np.random.Generator
Maker = Callable[[Rng, int, float], np.ndarray]  # (rng, samples, pitch factor) -> (samples,) roughly within [-1, 1]


def make_sound(kind: str, rng: Rng, samples: int, pitch: float) -> np.ndarray:
    """(samples,) float32: the class's sound at some loudness and onset, over a background of noise and hum.

    pitch: 1 = the class's usual register; larger is higher.
    """
    onset = int(rng.uniform(0.0, 0.12) * RATE)
    own = SOUNDS[kind](rng, samples - onset, pitch)
    wave = np.zeros(samples)
    wave[onset:] = own / max(1e-9, np.abs(own).max())
    wave *= 10 ** (rng.uniform(-12, 0) / 20)
    noise = _coloured(rng, samples, rng.uniform(0.0, 1.0)) * 10 ** (rng.uniform(-44, -24) / 20)
    hum = np.sin(2 * np.pi * rng.uniform(50, 120) * _time(samples)) * 10 ** (rng.uniform(-50, -28) / 20)
    return (0.7 * np.clip(wave + noise + hum, -1.4, 1.4)).astype(np.float32)


def _time(samples: int) -> np.ndarray:
    return np.arange(samples) / RATE


def _coloured(rng: Rng, samples: int, slope: float) -> np.ndarray:
    """Noise whose amplitude spectrum falls with frequency to the power of `slope`, of deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum /= np.maximum(1, np.arange(len(spectrum))) ** slope
    noise = np.fft.irfft(spectrum, samples)
    return noise / max(1e-9, noise.std())


def _band(rng: Rng, samples: int, low: float, high: float) -> np.ndarray:
    """Noise between two frequencies, of deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / RATE)
    noise = np.fft.irfft(np.where((frequency >= low) & (frequency <= high), spectrum, 0), samples)
    return noise / max(1e-9, noise.std())


def _sweep(frequency: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * np.cumsum(frequency) / RATE + 1.0)


def _hits(rng: Rng, samples: int, period: float, hit: Callable[[int], np.ndarray]) -> np.ndarray:
    """The same short sound every `period` seconds, a little unevenly."""
    out = np.zeros(samples)
    at = 0.0
    while at < samples / RATE:
        start = int(at * RATE)
        one = hit(samples - start)
        out[start : start + len(one)] += one * rng.uniform(0.7, 1.0)
        at += period * rng.uniform(0.93, 1.07)
    return out


def _bell(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    base, t = 520 * pitch * rng.uniform(0.92, 1.08), _time(samples)
    partials = ((1.0, 1.0, 2.2), (2.76, 0.6, 3.5), (5.4, 0.35, 6.0), (8.9, 0.2, 9.0))
    return np.sum([a * np.exp(-d * t) * np.sin(2 * np.pi * base * f * t) for f, a, d in partials], axis=0)


def _drum(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    base = 95 * pitch

    def hit(room: int) -> np.ndarray:
        t = _time(min(room, int(0.25 * RATE)))
        return np.exp(-16 * t) * _sweep(base * (1 + 1.5 * np.exp(-40 * t))) + 0.25 * np.exp(
            -60 * t
        ) * rng.standard_normal(len(t))

    return _hits(rng, samples, rng.uniform(0.24, 0.34), hit)


def _siren(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    t = _time(samples)
    middle, rate = 850 * pitch, rng.uniform(0.9, 1.5)
    tone = _sweep(middle * (1 + 0.38 * np.sin(2 * np.pi * (rate * t + rng.uniform()))))
    return tone + 0.3 * tone**3


def _bird(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    def hit(room: int) -> np.ndarray:
        t = _time(min(room, int(rng.uniform(0.05, 0.09) * RATE)))
        length = max(1e-6, len(t) / RATE)
        return np.sin(np.pi * t / length) * _sweep(2500 * pitch * (1 + 0.35 * np.sin(np.pi * t / length)))

    return _hits(rng, samples, rng.uniform(0.11, 0.17), hit)


def _motor(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    t = _time(samples)
    frequency = 88 * pitch * (1 + 0.04 * np.sin(2 * np.pi * rng.uniform(0.6, 1.4) * t))
    phase = np.cumsum(frequency) / RATE
    return (2 * (phase % 1) - 1) * (0.75 + 0.25 * np.sin(2 * np.pi * rng.uniform(9, 14) * t))


def _rain(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    drops = (rng.random(samples) < 90 / RATE) * rng.uniform(0.3, 1.0, samples)
    patter = np.convolve(drops, np.exp(-np.arange(90) / 18) * np.sin(np.arange(90) * 1.9 * min(pitch, 1.3)))[:samples]
    return 0.35 * _band(rng, samples, 2200 * pitch, 7600) + 2.0 * patter


def _flute(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    t = _time(samples)
    frequency = 640 * pitch * (1 + 0.012 * np.sin(2 * np.pi * rng.uniform(4.5, 6.0) * t))
    phase = 2 * np.pi * np.cumsum(frequency) / RATE
    breath = 0.04 * _band(rng, samples, 1500, 6000)
    return np.minimum(1, t / 0.08) * (np.sin(phase) + 0.22 * np.sin(2 * phase) + breath)


def _clock(rng: Rng, samples: int, pitch: float) -> np.ndarray:
    def hit(room: int) -> np.ndarray:
        t = _time(min(room, int(0.02 * RATE)))
        return np.exp(-260 * t) * (np.sin(2 * np.pi * 3100 * pitch * t) + 0.6 * rng.standard_normal(len(t)))

    return _hits(rng, samples, rng.uniform(0.19, 0.26), hit)


SOUNDS: dict[str, Maker] = {
    "bell": _bell, "bird": _bird, "clock": _clock, "drum": _drum, "flute": _flute, "motor": _motor, "rain": _rain,
    "siren": _siren,
}  # fmt: skip
