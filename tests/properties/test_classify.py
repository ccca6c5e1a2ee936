"""Sliding windows: every sample is heard, times are right, and a stream gives what the file gives."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from export.models import RATE, tiny_model

from avssl.classify import Classifier, slide
from avssl.data.clip import Clip, Waveform
from avssl.data.manifest import read_rows
from avssl.errors import CheckpointError, DataError, UsageError
from avssl.model import build_frontend


class Trickle(io.RawIOBase):
    """A pipe that gives odd numbers of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int) -> bytes:
        size = min(size, 1237)
        self.at += size
        return self.data[self.at - size : self.at]


def model():
    out = tiny_model()
    out.device = next(out.backbone.parameters()).device
    return out


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return np.round((0.3 * np.sin(2000 * time**2) + noise) * 32768).clip(-32768, 32767).astype(np.int16)


@pytest.mark.parametrize("sizes", [[100_000], [7] * 3000, [1, 9999, 3, 4999, 12345]])
def test_windows_lie_at_multiples_of_the_hop_and_hold_the_right_samples(sizes):
    wave = np.arange(sum(sizes), dtype=np.float32)[None]
    parts = np.split(wave, np.cumsum(sizes)[:-1], axis=1)
    got = list(slide([(p, 1000) for p in parts], 2.0, 0.5))
    full = [g for g in got if g[1].shape[1] == 2000]
    assert [g[0] for g in full] == [0.5 * i for i in range((len(wave[0]) - 2000) // 500 + 1)]
    for start, samples, _ in got:
        first = round(start * 1000)
        np.testing.assert_array_equal(samples[0], wave[0, first : first + samples.shape[1]])
    heard = max(round(s * 1000) + x.shape[1] for s, x, _ in got)
    assert len(wave[0]) - heard < 100, "more than the shortest remainder was never heard"


def test_a_short_sound_is_one_window_and_nothing_is_none():
    assert [(s, x.shape[1]) for s, x, _ in slide([(np.zeros((1, 30), np.float32), 1000)], 1.0, 0.5)] == [(0.0, 30)]
    assert list(slide([], 1.0, 0.5)) == []
    assert list(slide([(np.zeros((1, 0), np.float32), 1000)], 1.0, 0.5)) == []


def test_a_stream_in_pieces_gives_what_the_file_gives(tmp_path):
    wave = sound(4.3)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="PCM_16")
    classifier = Classifier(model(), top=3)
    (row,) = read_rows(tmp_path / "a.wav")
    from_file = list(classifier.row(row))
    from_stream = list(classifier.stream(Trickle(wave.tobytes() + b"x"), RATE))
    assert [(h.start, h.end) for h in from_file] == [(h.start, h.end) for h in from_stream]
    assert from_file[0].end == 1.0 and from_file[-1].end == pytest.approx(4.3, abs=1e-3)
    for a, b in zip(from_file, from_stream, strict=True):
        assert dict(a.labels) == pytest.approx(dict(b.labels), abs=1e-5)
        assert sum(dict(a.labels).values()) == pytest.approx(1, abs=1e-5)


def test_a_long_file_is_read_in_blocks_without_a_seam(tmp_path, monkeypatch):
    wave = sound(5.0)
    soundfile.write(tmp_path / "a.flac", wave, RATE, subtype="PCM_16")
    classifier, (row,) = Classifier(model(), top=3), read_rows(tmp_path / "a.flac")
    whole = list(classifier.row(row))
    monkeypatch.setattr("avssl.classify.BLOCK", 0.75)
    assert [(h.start, h.end) for h in classifier.row(row)] == [(h.start, h.end) for h in whole]
    for a, b in zip(classifier.row(row), whole, strict=True):
        assert dict(a.labels) == pytest.approx(dict(b.labels), abs=1e-5)


def test_a_window_is_classified_when_its_last_sample_is_there_not_later():
    class Live(Trickle):
        def read1(self, size: int) -> bytes:
            assert self.at < 2 * RATE * 1.2, "the first window was complete and still waited"
            return super().read1(size)

    assert next(Classifier(model()).stream(Live(sound(3.0).tobytes()), RATE)).end == 1.0


def test_another_window_is_not_padded():
    """Half the clip length: the frontend makes half the frames."""
    classifier = Classifier(model(), window=0.5)
    assert classifier.frontend.config.seconds == 0.5
    heard = list(classifier.array(sound(1.0) / 32768, RATE))
    assert [(h.start, h.end) for h in heard] == [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)]


@pytest.mark.parametrize(
    "name, config, seconds",
    [
        ("cav_mae", {"modalities": ["audio"]}, 10.255),
        ("cav_mae", {"modalities": ["audio"], "frames": 512}, 5.135),
        ("beats", {}, 10.0),
        ("beats", {"seconds": 3.0}, 3.0),
        ("data2vec_audio", {"seconds": 7.0, "eval_seconds": 4.0}, 4.0),
        ("data2vec_audio", {"seconds": 7.0}, None),
        ("tiny", {"seconds": 2.0}, 2.0),
        ("tiny", {"seconds": 0}, None),
    ],
)
def test_a_window_is_what_the_frontend_hears(name, config, seconds):
    """Neither padded nor cut: what `item` makes of a window has its samples, by default and with another window."""
    hearing = model()
    hearing.frontend = build_frontend({"backbone": {"name": name}, "frontend": config}, Path()).eval()
    assert hearing.frontend.seconds == seconds
    classifier = Classifier(hearing)
    assert classifier.window == (seconds or 5.0)
    for window in (classifier.window, 1.5):
        frontend = Classifier(hearing, window).frontend
        long = Clip("x", {"audio": Waveform(np.full((1, round(window * RATE)), 0.1, np.float32), RATE)})
        assert frontend.item([long], None).need("audio").x.shape[1] == round(window * RATE)
        longer = Clip("x", {"audio": Waveform(np.full((1, round((window + 1) * RATE)), 0.1, np.float32), RATE)})
        cut = frontend.item([longer], None).need("audio").x.shape[1]
        longest = seconds if name == "cav_mae" else window if seconds else None
        assert cut == round(min(window + 1, longest or window + 1) * RATE)


def test_a_window_longer_than_a_fixed_clip_is_refused():
    hearing = model()
    hearing.frontend = build_frontend({"backbone": {"name": "cav_mae"}, "frontend": {}}, Path()).eval()
    with pytest.raises(UsageError, match=r"a window of 12 s, and .* hears 10.26 s at once"):
        Classifier(hearing, window=12.0)


def test_a_threshold_leaves_labels_out():
    classifier = Classifier(model(), threshold=1.1)
    assert all(h.labels == () for h in classifier.array(sound(2.0) / 32768, RATE))


def test_what_cannot_classify_is_refused():
    headless = model()
    headless.head = None
    with pytest.raises(CheckpointError, match="no classification head"):
        Classifier(headless)
    for hop in (2.0, 0.0, 1e-5):
        with pytest.raises(UsageError) as error:
            Classifier(model(), window=1.0, hop=hop)
        assert str(error.value) == f"hop is {hop} with window 1.0 (give a hop between 0.01 and it)"
    with pytest.raises(UsageError, match="encoding"):
        list(Classifier(model()).stream(Trickle(b"1234"), RATE, encoding="u8"))


def test_a_damaged_file_names_itself(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"RIFF\0\0\0\0WAVEjunk")
    (row,) = read_rows(tmp_path / "a.wav")
    with pytest.raises(DataError, match=r"a\.wav"):
        list(Classifier(model()).row(row))
