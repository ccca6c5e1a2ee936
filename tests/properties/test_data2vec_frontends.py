"""From clips to tensors: waveforms, images and tokens of the data2vec frontends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from avssl.batch import Batch
from avssl.data.clip import Clip, Frames, Waveform
from avssl.data.tokenizer import train_bpe
from avssl.errors import DataError
from avssl.recipe import load_recipe
from avssl.schema import structure
from avssl_data2vec.frontends.audio import AudioFrontend
from avssl_data2vec.frontends.configs import AudioFrontendConfig, TextFrontendConfig, VisionFrontendConfig
from avssl_data2vec.frontends.text import TextFrontend
from avssl_data2vec.frontends.vision import VisionFrontend


def sound(samples: int, name: str = "a") -> Clip:
    wave = np.random.default_rng(0).standard_normal((1, samples)).astype(np.float32) * 0.1 + 0.5
    return Clip(name, {"audio": Waveform(wave, 16000)}, seed=3)


def picture(name: str, target: object = None) -> Clip:
    pixels = np.random.default_rng(len(name)).integers(0, 255, (1, 40, 60, 3), dtype=np.uint8)
    return Clip(name, {"vision": Frames(pixels)}, target=target, seed=3)


def test_a_waveform_is_normalised_over_its_clip():
    x = AudioFrontend(AudioFrontendConfig()).item([sound(16000)], None).need("audio").x[0]
    torch.testing.assert_close(
        x, torch.nn.functional.layer_norm(torch.from_numpy(sound(16000).parts["audio"].samples[0]), (16000,))
    )


def test_the_portable_frontend_gives_the_same_numbers_from_recorded_sound():
    """Loud, quiet, off centre, padded or not."""
    frontend = AudioFrontend(AudioFrontendConfig())
    portable = frontend.portable()
    clips = []
    for i, (n, gain, offset) in enumerate(
        [(16000, 1.0, 0.0), (16000, 1e-3, 0.0), (16000, 0.1, 0.3), (9000, 0.5, -0.1)]
    ):
        samples = gain * sound(n, str(i)).parts["audio"].samples + np.float32(offset)
        clips.append(Clip(str(i), {"audio": Waveform(samples.astype(np.float32), 16000)}))
    for chosen in (clips[:3], clips):
        want = frontend(Batch.cat([frontend.item([c], None) for c in chosen])).need("audio")
        raw = Batch.cat([portable.item([c], None) for c in chosen])
        assert raw.need("audio").x[1].abs().max() < 0.01
        got = portable(raw).need("audio")
        torch.testing.assert_close(got.x, want.x, rtol=1e-5, atol=1e-5)
        assert (got.pad is None) == (want.pad is None)
    as_it_is = AudioFrontend(AudioFrontendConfig(normalise=False))
    assert as_it_is.portable() is as_it_is and portable.portable() is portable


def test_batches_are_cropped_to_their_shortest_item_in_training_only():
    frontend = AudioFrontend(AudioFrontendConfig(crop="shortest"))
    batch = Batch.cat([frontend.item([sound(n, str(n))], None) for n in (8000, 9000, 12000)])
    assert frontend.train().batch(batch).need("audio").x.shape == (3, 8000)
    assert frontend.eval().batch(batch).need("audio").pad is not None


def test_a_clip_that_is_too_short_is_bad_and_says_so():
    with pytest.raises(DataError, match="less than"):
        AudioFrontend(AudioFrontendConfig(min_seconds=1.0)).item([sound(8000)], None)


def test_one_seed_gives_one_picture_and_evaluation_is_not_random():
    frontend = VisionFrontend(VisionFrontendConfig(size=32, jitter=0.4, rand_augment=9, erase=1.0))
    a, b, c = (frontend.item([picture("a")], np.random.default_rng(s)).need("vision").x for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    still = frontend.item([picture("a")], None).need("vision").x
    assert still.dtype == torch.uint8 and still.shape == (1, 3, 32, 32)
    assert frontend.batch(frontend.item([picture("a")], None)).need("vision").x.abs().max() < 4


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_pictures_mix_their_targets(kind: str):
    frontend = VisionFrontend(structure(VisionFrontendConfig, {"size": 32, kind: 1.0}))
    clips = [picture("a", np.array([1, 0], np.float32)), picture("bb", np.array([0, 1], np.float32))]
    shares = [frontend.item(clips, np.random.default_rng(s)).targets.x[0] for s in range(20)]
    assert all(float(t.sum()) == pytest.approx(1) for t in shares) and len({float(t[0]) for t in shares}) > 5
    with pytest.raises(DataError, match="multi_hot"):
        frontend.item([picture("a", 1), picture("bb", 0)], np.random.default_rng(0))


def test_some_pictures_are_left_unmixed_and_the_mixed_ones_are_what_they_were():
    always, mostly = (
        VisionFrontend(VisionFrontendConfig(size=32, mixup=0.7, cutmix=1.0, erase=0.5, mix_probability=p))
        for p in (1.0, 0.9)
    )
    targets = [np.array(t, np.float32) for t in ([1, 0], [0, 1])]
    mixed = 0
    for seed in range(300):
        clips = [replace(picture(n, t), seed=seed) for n, t in zip(("a", "bb"), targets, strict=True)]
        alone, a, b = (
            f.item(c, np.random.default_rng(seed)) for f, c in ((always, clips[:1]), (always, clips), (mostly, clips))
        )
        rng = np.random.default_rng(seed)
        pixels = always._mixed(always._augmented(clips[0], rng), clips, rng)[0]  # nothing else is drawn
        assert np.array_equal(a.need("vision").x[0].permute(1, 2, 0), pixels)
        same = torch.equal(a.need("vision").x, b.need("vision").x)
        want = a if same else alone  # the very picture that it would be without partners
        assert torch.equal(b.need("vision").x, want.need("vision").x) and torch.equal(b.targets.x, want.targets.x)
        mixed += same
    assert 0.85 < mixed / 300 < 0.95


@pytest.mark.parametrize(("size", "blocks"), [("base", 12), ("large", 24), ("huge", 32)])
def test_drop_path_of_the_published_fine_tuning_is_linear_over_the_shared_depth(size: str, blocks: int):
    """The official code spreads the rate over as many places as there are shared blocks and counts the prenet into them."""
    c = load_recipe(f"data2vec/imagenet2_{size}").backbone.config
    assert c.prenet_depth + c.depth == blocks
    rates = np.linspace(0, c.drop_path[1], c.depth)
    assert c.drop_path == pytest.approx((rates[c.prenet_depth], rates[-1]), abs=1e-6)
    if c.prenet_depth:
        assert c.prenet_drop_path == pytest.approx((rates[0], rates[c.prenet_depth - 1]), abs=1e-6)
    pretrained = load_recipe(f"data2vec/vision2_{size}").backbone.config
    assert (c.dim, c.depth, c.prenet_depth, c.heads, c.patch) == (
        pretrained.dim, pretrained.depth, pretrained.prenet_depth, pretrained.heads, pretrained.patch,
    )  # fmt: skip


def test_bytes_are_tokens_and_long_texts_are_cropped():
    frontend = TextFrontend(TextFrontendConfig(max_tokens=10))
    ids = frontend.item([Clip("a", {"text": "hé"})], None).need("text").x[0].tolist()
    assert ids == [0, *(b + 4 for b in "hé".encode()), 2]
    text = "".join(map(str, range(500)))
    crops = {
        tuple(frontend.item([Clip("a", {"text": text})], np.random.default_rng(s)).need("text").x[0].tolist())
        for s in range(5)
    }
    assert len(crops) > 1 and all(len(c) == 10 for c in crops)


def test_a_trained_tokenizer_is_kept_with_the_model(tmp_path: Path):
    size = train_bpe(["the cat sat on the mat"] * 50, 300, tmp_path / "tokenizer.json")
    config = TextFrontendConfig(tokenizer=str(tmp_path / "tokenizer.json"), max_tokens=20, pairs=True)
    frontend = TextFrontend(config)
    inner = frontend.tokens
    assert size == inner.size <= 300 and inner._tokenizer.token_to_id("<mask>") == size - 1
    assert [inner._tokenizer.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    ids = frontend.item([Clip("a", {"text": "the cat\tthe mat"})], None).need("text").x[0].tolist()
    assert ids[0] == 0 and ids[-1] == 2 and [2, 2] in [ids[i : i + 2] for i in range(len(ids))]
    (tmp_path / "assets").mkdir()
    assert frontend.save_assets(tmp_path / "assets").tokenizer == "assets/tokenizer.json"
    assert (tmp_path / "assets" / "tokenizer.json").is_file()
