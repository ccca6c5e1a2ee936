"""Tagging of sounds: pooling over frames, mixed clips, and the official division by labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import avssl_data2vec.example as example
from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Row, Waveform
from avssl.errors import DataError
from avssl.model import build_backbone, build_loss
from avssl_data2vec.frontends.audio import AudioFrontend
from avssl_data2vec.frontends.configs import AudioFrontendConfig
from avssl_data2vec.tagging import pool_logits


def tagger(**loss: object):
    torch.manual_seed(0)
    tables = {**example.audio(Path()), "loss": {"name": "data2vec_audio_classify", "classes": 3, **loss}}
    return build_loss(tables, build_backbone(tables)).train()


def tagged() -> Batch:
    x = torch.randn(3, 8000, generator=torch.Generator().manual_seed(1))
    target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.7, 0.3], [1.0, 1.0, 0.0]])
    return Batch(("a", "b", "c"), torch.arange(3), {"audio": Stream(x)}, Stream(target))


@pytest.mark.parametrize(
    "kind,pooled",
    [
        ("lin_softmax", lambda p: (p**2).sum(1) / p.sum(1)),
        ("average_sigmoid", lambda p: p.mean(1)),
        ("average", lambda p: torch.sigmoid(torch.logit(p).mean(1))),
        ("max", lambda p: p.amax(1)),
    ],
)
def test_frames_are_pooled_as_their_probabilities_say(kind: str, pooled):
    x = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)) * 4
    torch.testing.assert_close(torch.sigmoid(pool_logits(x, kind)), pooled(torch.sigmoid(x.double())).float())
    real = torch.ones(2, 7, dtype=torch.bool)
    real[0, 4:] = False
    torch.testing.assert_close(pool_logits(x, kind, real)[:1], pool_logits(x[:1, :4], kind))


@pytest.mark.parametrize("kind", ["lin_softmax", "average_sigmoid"])
def test_sure_frames_give_finite_logits_and_gradients(kind: str):
    x = torch.tensor([200.0, -200.0]).repeat(1, 4, 1).requires_grad_()
    logits = pool_logits(x, kind)
    assert logits[0, 0] > 10 and logits[0, 1] < -100
    logits.sum().backward()
    assert x.grad.isfinite().all()


def test_the_loss_is_summed_over_classes_and_divided_by_the_labels():
    loss, batch = tagger(), tagged()
    logits = loss.head(loss.backbone(batch))
    meant = batch.targets.x
    expected = F.binary_cross_entropy_with_logits(logits, meant, reduction="sum") / meant.sum()
    torch.testing.assert_close(loss(batch).total(), expected)


def test_a_tagger_learns_its_tags_and_hides_frames_in_training_only():
    loss, batch = tagger(spans={"probability": 0.3, "length": 2}), tagged()
    assert loss.sample(batch).frames.any()
    optimiser = torch.optim.AdamW(loss.parameters(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        loss(batch).total().backward()
        optimiser.step()
    assert loss.eval().sample(batch).frames is None
    probability = torch.sigmoid(loss.head(loss.backbone(batch)))
    assert ((probability > 0.5) == (batch.targets.x > 0.5)).all()


def clip(name: str, samples: int, target: object) -> Clip:
    wave = np.random.default_rng(len(name)).standard_normal((1, samples)).astype(np.float32)
    return Clip(name, {"audio": Waveform(wave, 16000)}, target=target, seed=3)


def test_mixed_sounds_mix_their_targets_at_the_loudness_of_one():
    frontend = AudioFrontend(AudioFrontendConfig(mixup=0.5))
    pair = [clip("a", 16000, np.array([1.0, 0.0])), clip("bb", 12000, np.array([0.0, 1.0]))]
    shares = []
    for seed in range(40):
        batch = frontend.item(pair, np.random.default_rng(seed))
        r = float(batch.targets.x[0, 0])
        assert float(batch.targets.x[0, 1]) == pytest.approx(1 - r, abs=1e-6)
        a, b = (frontend.item([c], None).need("audio").x[0] for c in pair)
        expected = (r * a + (1 - r) * F.pad(b, (0, 4000))) / (r**2 + (1 - r) ** 2) ** 0.5
        torch.testing.assert_close(batch.need("audio").x[0], expected, rtol=1e-4, atol=1e-5)
        shares.append(r)
    assert 0.5 <= min(shares) < 0.6 and 0.9 < max(shares) <= 1.0
    row = Row("a", {"audio": "a.wav"})
    assert [frontend.plan(row, rng).partners for rng in (np.random.default_rng(0), None)] == [1, 0]
    torch.testing.assert_close(frontend.item(pair, None).need("audio").x, frontend.item(pair[:1], None).need("audio").x)


def test_mixing_single_classes_is_refused_with_what_to_set():
    frontend = AudioFrontend(AudioFrontendConfig(mixup=0.5))
    with pytest.raises(DataError) as error:
        frontend.item([clip("a", 8000, np.int64(0)), clip("b", 8000, np.int64(1))], np.random.default_rng(0))
    assert "multi_hot" in error.value.fix
