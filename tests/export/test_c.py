"""The C forward pass is compiled and run: it gives PyTorch's numbers in float, and its own definition's in int8."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from export.models import RATE, clips, tiny_model

from avssl.batch import Stream
from avssl.errors import UsageError
from avssl.export import c_code
from avssl.export.exporter import export_model
from avssl.export.interpret import calibrate, forward, forward_int8, quantise_dense
from avssl.export.plan import Dense, folded, plan_of
from avssl_tiny.cost import cost, shapes

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
    "raw segments as they are": ({"features": 400}, {"kind": "raw", "standardise": "none"}, {}),
    "HTK bands of an amplitude spectrum": (
        {"features": 40},
        {"n_mels": 40, "mel_scale": "htk", "mel_norm": "none", "power": 1.0, "n_fft": 1024},
        {},
    ),
    "the core's head, with its norm": ({}, {}, {"name": "classify"}),
}


@functools.cache
def sanitized() -> tuple[str, ...]:
    """Flags under which a build aborts on undefined behaviour, where the compiler has them."""
    flags = ("-O0", "-fsanitize=undefined,address", "-fno-sanitize-recover")
    command = [c_code.compiler(), *flags, "-x", "c", "-", "-o", os.devnull]
    done = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True)
    return flags if done.returncode == 0 else ("-O0",)


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
    binary = c_code.compile_c(tmp_path, flags=sanitized())
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


@needs_cc
@pytest.mark.parametrize(
    "variant", [v for v, (_, f, _) in VARIANTS.items() if f.get("standardise") in ("none", "fixed")]
)
def test_frames_made_while_the_sound_arrives_are_those_of_the_whole_clip(variant, tmp_path):
    """Bit by bit, at both reflected ends, for lengths around the window's and the hop's multiples."""
    model = tiny_model(*VARIANTS[variant])
    plan, sound, frames = prepared(model, clips(2))
    pcm = (clips(3).need("audio").x.numpy() * 32768).astype(np.int16)
    c_code.write_c(tmp_path, plan, calibrate(plan, [frames]), sound, frames.shape[1], test=(pcm[0], frames[:1]))
    binary = c_code.compile_c(tmp_path, flags=sanitized())
    window, hop = c_code.window(sound), sound.hop
    shortest = 1 if sound.kind == "raw" else window // 2 + 1
    for length in (shortest, window - 1, window, window + 1, 3 * hop - 1, 3 * hop, 3 * hop + 1, 15999, 16000):
        if length < shortest:
            continue
        with torch.inference_mode():
            part = model.frontend(clips(3).with_streams(audio=Stream(clips(3).need("audio").x[:, :length])))
            want = part.need("audio").x
        if plan_of(model)[0].shift is not None:
            original = plan_of(model)[0]
            want = (want - torch.from_numpy(original.shift)) * torch.from_numpy(original.gain)
        whole = c_code.run_c(binary, "frontend", "pcm", pcm[:, :length]).reshape(want.shape)
        np.testing.assert_allclose(whole, want.numpy(), rtol=0, atol=2e-3)
        arrived = c_code.run_c(binary, "int8", "pcm", pcm[:, :length])  # block by block, quantised at once
        np.testing.assert_array_equal(arrived, c_code.run_c(binary, "int8", "frames", whole))
    with pytest.raises(UsageError, match="status 1"):
        c_code.run_c(binary, "int8", "pcm", pcm[:, : shortest - 1])
    with pytest.raises(UsageError, match="status 1"):  # more frames than there is room for
        c_code.run_c(binary, "frontend", "pcm", np.tile(pcm, (1, 2)))
    # int8 drops what there is no room for, as a device that goes on recording does
    full = c_code.run_c(binary, "int8", "pcm", np.tile(pcm, (1, 2)))
    assert full.shape == (3, 3) and np.isfinite(full).all()


def test_a_frontend_that_standardises_over_the_clip_has_no_stream_and_says_what_it_keeps():
    plan, sound, frames = prepared(tiny_model(), clips(2))
    count = frames.shape[1]
    need = c_code.memory(plan, sound, count)
    assert need.clip_float == 2 * RATE + 4 * count * plan.features  # 16-bit sound and float frames
    assert need.total_int8 == need.clip_float + need.ram_frontend + count * plan.features + need.ram_int8


def test_the_recipe_of_esc10_keeps_neither_clip_nor_float_frames():
    plan, sound, frames = prepared(tiny_model(*VARIANTS["the recipe of ESC-10"]), clips(2))
    need = c_code.memory(plan, sound, frames.shape[1])
    assert need.clip_float == 0 and need.ram_frontend == 2048 * (4 + 4 + 2)
    assert need.total_int8 == need.ram_frontend + 4 * 32 + need.frames_int8 + need.ram_int8
    assert need.flash_float32 > 2 * need.flash_int8  # one definition for both


@needs_cc
@pytest.mark.skipif(shutil.which("nm") is None, reason="there is no nm, which lists the symbols of an object file")
@pytest.mark.parametrize("variant", VARIANTS)
def test_memory_is_what_the_compiler_reserves(variant, tmp_path):
    model = tiny_model(*VARIANTS[variant])
    plan, sound, frames = prepared(model, clips(2))
    need = c_code.memory(plan, sound, frames.shape[1])
    c_code.write_c(tmp_path, plan, calibrate(plan, [frames]), sound, frames.shape[1])

    def sizes(source, float32):
        """Bytes by symbol: work buffers, constant tables (those with pointers apart)."""
        out = tmp_path / "one.o"
        flags = ["-std=c99", "-O0", "-fPIC", f"-DAVSSL_FLOAT={float32}", "-c", source, "-o", out]
        subprocess.run([c_code.compiler(), *flags], cwd=tmp_path, check=True)
        listed = subprocess.run(["nm", "-S", out], capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in listed.splitlines() if len(line.split()) == 4]
        kinds = {kind.lower(): {r[3]: int(r[1], 16) for r in rows if r[2].lower() == kind} for kind in "bdr"}
        assert not {
            n
            for n in kinds["d"]
            if not n.startswith(("layers_", "stem_dense", "all_", "first_norm", "head_norm"))
            and not n.endswith(("_int8", "_f32"))
        }
        return sum(kinds["b"].values()), {n: size for n, size in kinds["r"].items() if n != "stem_shapes"}

    small, tables = sizes("avssl_edge.c", 0)
    assert small == need.ram_int8 - need.stack_int8
    assert sum(tables.values()) == need.flash_int8
    both, more = sizes("avssl_edge.c", 1)  # the int8 pass is always there; scores are shared
    scores = 4 * plan.tokens(frames.shape[1])
    assert both == small + need.ram_float32 - need.stack_float32 - scores
    dense = plan.dense().values()
    assert sum(more.values()) - sum(tables.values()) == 4 * sum(d.weight.size + d.bias.size for d in dense)
    shared = need.flash_int8 - sum(d.weight.size + 8 * d.bias.size for d in dense)
    assert need.flash_float32 == sum(more.values()) - sum(tables.values()) + shared
    front, tables = sizes("avssl_frontend.c", 0)
    assert front == need.ram_frontend + 8  # two counters
    assert sum(tables.values()) == need.flash_frontend


@pytest.mark.skipif(shutil.which("gcc") is None, reason="-fstack-usage is GCC's")
@pytest.mark.parametrize("variant", ["the recipe of ESC-10", "a convolutional stem"])
def test_the_stack_is_what_gcc_reserves(variant, tmp_path):
    plan, sound, frames = prepared(tiny_model(*VARIANTS[variant]), clips(2))
    need = c_code.memory(plan, sound, frames.shape[1])
    c_code.write_c(tmp_path, plan, calibrate(plan, [frames]), sound, frames.shape[1])
    command = ["gcc", "-std=c99", "-O0", "-fstack-usage", "-DAVSSL_FLOAT=1", "-c", "avssl_edge.c", "-o", "edge.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    listed = next(tmp_path.glob("*.su")).read_text().splitlines()
    used = {row.split("\t")[0].rpartition(":")[2]: int(row.split("\t")[1]) for row in listed}
    for kind, size in (("int8", need.stack_int8), ("f32", need.stack_float32)):
        deepest = max(used[f"attend_{kind}"], used.get(f"stem_row_{kind}", 0))
        assert size <= used[f"avssl_forward_{kind}"] + deepest < size + 600  # and registers, counters, addresses


@pytest.mark.parametrize("sizes", [{"stem": [8, 16], "stem_bins": 2}, {"stem": [4, 6, 8], "stem_bins": 4, "stack": 3}])
def test_memory_of_a_stem_is_three_rows_of_its_maps(sizes):
    plan, sound, _frames = prepared(tiny_model(sizes), clips(2))
    assert c_code.memory(plan, sound, 79).ram_int8 < 6000  # the first map alone would be 10,240 bytes


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "head" not in v])
def test_the_cost_of_a_size_is_that_of_the_built_model(variant):
    model = tiny_model(*VARIANTS[variant])
    plan, _, _ = prepared(model, clips(2))
    listed, need = cost(model.backbone.config, 3, 100), c_code.memory(plan, None, 100)
    assert listed["parameters"] == sum(p.numel() for p in (*model.backbone.parameters(), *model.head.parameters()))
    assert shapes(model.backbone.config, 3).macs_executed(100) == plan.macs_executed(100)
    assert (listed["macs"], listed["tokens"]) == (plan.macs(100), plan.tokens(100))
    assert (listed["ram_int8"], listed["ram_float32"]) == (need.ram_int8, need.ram_float32)


def test_multiply_accumulates_of_the_encoder_of_the_paper():
    plan, _, _ = prepared(tiny_model(), clips(2))
    assert plan.macs(216) == 4_124_768 - 16 * 50 + 16 * 3
    assert plan.macs_executed(216) < 0.6 * plan.macs(216)


@needs_cc
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_header_serves_cpp(tmp_path):
    model = tiny_model(*VARIANTS["the recipe of ESC-10"])
    plan, sound, frames = prepared(model, clips(2))
    c_code.write_c(tmp_path, plan, calibrate(plan, [frames]), sound, frames.shape[1])
    (tmp_path / "app.cpp").write_text(
        """#include "avssl_edge.h"
int main()
{
    static const int16_t silence[AVSSL_N_FFT] = {};
    static int8_t narrow[AVSSL_MAX_FRAMES * AVSSL_FEATURES];
    float frame[AVSSL_FEATURES], out[AVSSL_OUTPUTS];
    int count = 0;
    avssl_stream_begin();
    for (const int16_t *at = silence; avssl_stream_next(&at, silence + AVSSL_N_FFT, frame);)
        avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
    while (avssl_stream_end(frame)) avssl_quantise_frame(frame, narrow + AVSSL_FEATURES * count++);
    if (count != 3 || avssl_forward_int8(narrow, count, out)) return 1;
    return avssl_weights_crc32() != AVSSL_WEIGHTS_CRC32;
}
"""
    )
    strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-c"]
    for command in (
        [c_code.compiler(), "-std=c99", *strict, "avssl_edge.c", "avssl_frontend.c"],
        ["g++", *strict, "app.cpp"],
        ["g++", "app.o", "avssl_edge.o", "avssl_frontend.o", "-o", "app", "-lm"],
        ["./app"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)


@needs_cc
@pytest.mark.parametrize("gain", [0.0, 1e-30, 1e-10, 1e-6])
@pytest.mark.parametrize("where", ["stem", "project"])
def test_a_bias_beside_weights_of_nothing_overflows_no_sum(where, gain, tmp_path):
    """A dead channel of a BatchNorm, a row that training drove to zero: their bias is all they give."""
    model = tiny_model(*VARIANTS["a convolutional stem"])
    with torch.no_grad():
        if where == "stem":
            norm = model.backbone.stem.norms[0]
            norm.weight[1], norm.bias[1] = gain, 1.0
        else:
            model.backbone.proj.weight[3] *= gain
            model.backbone.proj.bias[3] = -0.7
    batch = clips(6)
    plan, sound, frames = prepared(model, batch)
    quantised = calibrate(plan, [frames])
    name = "stem0" if where == "stem" else "project"
    q, row = quantised.dense[name], 1 if where == "stem" else 3
    np.testing.assert_allclose(q.bias[row] * q.scale[row].astype(np.float64), plan.dense()[name].bias[row], rtol=1e-6)
    pcm = (batch.need("audio").x[0].numpy() * 32768).astype(np.int16)
    c_code.write_c(tmp_path, plan, quantised, sound, frames.shape[1], test=(pcm, frames[:1]))
    got = c_code.run_c(c_code.compile_c(tmp_path, flags=sanitized()), "int8", "frames", frames.numpy())
    np.testing.assert_allclose(got, forward_int8(quantised, frames).numpy(), rtol=0, atol=0.02)
    want = forward(plan, frames).numpy()
    assert np.abs(got - want).max() < 0.15 * np.ptp(want) + 0.02


@pytest.mark.parametrize("weight, bias", [(0, 0), (1e-44, 0), (0, 1e-40), (1e-44, 1e-44)])
def test_rows_of_nothing_stay_zeros(weight, bias):
    layer = Dense(np.full((2, 3), weight, np.float32), np.full(2, bias, np.float32))
    q = quantise_dense(layer, np.float32(1e-3))
    assert not q.weight.any() and not q.bias.any() and (q.scale > 0).all()


@needs_cc
def test_a_second_export_to_a_folder_replaces_its_own_files(tmp_path):
    mine = tmp_path / "notes.txt"
    mine.write_text("mine")
    for seconds in (1.0, 0.5):
        batch = clips(2, seconds)
        export_model(tiny_model({}, {"seconds": seconds}), tmp_path, ["c"], example=batch, calibration=batch)
    assert mine.read_text() == "mine" and "AVSSL_MAX_FRAMES 32\n" in (tmp_path / "c" / "model_config.h").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"c", "notes.txt", "labels.txt", "report.json"}


def test_sums_that_32_bits_cannot_hold_are_refused():
    model = tiny_model({"features": 400, "dim": 2, "heads": 1, "layers": 1, "ff": 2, "stack": 200}, {"kind": "raw"})
    with pytest.raises(UsageError, match="a sum of 80,000 int8 products may overflow"):
        c_code.check_plan(*folded(*plan_of(model)))


def test_what_c_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    batch = clips(2)
    for backbone, frontend, message in (
        ({"post_norm": False}, {}, "post-norm"),
        ({}, {"n_fft": 500, "hop": 250}, "power of two"),
        ({"features": 128, "dim": 512, "layers": 4, "heads": 8, "ff": 2048}, {"n_mels": 128}, "too many"),
    ):
        model = tiny_model(backbone, frontend)
        with pytest.raises(UsageError, match=message):
            export_model(model, tmp_path / "out", ["onnx", "c"], example=batch, calibration=batch)
        assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match="calibration"):
        export_model(tiny_model(), tmp_path / "out", ["c"], example=batch)
