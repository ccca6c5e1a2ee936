"""The C forward pass is compiled and run: it gives PyTorch's numbers in float, and its own definition's in int8."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from export.models import clips, tiny_model

from avssl.errors import UsageError
from avssl.export import c_code
from avssl.export.exporter import export_model
from avssl.export.interpret import calibrate, forward, forward_int8
from avssl.export.plan import folded, plan_of
from avssl_tiny.cost import cost

needs_cc = pytest.mark.skipif(c_code.compiler() is None, reason="there is no C compiler (cc, gcc, clang)")
MFCC = {"kind": "mfcc", "n_mels": 64, "coefficients": 20, "standardise": "none"}
VARIANTS = {
    "class token, clip statistics": ({}, {}, {}),
    "mean of the tokens, ReLU, a larger epsilon": (
        {"pooler": "mean", "activation": "relu", "layer_norm_eps": 1e-5},
        {},
        {},
    ),
    "learned positions, tanh GELU, no pooler": (
        {"positions": "learned", "activation": "gelu_tanh", "pooler": "cls"},
        {},
        {},
    ),
    "four frames per token that do not divide the clip": ({"stack": 4, "layers": 1, "ff": 64}, {}, {}),
    "MFCC with the statistics of training": ({"features": 20, "input_norm": True}, MFCC, {}),
    "the recipe of ESC-10": (
        {"features": 32, "stack": 2, "pooler": "mean", "input_norm": True},
        {"n_fft": 2048, "hop": 1024, "n_mels": 32, "floor": 1e-4, "standardise": "none"},
        {},
    ),
    "a convolutional stem": (
        {"stem": [6, 9], "stem_bins": 4, "pooler": "mean", "input_norm": True},
        {"hop": 300, "standardise": "none"},
        {},
    ),
    "a stem of one layer, stacked, an odd number of bands": (
        {"features": 27, "stem": [5], "stem_bins": 7, "stack": 3},
        {"n_mels": 27},
        {},
    ),
    "a stem of three layers": ({"features": 40, "stem": [4, 8, 6], "stem_bins": 1}, {"n_mels": 40}, {}),
    "fixed and training statistics": (
        {"input_norm": True},
        {"standardise": "fixed", "mean": [-40.0], "std": [12.0], "hop": 200},
        {},
    ),
    "spectrum, each bin standardised": (
        {"features": 129},
        {"kind": "spectrogram", "n_fft": 256, "hop": 128, "standardise": "coefficient", "center": False},
        {},
    ),
    "raw segments": ({"features": 400}, {"kind": "raw"}, {}),
    "HTK bands of an amplitude spectrum": (
        {"features": 40},
        {"n_mels": 40, "mel_scale": "htk", "mel_norm": "none", "power": 1.0, "n_fft": 1024},
        {},
    ),
    "the core's head, with its norm": ({}, {}, {"name": "classify"}),
}


def prepared(model, batch):
    """(plan, sound plan, standardised frames) of a model, the affine folded away."""
    original, sound = plan_of(model)
    plan, sound = folded(original, sound)
    with torch.inference_mode():
        frames = model.frontend(batch).need("audio").x.clone()
    if original.shift is not None:
        frames = (frames - torch.from_numpy(original.shift)) * torch.from_numpy(original.gain)
    return plan, sound, frames


@needs_cc
@pytest.mark.parametrize("variant", VARIANTS)
def test_c_repeats_pytorch_in_float_and_its_definition_in_int8(variant, tmp_path):
    model = tiny_model(*VARIANTS[variant])
    batch = clips(6)
    with torch.inference_mode():
        want = model.head(model.backbone(model.frontend(batch))).numpy()
    plan, sound, frames = prepared(model, batch)
    quantised = calibrate(plan, [frames])
    pcm = (batch.need("audio").x.numpy() * 32768).astype(np.int16)
    c_code.write_c(tmp_path, plan, quantised, sound, frames.shape[1], test=(pcm[0], frames[:1]))
    binary = c_code.compile_c(tmp_path, flags=["-O0", "-fsanitize=undefined,address", "-fno-sanitize-recover"])
    np.testing.assert_allclose(c_code.run_c(binary, "f32", "frames", frames.numpy()), want, rtol=0, atol=1e-5)
    small = forward_int8(quantised, frames).numpy()
    # A float that falls exactly between two integers may round the other way in C: a step of one activation.
    np.testing.assert_allclose(c_code.run_c(binary, "int8", "frames", frames.numpy()), small, rtol=0, atol=0.02)
    assert np.abs(small - want).max() < 0.15 * np.ptp(want) + 0.02, "int8 lost the signal"
    got = c_code.run_c(binary, "frontend", "pcm", pcm).reshape(frames.shape)
    np.testing.assert_allclose(got, frames.numpy(), rtol=0, atol=2e-3)
    np.testing.assert_allclose(c_code.run_c(binary, "f32", "pcm", pcm), want, rtol=0, atol=2e-4)
    assert subprocess.run([binary, "selftest"], capture_output=True).returncode == 0


@needs_cc
def test_the_self_test_notices_a_changed_weight(tmp_path):
    model = tiny_model()
    plan, sound, frames = prepared(model, clips(2))
    c_code.write_c(
        tmp_path, plan, calibrate(plan, [frames]), sound, frames.shape[1], test=(np.zeros(0, np.int16), frames[:1])
    )
    # Without PCM there is nothing for the front end: the vector's frames are compared alone.
    header = tmp_path / "model_config.h"
    header.write_text(header.read_text().replace("AVSSL_HAS_FRONTEND 1", "AVSSL_HAS_FRONTEND 0"))
    assert subprocess.run([c_code.compile_c(tmp_path), "selftest"], capture_output=True).returncode == 0
    weights = tmp_path / "model_weights.h"
    first = weights.read_text().split("= {\n", 1)
    flipped = str(-int(first[1].split(",", 1)[0]) - 1)
    weights.write_text(first[0] + "= {\n" + flipped + "," + first[1].split(",", 1)[1])
    assert subprocess.run([c_code.compile_c(tmp_path), "selftest"], capture_output=True).returncode == 1


def test_the_float_definition_is_the_backbone():
    model = tiny_model()
    plan, _, frames = prepared(model, clips(4))
    with torch.inference_mode():
        want = model.head(model.backbone(model.frontend(clips(4))))
    torch.testing.assert_close(forward(plan, frames), want, rtol=0, atol=1e-5)


def test_a_flat_softmax_survives_int8():
    """Equal weights over 300 tokens are 0.003 each: absolute int8 probabilities would all be zero."""
    model = tiny_model()
    for layer in model.backbone.blocks:
        torch.nn.init.zeros_(layer.attention.self.query.weight)
        torch.nn.init.zeros_(layer.attention.self.query.bias)
    batch = clips(3, seconds=5.0)
    plan, _, frames = prepared(model, batch)
    real, small = forward(plan, frames), forward_int8(calibrate(plan, [frames]), frames)
    assert (real - small).abs().max() < 0.1 * real.abs().max()


def test_int8_weights_have_a_scale_for_each_output():
    model = tiny_model()
    plan, _, frames = prepared(model, clips(2))
    plan.project.weight[3] *= 1000  # one loud channel must not cost the others their digits
    q = calibrate(plan, [frames]).dense["project"]
    assert (np.abs(q.weight).max(1) == 127).all()
    real = q.weight * q.weight_scale[:, None]
    assert (np.abs(real - plan.project.weight) <= q.weight_scale[:, None] * 0.501).all()


@pytest.mark.parametrize("sizes", [{"stem": [8, 16], "stem_bins": 2}, {"stem": [4, 6, 8], "stem_bins": 4, "stack": 3}])
def test_memory_of_a_stem_is_three_rows_of_its_maps(sizes):
    model = tiny_model(sizes)
    plan, sound, _frames = prepared(model, clips(2))
    need, listed = c_code.memory(plan, sound, 79, 0), cost(model.backbone.config, 3, 79)
    assert (need.ram_int8, need.ram_float32) == (listed["ram_int8"], listed["ram_float32"])
    assert plan.macs(79) == listed["macs"] and plan.tokens(79) == listed["tokens"]
    assert need.ram_int8 < 6000  # the first map alone would be 10,240 bytes


def test_memory_is_what_the_compiler_reserves(tmp_path):
    model = tiny_model()
    plan, sound, _frames = prepared(model, clips(2))
    need = c_code.memory(plan, sound, 313, 0)
    n, d = 314, plan.dim
    assert need.ram_int8 >= 3 * n * d + 4 * n  # tokens, keys, values in bytes; one row of scores in float
    assert need.ram_int8 < 20_000
    listed = cost(model.backbone.config, 3, 313)
    assert (need.ram_int8, need.ram_float32) == (listed["ram_int8"], listed["ram_float32"])
    assert plan.macs(216) == 4_124_768 - 16 * 50 + 16 * 3
    assert plan.macs_executed(216) < 0.6 * plan.macs(216)


def test_what_c_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    batch = clips(2)
    for backbone, frontend, message in (
        ({"post_norm": False}, {}, "post-norm"),
        ({}, {"n_fft": 500, "hop": 250}, "power of two"),
        ({"features": 128, "dim": 512, "layers": 4, "heads": 8, "ff": 2048}, {"n_mels": 128}, "too many"),
    ):
        model = tiny_model(backbone, frontend)
        with pytest.raises(UsageError, match=message):
            export_model(model, tmp_path / "out", ["c"], example=batch, calibration=batch)
        assert not list(tmp_path.glob("out/c/*"))
    with pytest.raises(UsageError, match="calibration"):
        export_model(tiny_model(), tmp_path / "out", ["c"], example=batch)
