"""The HEAR interface over a model: names, shapes, times, and the numbers of `embed`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toy

from avssl import hear
from avssl.embedding.encode import embed_inputs
from avssl.errors import UsageError
from avssl.registry import registry


@pytest.fixture(scope="module")
def model(toy_path):
    return hear.load_model(str(toy_path))


def test_a_model_has_the_attributes_that_hear_asks_for(model):
    assert isinstance(model, torch.nn.Module) and not model.training
    assert (model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size) == (16000, 16, 16)


def test_scene_embeddings_are_those_of_embed(model, toy_model):
    audio = torch.randn(3, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    got = hear.get_scene_embeddings(audio, model)
    assert got.shape == (3, 16) and got.dtype == torch.float32
    want = embed_inputs(toy_model, list(audio.numpy()), rate=16000, streams=["audio"])["audio"]
    np.testing.assert_array_equal(got.numpy(), want)


def test_a_long_sound_is_heard_to_its_end(model):
    quiet = torch.randn(1, 8 * 16000, generator=torch.Generator().manual_seed(0)) * 0.001
    loud = quiet.clone()
    loud[:, 7 * 16000 :] *= 300
    assert not torch.equal(hear.get_scene_embeddings(quiet, model), hear.get_scene_embeddings(loud, model))


def test_timestamp_embeddings_follow_the_sound(model):
    audio = torch.zeros(2, 32000)
    audio[0, 16000:] = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.3
    got, times = hear.get_timestamp_embeddings(audio, model)
    assert got.shape == (2, 40, 16) and times.shape == (2, 40)
    np.testing.assert_allclose(times[0].diff().numpy(), 50.0, atol=1e-2)
    assert 0 < times[0, 0] < 50 and times[0, -1] < 2000
    change = (got[0, 1:] - got[0, :-1]).norm(dim=1)
    assert 500 <= times[0, int(change.argmax())] <= 1500  # the windows that reach across the onset at one second
    assert torch.allclose(got[0, 0], got[1, 0]) and not torch.allclose(got[0, -1], got[1, -1])


def test_no_sounds_give_no_embeddings(model):
    nothing = torch.zeros(0, 8000)
    embeddings, times = hear.get_timestamp_embeddings(nothing, model)
    assert hear.get_scene_embeddings(nothing, model).shape == (0, 16)
    assert embeddings.shape == (0, 10, 16) and times.shape == (0, 10)


def test_a_model_that_needs_more_than_sound_is_refused(toy_path, monkeypatch):
    entry = registry().get("backbone", "toy")
    needy = replace(entry, modalities=frozenset({"audio", "vision"}), optional=frozenset({"audio"}))
    monkeypatch.setitem(registry().entries["backbone"], "toy", needy)
    with pytest.raises(UsageError, match="reads sound only together with vision"):
        hear.load_model(str(toy_path))


@pytest.mark.parametrize(
    ("audio", "text"),
    [
        (torch.zeros(100), "audio of shape"),
        (torch.zeros(1, 0), "audio of shape"),
        (torch.full((1, 9), 30000.0), "not scaled"),
    ],
)
def test_sound_of_a_wrong_shape_or_scale_is_refused(model, audio, text):
    with pytest.raises(UsageError, match=text):
        hear.get_scene_embeddings(audio, model)


def test_a_model_without_sound_is_refused(toy_model, monkeypatch):
    monkeypatch.setattr(toy.Toy, "modalities", frozenset({"vision"}))
    with pytest.raises(UsageError, match="reads no sound"):
        hear.HearModel(toy_model)
