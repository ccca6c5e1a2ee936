"""Tiny Transformers: frames, tokens, masks, augmentation, distillation, the format in and out."""

from __future__ import annotations

import json
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Row, Waveform
from avssl.data.targets import Codec
from avssl.errors import AvsslError, CheckpointError, DataError, UsageError
from avssl.imports import build, import_checkpoint
from avssl.model import build_backbone, build_frontend, build_loss, open_model, save_model, save_tensors
from avssl.recipe import load_recipe
from avssl.safeload import load_safetensors
from avssl.schema import structure, unstructure
from avssl.training.pipeline import run_folds
from avssl.training.replay import load_batches, replay
from avssl.training.run import finetune
from avssl.training.setup import Machine
from avssl_tiny.augment import augment_wave, equalise, spec_augment, stretch
from avssl_tiny.backbone import Tiny
from avssl_tiny.checkpoint import write
from avssl_tiny.cnn import TinyCnn
from avssl_tiny.config import MaskedConfig, SoundConfig, TinyCnnConfig, TinyConfig
from avssl_tiny.cost import cnn_parameters, cnn_rows, cost
from avssl_tiny.distill import Distill, TaughtFrontend, divergence
from avssl_tiny.features import FrameFeatures, dct_matrix, hz_to_mel, mel_bank, mel_to_hz, standardised
from avssl_tiny.frontend import SoundFrontend
from avssl_tiny.loss import supervised
from avssl_tiny.masked import MaskedFrames

STEM = {"stem": (3, 5), "stem_bins": 2}
STEM_AND_STACK = {"stem": (4,), "stem_bins": 2, "stack": 3}


def batch_of(x: torch.Tensor, pad: torch.Tensor | None = None, targets: torch.Tensor | None = None) -> Batch:
    n = len(x)
    streams = {"audio": Stream(x, pad)}
    return Batch(tuple(map(str, range(n))), torch.arange(n), streams, None if targets is None else Stream(targets))


def clip(samples: np.ndarray, rate: int = 16000, target: object = None, seed: int = 1) -> Clip:
    return Clip("a", {"audio": Waveform(samples, rate)}, target=target, seed=seed)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
@pytest.mark.parametrize("norm", ["slaney", "none"])
def test_mel_filters_are_torchaudios(scale, norm):
    from torchaudio.functional import melscale_fbanks

    config = SoundConfig(n_mels=40, mel_scale=scale, mel_norm=norm, low=50.0, high=7000.0)
    want = melscale_fbanks(257, 50.0, 7000.0, 40, 16000, norm=None if norm == "none" else norm, mel_scale=scale).T
    np.testing.assert_allclose(mel_bank(config), want.numpy(), rtol=0, atol=2e-5 * float(want.max()))


def test_the_dct_is_orthonormal():
    np.testing.assert_allclose(dct_matrix(40, 40) @ dct_matrix(40, 40).T, np.eye(40), atol=1e-12)


@pytest.mark.parametrize("kind,extra", [("mel", {}), ("mfcc", {"n_mels": 128}), ("spectrogram", {}), ("raw", {})])
@pytest.mark.parametrize("samples", [4000, 16000, 16001])
def test_the_number_of_frames_is_the_promised_one(kind, extra, samples):
    config = SoundConfig(kind=kind, seconds=0, **extra)
    extract = FrameFeatures(config)
    out = extract(torch.from_numpy(noise(2, samples)))
    assert out.shape == (2, int(extract.frames(torch.tensor(samples))), config.features)


def test_a_hop_that_does_not_divide_the_window_cuts_the_same_frames():
    wave = torch.from_numpy(noise(1, 5000))
    extract = FrameFeatures(SoundConfig(hop=256, n_fft=512))
    padded = torch.nn.functional.pad(wave, (256, 256), mode="reflect")
    torch.testing.assert_close(extract._cut(wave), padded.unfold(-1, 512, 256), rtol=0, atol=0)
    assert FrameFeatures(SoundConfig(hop=200, n_fft=512))(wave).shape[1] == 1 + 5000 // 200


def test_padding_leaves_the_statistics_of_a_clip_alone():
    config = SoundConfig()
    x = torch.randn(1, 20, 64) * 7 + 3
    longer = torch.cat([x, torch.full((1, 9, 64), 1e6)], 1)
    pad = torch.arange(29)[None] >= 20
    torch.testing.assert_close(standardised(longer, config, pad)[:, :20], standardised(x, config), rtol=0, atol=1e-5)
    assert (standardised(longer, config, pad)[:, 20:] == 0).all()


@pytest.mark.parametrize(
    "sizes",
    [{}, {"stack": 3}, {"pooler": "mean"}, {"positions": "learned"}, {"post_norm": False}, STEM, STEM_AND_STACK],
)
def test_padded_frames_change_nothing(sizes):
    model = Tiny(TinyConfig(features=8, **sizes)).eval()
    x = torch.randn(2, 12, 8)
    padded = torch.cat([x, 1e3 * torch.ones(2, 6, 8)], 1)
    pad = (torch.arange(18) >= 12).expand(2, -1)
    a, b = model(batch_of(x)), model(batch_of(padded, pad))
    torch.testing.assert_close(a.pooled["audio"], b.pooled["audio"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "kind,extra", [("mel", {}), ("mel", {"center": False}), ("mfcc", {"n_mels": 128}), ("raw", {})]
)
@pytest.mark.parametrize("standardise", ["clip", "coefficient", "none"])
@pytest.mark.parametrize("network", ["tiny", "stacked", "stem", "cnn"])
def test_a_sound_in_a_padded_batch_gives_what_it_gives_alone(network, kind, extra, standardise):
    """From the waveform on: own reflection at the end, own statistics, own borders of convolutions."""
    config = SoundConfig(kind=kind, seconds=0, standardise=standardise, **extra)
    frontend = SoundFrontend(config).eval()
    if network == "cnn":
        backbone = TinyCnn(TinyCnnConfig(features=config.features, widths=(4, 8, 8), dense=(16,)))
    else:
        sizes = {"stacked": {"stack": 4, "pooler": "mean"}, "stem": {"stem": (4, 6), "stem_bins": 2}}.get(network, {})
        backbone = Tiny(TinyConfig(features=config.features, input_norm=True, **sizes))
    backbone.eval().input_norm.running_mean.fill_(0.3)
    items = [frontend.item([clip(noise(1, n, seed=n))], None) for n in (16000, 21920, 12800, 24001)]
    together = backbone(frontend.batch(Batch.cat(items, frontend.pad_values))).pooled["audio"]
    alone = torch.cat([backbone(frontend.batch(i)).pooled["audio"] for i in items])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["tiny", "cnn"])
def test_padded_frames_are_no_part_of_the_statistics_of_the_input(network):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(4, 50, 16, generator=rng) * 3 + 5
    pad = torch.arange(50)[None] >= torch.tensor([[50], [20], [30], [16]])
    tiny = Tiny(TinyConfig(features=16, input_norm=True))
    cnn = TinyCnn(TinyCnnConfig(features=16, widths=(4, 8), dense=(8,)))
    model = (tiny if network == "tiny" else cnn).train()
    model(batch_of(x.masked_fill(pad[..., None], -100.0), pad))
    torch.testing.assert_close(model.input_norm.running_mean, x[~pad].mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(model.input_norm.running_var, x[~pad].var(0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("sizes", [STEM, STEM_AND_STACK])
def test_a_stem_shows_hidden_and_left_out_tokens_to_nobody(sizes):
    model = Tiny(TinyConfig(features=8, **sizes)).eval()
    per_token = model.config.frames_per_token
    batch = batch_of(torch.randn(2, 6 * per_token - 1, 8))
    assert model(batch).tokens["audio"].shape[1] == 1 + 6
    hide = torch.zeros(2, 6, dtype=torch.bool)
    hide[:, 2] = True
    keep = torch.tensor([[0, 1, 3, 4]]).expand(2, -1)
    changed = batch.need("audio").x.clone()
    changed[:, 2 * per_token : 3 * per_token] += 5
    for how in ({"hide": {"audio": hide}}, {"keep": {"audio": keep}}):
        seen, other = (model(b, **how).tokens["audio"] for b in (batch, batch_of(changed)))
        torch.testing.assert_close(seen, other, rtol=0, atol=0)
    assert not torch.equal(model(batch).tokens["audio"], model(batch_of(changed)).tokens["audio"])


def test_the_bins_of_a_stem_divide_its_bands():
    with pytest.raises(UsageError, match=r"10 bands, which 4 bins do not divide \(--set backbone\.stem_bins=2\)"):
        TinyConfig(features=40, stem=(8, 16))
    with pytest.raises(UsageError, match=r"backbone\.stem is \[8, 0\]"):
        TinyConfig(stem=(8, 0))


def test_parameters_and_macs_of_a_stem_are_counted():
    config = TinyConfig(stem=(3, 5), stem_bins=2, stack=2)
    model, counted = Tiny(config), cost(config, 0, 83)
    assert counted["parameters"] == sum(p.numel() for p in model.parameters())
    without = cost(replace(config, stem=(), features=10, stack=2), 0, 21)["macs"]
    assert model.macs(83) == without + 42 * 32 * 9 * 3 + 21 * 16 * 9 * 3 * 5


def test_hidden_frames_reach_neither_tokens_nor_gradients():
    model = Tiny(TinyConfig(features=8)).eval()
    x = torch.randn(1, 10, 8, requires_grad=True)
    hide = torch.zeros(1, 10, dtype=torch.bool)
    hide[0, 3:6] = True
    model(batch_of(x), hide={"audio": hide}).pooled["audio"].sum().backward()
    assert (x.grad[0, 3:6] == 0).all() and (x.grad[0, :3] != 0).any()


def test_a_frontend_of_another_width_is_an_error_with_the_remedy():
    with pytest.raises(UsageError, match=r"backbone\.features=40"):
        Tiny(TinyConfig())(batch_of(torch.randn(1, 10, 40)))


def test_learned_positions_are_resized_and_the_class_token_keeps_its_row():
    old, new = (
        Tiny(TinyConfig(positions="learned", max_tokens=11)),
        Tiny(TinyConfig(positions="learned", max_tokens=21)),
    )
    tensors = new.adapt(old.state_dict(), old.config)
    assert tensors["positions"].shape == (21, 16)
    torch.testing.assert_close(tensors["positions"][0], old.positions[0])
    new.load_state_dict(tensors)


def test_the_table_of_sizes_counts_the_cnn_too():
    config = TinyCnnConfig(features=20, widths=(4, 8), dense=(16,))
    loss = build_loss({"loss": {"name": "tiny_classify", "classes": 5}}, TinyCnn(config))
    assert cnn_parameters(config, 5) == sum(p.numel() for p in loss.parameters())
    assert [r["preset"] for r in cnn_rows()] == ["cnn-4m"] and 3.9e6 < cnn_rows()[0]["parameters"] < 4.1e6


def test_the_cnn_has_four_million_parameters():
    model = TinyCnn(TinyCnnConfig())
    assert 3.9e6 < sum(p.numel() for p in model.parameters()) + 10 * model.dim + 10 < 4.1e6


def test_items_are_cut_or_padded_and_stereo_is_averaged():
    frontend = SoundFrontend(SoundConfig(seconds=1.0))
    short = frontend.item([clip(noise(2, 8000))], None).need("audio").x
    assert short.shape == (1, 16000) and (short[0, 8000:] == 0).all()
    both = np.stack([np.ones(16000), 3 * np.ones(16000)]).astype(np.float32)
    assert (frontend.item([clip(both)], None).need("audio").x == 2).all()
    assert frontend.item([clip(noise(1, 44100), 44100)], None).need("audio").x.shape == (1, 16000)
    with pytest.raises(DataError, match="no sound"):
        frontend.item([clip(np.zeros((1, 0), np.float32))], None)


def test_augmentation_depends_on_the_items_generator_alone():
    config = SoundConfig(shift=1.0, gain_db=6.0, noise_snr=(10.0, 40.0), pitch=2.0, stretch=0.1)
    wave = noise(16000)
    a, b = (augment_wave(wave, config, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.shape == wave.shape and not np.array_equal(a, augment_wave(wave, config, np.random.default_rng(6)))


def test_a_shift_moves_the_clip_and_loses_nothing():
    wave = noise(1000)
    out = augment_wave(wave, SoundConfig(shift=1.0), np.random.default_rng(1))
    np.testing.assert_array_equal(np.sort(out), np.sort(wave))
    assert any(np.array_equal(np.roll(wave, s), out) for s in range(1000))


def test_an_equaliser_changes_each_frequency_by_its_gain_alone():
    config = SoundConfig(equaliser_db=6.0)
    gains = np.array([6.0, -6.0, 0.0, 12.0])
    at = np.linspace(hz_to_mel(0.0, config), hz_to_mel(8000.0, config), 4)
    time = np.arange(16000) / 16000
    for mel, gain in zip(at[1:3], gains[1:3], strict=True):
        tone = np.sin(2 * np.pi * round(float(mel_to_hz(np.array([mel]), config)[0])) * time).astype(np.float32)
        got = equalise(tone, gains, config)
        assert len(got) == len(tone)
        assert abs(20 * np.log10(np.std(got) / np.std(tone)) - gain) < 0.3
    rng = np.random.default_rng
    wave = noise(16001)
    assert not np.array_equal(augment_wave(wave, config, rng(1)), augment_wave(wave, config, rng(2)))
    assert len(augment_wave(wave, config, rng(1))) == 16001 and augment_wave(wave, config, rng(1)).dtype == np.float32


def test_stretching_keeps_the_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    slow = stretch(tone, 0.8)
    assert len(slow) == 20000
    assert abs(np.abs(np.fft.rfft(slow[2000:18000])).argmax() - 1000) <= 2


def test_masks_stay_within_their_share():
    config = SoundConfig(time_masks=2, time_mask_share=0.2, frequency_masks=2, frequency_mask_bins=8)
    out = spec_augment(torch.ones(50, 100, 64), torch.arange(50), config)
    times, bins = (out == 0).all(2).sum(1), (out == 0).all(1).sum(1)
    assert times.max() <= 20 and bins.max() <= 16 and times.float().std() > 0
    torch.testing.assert_close(out[7:8], spec_augment(torch.ones(1, 100, 64), torch.tensor([7]), config))


def test_masks_of_frames_that_nothing_standardised_are_the_mean_of_the_clip():
    config = SoundConfig(time_masks=2, frequency_masks=2, standardise="none")
    x = torch.randn(8, 100, 64, generator=torch.Generator().manual_seed(1)) * 3 - torch.arange(64.0)
    pad = (torch.arange(100) >= 80).expand(8, -1)
    x = x.masked_fill(pad[..., None], 1e3)
    out = spec_augment(x, torch.arange(8), config, pad)
    changed = out != x
    means = x[:, :80].mean(1, keepdim=True).expand_as(x)
    assert changed.any() and torch.allclose(out[changed], means[changed], atol=1e-3)


def test_mixup_mixes_frames_and_the_loss_mixes_targets():
    frontend = SoundFrontend(SoundConfig(seconds=1.0, mixup=0.4)).train()
    clips = [clip(noise(1, 16000, seed=i), target=np.int64(i)) for i in (0, 1)]
    made = Batch.cat([frontend.item(clips, np.random.default_rng(s)) for s in range(4)])
    ready = frontend.batch(made)
    share = ready.streams["share"].x
    assert "partner" not in ready.streams and (share >= 0.5).all() and (share <= 1).all()
    plain = SoundFrontend(SoundConfig(seconds=1.0)).eval()
    a, b = (plain.batch(plain.item([c], None)).need("audio").x for c in clips)
    want = share[:, None, None] * a + (1 - share)[:, None, None] * b
    torch.testing.assert_close(ready.need("audio").x, want, rtol=0, atol=1e-5)
    logits = torch.randn(4, 3)
    soft = torch.zeros(4, 3)
    soft[:, 0], soft[:, 1] = share, 1 - share
    got = supervised(logits, ready, 0.1).total()
    torch.testing.assert_close(got, torch.nn.functional.cross_entropy(logits, soft, label_smoothing=0.1))


@pytest.mark.parametrize("sizes", [{}, STEM])
def test_masked_frames_ask_only_for_what_was_hidden(sizes):
    loss = MaskedFrames(Tiny(TinyConfig(features=8, **sizes)), MaskedConfig(ratio=0.3, span=4)).eval()
    batch = batch_of(torch.randn(3, 40, 8))
    draw = loss.sample(batch)
    assert torch.equal(draw.mask, loss.sample(batch).mask) and draw.mask.sum(1).min() >= 4
    x = batch.need("audio").x
    changed = batch_of(torch.where(draw.mask[..., None], x, x + 5))  # the seen frames of the target do not count ...
    seen = loss.compute(batch, draw).terms["frames"]
    assert seen.count == draw.mask.sum() * 8
    hidden = batch_of(torch.where(draw.mask[..., None], x + 5, x))  # ... and the hidden ones are not seen
    a, b = (loss.backbone(c).tokens["audio"] for c in (batch, hidden))
    assert not torch.equal(a, b)
    one, two = (loss.reconstruct(c, draw)["audio"] for c in (batch, hidden))
    torch.testing.assert_close(one["reconstructed"][draw.mask], two["reconstructed"][draw.mask])
    assert not torch.equal(loss.reconstruct(changed, draw)["audio"]["masked"], one["masked"])


def test_masked_frames_are_regressed_as_the_input_norm_has_them_and_do_not_change_it():
    loss = MaskedFrames(Tiny(TinyConfig(features=8, input_norm=True)), MaskedConfig(ratio=0.5, span=4)).train()
    x = torch.randn(4, 40, 8) * 10 - 60
    batch = batch_of(x)
    draw = loss.sample(batch)
    shown = loss.reconstruct(batch, draw)["audio"]
    torch.testing.assert_close(loss.backbone.input_norm.running_var, x.var((0, 1)))
    standard = (x - x.mean((0, 1))) / (x.var((0, 1), correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(shown["original"], standard, rtol=0, atol=1e-4)
    assert float(loss.compute(batch, draw).terms["frames"].value.detach()) < 3


def test_the_divergence_is_kullback_leibler_at_a_temperature():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    torch.testing.assert_close(divergence(student, teacher, 3.0), 9 * (p * (p / q).log()).sum())
    assert float(divergence(teacher, teacher, 3.0)) == pytest.approx(0, abs=1e-5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tables = {
        "name": "t",
        "backbone": {"name": "tiny", "dim": 32, "stack": 2, "input_norm": True},
        "frontend": {"seconds": 1.0},
        "loss": {"name": "tiny_classify", "classes": 3},
    }
    loss = build_loss(tables, build_backbone(tables))
    save_model(tmp_path / "model", loss, build_frontend(tables, tmp_path), tables, Codec("index", ("a", "b", "c")))
    return tmp_path / "model"


def test_a_student_learns_from_the_sound_it_hears_and_leaves_its_teacher_alone(saved):
    tables = {
        "backbone": {"name": "tiny"},
        "frontend": {"seconds": 1.0, "shift": 1.0},
        "loss": {"name": "distill", "classes": 3, "teacher": str(saved), "weight": 1.0},
    }
    loss, frontend = build_loss(tables, build_backbone(tables)).train(), build_frontend(tables, saved).train()
    rng = np.random.default_rng(0)
    made = Batch.cat([frontend.item([clip(noise(1, 16000, seed=i), target=np.int64(i % 3))], rng) for i in range(6)])
    batch = frontend.batch(made)
    teacher = open_model(saved)
    with torch.inference_mode():  # the very waveform that the student's frames come from, shifted
        wanted = teacher.head(teacher.backbone(teacher.frontend(batch_of(made.need("audio").x))))
    out = loss(batch)
    logits = loss.head(loss.backbone(batch))
    torch.testing.assert_close(out.terms["imitation"].sum, divergence(logits, wanted, 3.0), rtol=1e-4, atol=1e-4)
    before = [p.clone() for p in loss.teacher.model.backbone.parameters()]
    optimizer = torch.optim.Adam(loss.parameters(), 1e-2)
    first = float(loss(batch).total().detach())
    for _ in range(40):
        optimizer.zero_grad()
        loss(batch).total().backward()
        optimizer.step()
    assert float(loss(batch).total().detach()) < 0.7 * first
    assert all(torch.equal(a, b) for a, b in zip(before, loss.teacher.model.backbone.parameters(), strict=True))
    assert not loss.teacher.model.backbone.training and not any("teacher" in k for k in loss.state_dict())


def test_a_student_is_deployed_without_its_teacher(saved, tmp_path):
    tables = {
        "name": "s",
        "backbone": {"name": "tiny", "features": 64},
        "frontend": {"seconds": 1.0},
        "loss": {"name": "distill", "classes": 3, "teacher": str(saved)},
    }
    loss = build_loss(tables, build_backbone(tables))
    codec = Codec("index", ("a", "b", "c"))
    loss.for_training(codec)
    save_model(tmp_path / "student", loss, build_frontend(tables, tmp_path), tables, codec)
    shutil.rmtree(saved)
    student = open_model(tmp_path / "student")
    assert student.logits(student.frontend.item([clip(noise(1, 16000))], None)).shape == (1, 3)
    with pytest.raises(CheckpointError, match="no such model"):
        build_loss(tables, build_backbone(tables)).for_training(codec)


def test_a_teacher_of_the_same_classes_in_another_order_is_understood_and_others_are_refused(saved):
    tables = {
        "backbone": {"name": "tiny"},
        "frontend": {"seconds": 1.0},
        "loss": {"name": "distill", "classes": 3, "teacher": str(saved), "weight": 1.0},
    }
    loss, frontend = build_loss(tables, build_backbone(tables)).eval(), build_frontend(tables, saved).eval()
    loss.for_training(Codec("index", ("c", "a", "b")))
    batch = frontend.batch(
        Batch.cat([frontend.item([clip(noise(1, 16000, seed=i), target=np.int64(0))], None) for i in range(3)])
    )
    teacher = open_model(saved)
    with torch.inference_mode():
        wanted = teacher.head(teacher.backbone(teacher.frontend(batch_of(batch.need("sound").x))))[:, [2, 0, 1]]
    logits = loss.head(loss.backbone(batch))
    torch.testing.assert_close(loss(batch).terms["imitation"].sum, divergence(logits, wanted, 3.0))
    with pytest.raises(UsageError) as error:
        loss.for_training(Codec("index", ("a", "b", "siren")))
    assert str(error.value) == (
        f"the teacher {saved} knows a, b, c ... (3 classes), the labels are siren ... (3) "
        "(fine-tune the teacher on the same labels, or use loss.name=distill_embedding)"
    )


def test_a_step_that_is_replayed_has_the_teacher_of_the_run(saved, tmp_path):
    """The labels of the run are in another order than those of its teacher; the captured step knows them."""
    rows = [Row(f"{i}", {"audio": str(tmp_path / f"{i}.wav")}, labels=("abc"[i % 3],)) for i in range(6)]
    for row in rows:
        soundfile.write(row.parts["audio"], noise(16000, seed=int(row.id)), 16000)
    targets = saved / "assets" / "targets.json"
    targets.write_text(json.dumps({**json.loads(targets.read_text()), "classes": ["c", "a", "b"]}))
    sets = [f"loss.teacher={saved}", "optim.lr=1e30", "data.batch_size=6", "frontend.seconds=1.0", "train.updates=9"]
    with pytest.raises(AvsslError, match="debug replay"):
        finetune("tiny/6k-distill", None, rows, tmp_path / "run", overrides=sets, machine=Machine(workers=0))
    (folder,) = (tmp_path / "run" / "debug").iterdir()
    meta, _ = load_batches(folder)
    assert meta["targets"]["classes"] == ["a", "b", "c"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        compute = Distill.compute
        patch.setattr(Distill, "compute", lambda loss, *rest: seen.append(loss.order) or compute(loss, *rest))
        replay(folder)
    assert seen and all(order == [1, 2, 0] for order in seen)


def test_a_student_and_its_teacher_hear_one_mixture():
    frontend = TaughtFrontend(SoundConfig(seconds=1.0, mixup=1.0)).train()
    clips = [clip(noise(1, 16000, seed=i), target=np.int64(i)) for i in (0, 1)]
    ready = frontend.batch(Batch.cat([frontend.item(clips, np.random.default_rng(s)) for s in range(4)]))
    share, sounds = ready.streams["share"].x[:, None], [torch.from_numpy(noise(16000, seed=i)) for i in (0, 1)]
    want = share * sounds[0] + (1 - share) * sounds[1]
    torch.testing.assert_close(ready.need("sound").x, want, rtol=0, atol=1e-6)
    alone = SoundFrontend(SoundConfig(seconds=1.0)).eval()
    torch.testing.assert_close(ready.need("audio").x, alone.batch(batch_of(want)).need("audio").x, rtol=0, atol=1e-4)
    assert "partner" not in ready.streams and ready.streams["other"].x.tolist() == [1] * 4


def test_each_fold_of_a_student_has_the_teacher_that_did_not_see_it(saved, tmp_path):
    rows = [
        Row(str(i), {"audio": str(tmp_path / f"{i}.wav")}, labels=("abc"[i % 3],), fold=1 + i // 4) for i in range(8)
    ]
    for row in rows:
        soundfile.write(row.parts["audio"], noise(16000, seed=int(row.id)), 16000)
    for fold in (1, 2):
        shutil.copytree(saved, tmp_path / f"fold-{fold}")
    teacher = str(tmp_path / "fold-{fold}")
    sets = [f"loss.teacher={teacher}", "train.epochs=1", "data.batch_size=4", "frontend.seconds=1.0"]
    run_folds("tiny/6k-distill", None, rows, tmp_path / "out", overrides=sets, machine=Machine(workers=0))
    for fold in (1, 2):
        recipe = tomllib.loads((tmp_path / "out" / f"fold-{fold}" / "recipe.toml").read_text())
        assert recipe["loss"]["teacher"] == str(tmp_path / f"fold-{fold}")


@pytest.mark.parametrize(
    ("recipe", "measured"),
    [
        ("tiny/6k-esc10", "tiny-6k, augmented"),
        ("tiny/6k-distill", "tiny-6k, taught by the CNN"),
        ("tiny/6k-stem-esc10", "tiny-6k, stem, augmented"),
        ("tiny/cnn-esc10", "cnn-4m, augmented"),
    ],
)
def test_the_recipes_are_what_the_benchmark_measures(recipe, measured):
    from benchmarks.esc10_tiny import BATCH, VARIANTS, build, sound_config

    variant, got = VARIANTS[measured], load_recipe(recipe)
    assert unstructure(got.frontend) == unstructure(sound_config(variant))
    loss = build(variant, got.frontend, 10)
    assert loss.backbone.config == got.backbone.config
    assert (got.train.epochs, got.optim.lr, got.optim.weight_decay, got.data.batch_size) == (
        variant.epochs,
        variant.lr,
        variant.weight_decay,
        BATCH,
    )
    if variant.teacher:
        assert (got.loss.config.temperature, got.loss.config.weight) == (variant.temperature, variant.weight)
    else:
        assert got.loss.config.label_smoothing == loss.config.label_smoothing


def test_the_format_goes_out_and_comes_back(saved, tmp_path):
    model = open_model(saved)
    files = write(model, tmp_path / "published")
    for path in (tmp_path / "published", files[0]):
        back = open_model(path, "tiny")
        assert back.recipe["frontend"] == model.recipe["frontend"] and back.codec == model.codec
        for name, tensor in model.backbone.state_dict().items():
            torch.testing.assert_close(back.backbone.state_dict()[name], tensor, rtol=0, atol=0)
    sizes = json.loads(files[1].read_text())
    sizes["model"]["ff"] = 48
    files[1].write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match="ff is said to be 48"):
        import_checkpoint(files[0], "tiny")


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ({"standardise": {"over": "clip", "eps": 1e-6}}, {"standardise": "clip", "eps": 1e-6}),
        ({"standardise": {"over": "mel"}}, {"standardise": "coefficient"}),
        ({"standardise": None}, {"standardise": "none"}),
        ({"standardise": {"over": "none"}}, {"standardise": "none"}),
        (
            {"standardise": "fixed", "mean": -40.0, "std": 20.0},
            {"standardise": "fixed", "mean": (-40.0,), "std": (20.0,)},
        ),
        (
            {"standardise": {"over": "dataset", "mean": [1.0] * 64, "std": 2}},
            {"standardise": "fixed", "mean": (1.0,) * 64, "std": (2.0,)},
        ),
        ({"kind": "raw"}, {"kind": "raw", "segment": 64}),
        ({"kind": "mfcc"}, {"kind": "mfcc", "coefficients": 64}),
    ],
)
def test_the_front_end_of_a_foreign_file_in_the_words_of_the_specification(told, wanted, tmp_path):
    state = {**Tiny(TinyConfig()).state_dict(), "head.weight": torch.zeros(4, 16), "head.bias": torch.zeros(4)}
    save_tensors(tmp_path / "a.safetensors", state)
    got = structure(SoundConfig, import_checkpoint(tmp_path / "a.safetensors", "tiny", H=2, front_end=told).frontend)
    assert {k: getattr(got, k) for k in wanted} == wanted and got.features == 64


def test_clips_of_their_own_length_are_so_after_saving_too(tmp_path):
    tables = {"backbone": {"name": "tiny"}, "frontend": {"seconds": 0.0}, "name": "t",
              "loss": {"name": "tiny_classify", "classes": 3}}  # fmt: skip
    loss = build_loss(tables, build_backbone(tables))
    save_model(tmp_path / "model", loss, build_frontend(tables, tmp_path), tables)
    frontend = open_model(tmp_path / "model").frontend
    assert frontend.item([clip(noise(1, 12345))], None).need("audio").x.shape == (1, 12345)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"time_mask_share": 1.5}, "frontend.time_mask_share is 1.5 (give a share, 0 to 1)"),
        ({"noise_snr": (40.0, 10.0)}, "frontend.noise_snr is [40.0, 10.0] (give the lower ratio first)"),
        ({"floor": 0.0}, "frontend.floor is 0.0 (give more than 0)"),
        ({"mixup": -1.0}, "frontend.mixup is -1.0 (give 0 or more)"),
        ({"stretch": 1.0}, "frontend.stretch is 1.0 (give 0 or more, less than 1)"),
        ({"mixup": 0.2, "seconds": 0.0}, "mixup needs clips of one length (set frontend.seconds)"),
    ],
)
def test_numbers_that_no_frontend_could_use_are_refused(bad, message):
    with pytest.raises(UsageError) as error:
        SoundConfig(**bad)
    assert str(error.value) == message


def test_a_stem_goes_out_and_comes_back(tmp_path):
    tables = {"backbone": {"name": "tiny", "stem": [3, 4, 5], "stem_bins": 2, "input_norm": True, "stack": 2},
              "frontend": {"seconds": 1.0}, "loss": {"name": "tiny_classify", "classes": 3}, "name": "t"}  # fmt: skip
    loss = build_loss(tables, build_backbone(tables))
    save_model(tmp_path / "model", loss, build_frontend(tables, tmp_path), tables)
    files = write(open_model(tmp_path / "model"), tmp_path / "published")
    assert open_model(files[0], "tiny").backbone.config == loss.backbone.config
    state = load_safetensors(files[0])
    save_tensors(tmp_path / "plain.safetensors", state)  # without the JSON: what the shapes say
    assert (
        build(import_checkpoint(tmp_path / "plain.safetensors", "tiny", H=2, stack=2)).backbone.config
        == loss.backbone.config
    )
    save_tensors(tmp_path / "plain.safetensors", {k: v for k, v in state.items() if not k.startswith("input_norm")})
    with pytest.raises(UsageError) as error:
        import_checkpoint(tmp_path / "plain.safetensors", "tiny", H=2, stack=2)
    where = tmp_path / "plain.safetensors"
    assert str(error.value) == (
        f"{where}: the number of bands before the stem is not in the file (give it: --option n_mels=64)"
    )
    back = build(import_checkpoint(where, "tiny", H=2, stack=2, n_mels=64)).backbone.config
    assert back == replace(loss.backbone.config, input_norm=False)


def test_a_plain_state_dict_needs_only_what_it_does_not_say(tmp_path):
    source = Tiny(TinyConfig(dim=32, layers=1, positions="learned", max_tokens=7, pooler="mean"))
    state = {**source.state_dict(), "head.weight": torch.zeros(4, 32), "head.bias": torch.zeros(4)}
    state["embeddings.position_embeddings.weight"] = state.pop("positions")
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(UsageError, match="heads"):
        import_checkpoint(tmp_path / "a.pt", "tiny")
    loss = build(import_checkpoint(tmp_path / "a.pt", "tiny", H=4, activation="relu"))
    config = loss.backbone.config
    assert (config.dim, config.layers, config.heads, config.max_tokens, config.pooler) == (32, 1, 4, 7, "mean")
    torch.testing.assert_close(loss.backbone.positions.data, source.positions.data)
    with pytest.raises(UsageError, match="unknown size 'layerz'"):
        import_checkpoint(tmp_path / "a.pt", "tiny", H=4, layerz=3)
    state["stray"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="stray"):
        build(import_checkpoint(tmp_path / "a.pt", "tiny", H=4))
