"""C for microcontrollers: weights, front-end tables and a test vector as headers, and a plain forward pass."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from avssl import __version__
from avssl.errors import UsageError, check
from avssl.export.interpret import MOST_INPUTS, Quantised, forward, forward_int8, input_point
from avssl.export.plan import EncoderPlan, SoundPlan
from avssl.files import write_text

MAX_PARAMETERS = 4_000_000  # beyond this a header takes a compiler minutes, and no microcontroller holds it
SOURCES = ("avssl_edge.h", "avssl_edge.c", "avssl_frontend.c", "avssl_host.c")
SIZES = {"int8_t": 1, "int16_t": 2, "int32_t": 4, "float": 4}
KINDS = {"mel": 0, "mfcc": 1, "spectrogram": 2, "raw": 3}
LAYER_PARTS = ("query", "key", "value", "output", "up", "down")


@dataclass(frozen=True)
class Memory:
    """Bytes of the C build, without its code and the pointers between its tables."""

    weights_int8: int  # int8 matrices
    flash_int8: int  # matrices, biases, scales, norms, positions
    flash_float32: int  # matrices, biases, norms, positions
    flash_frontend: int  # window, twiddle factors, filters
    ram_int8: int  # work buffers of the int8 pass: static ones and the arrays on its stack
    ram_float32: int
    stack_int8: int  # what of it lies on the stack
    stack_float32: int
    frames_int8: int  # the input of one clip
    frames_float32: int
    ram_frontend: int  # the last samples heard and the buffers of the transform
    clip_float: int  # where frames depend on the clip as a whole: its 16-bit sound and its float frames; else 0
    total_int8: int  # from PCM to label: front end, one float frame or `clip_float`, int8 frames, int8 pass
    total_float32: int


def write_c(
    out: Path,
    plan: EncoderPlan,
    quantised: Quantised,
    sound: SoundPlan | None,
    frames: int,
    *,
    labels: Sequence[str] = (),
    licence: str = "",
    name: str = "model",
    test: tuple[np.ndarray, Tensor] | None = None,
) -> list[Path]:
    """Write a folder that compiles as it is: `cc -std=c99 -O2 *.c -lm`.

    plan: without an affine of its own (`avssl.export.plan.folded`). frames: the longest input.
    test: (int16 PCM (L,) or an empty array, its standardised frames (1, T, F)).
    Returns the files.
    """
    check_plan(plan, sound)
    out.mkdir(parents=True, exist_ok=True)
    head = _banner(name, licence)
    texts = {
        "model_config.h": head + _config(plan, sound, frames, labels, quantised),
        "model_weights.h": head + _weights(plan, quantised),
        "model_weights_f32.h": head + _weights_f32(plan),
    }
    if sound is not None:
        texts["frontend.h"] = head + "".join(array(*table) for table in _sound_tables(sound))
    if test is not None:
        texts["test_vector.h"] = head + _test_vector(plan, quantised, *test)
    for source in SOURCES:
        if source != "avssl_host.c" or test is not None:
            texts[source] = (files("avssl.export") / "c" / source).read_text(encoding="utf-8")
    for file, text in texts.items():
        write_text(out / file, text)
    return [out / file for file in texts]


def check_plan(plan: EncoderPlan, sound: SoundPlan | None) -> None:
    """Raise UsageError for what the C code cannot hold or compute."""
    size = sum(d.weight.size + d.bias.size for d in plan.dense().values())
    check(
        size <= MAX_PARAMETERS,
        f"{size:,} parameters are too many for a C header",
        fix="export to ONNX; C is for models of up to 4 million",
    )
    widest = max(d.weight.shape[1] for d in plan.dense().values())
    check(widest <= MOST_INPUTS, f"a sum of {widest:,} int8 products may overflow 32 bits", fix="export to ONNX")
    if sound is not None and sound.kind != "raw" and sound.n_fft & (sound.n_fft - 1):
        raise UsageError(
            f"n_fft {sound.n_fft} is no power of two", fix="the C front end needs one; train with 512 or 1024"
        )


def memory(plan: EncoderPlan, sound: SoundPlan | None, frames: int) -> Memory:
    """For clips of up to `frames` frames. sound None: the frames come from elsewhere."""
    n, dense = plan.tokens(frames), plan.dense().values()
    matrices, outputs = sum(d.weight.size for d in dense), sum(d.bias.size for d in dense)
    rest = _bytes(_float_tables(plan))
    inputs = plan.stack * plan.frame_features
    static = 3 * n * plan.dim + stem_maps(plan, frames)
    # On the stack lie the rows of the pass and those of what it calls: the stem, or int8 attention.
    rows = stem_widest(plan) + plan.frame_features if plan.stem else 0
    called = max(rows + stem_widest(plan) if plan.stem else 0, plan.dim // plan.heads)
    stack_int8 = 4 * (3 * plan.dim + plan.ff + called) + inputs + plan.ff + plan.dim
    stack_float32 = 4 * (3 * plan.dim + plan.ff + inputs + rows)
    frames_int8, frames_float32 = frames * plan.features, 4 * frames * plan.features
    ram_int8 = static + 4 * n + stack_int8  # 4 n: one row of scores
    ram_float32 = 4 * (static + n) + stack_float32
    ram_frontend = clip_float = one = 0
    if sound is not None:
        ram_frontend = 2 * window(sound) + (0 if sound.kind == "raw" else 8 * sound.n_fft)
        one = 4 * plan.features
        if not streams(sound):
            clip_float = 2 * (sound.samples or sound.samples_of(frames)) + frames_float32
    return Memory(
        weights_int8=matrices,
        flash_int8=matrices + 8 * outputs + rest,
        flash_float32=4 * (matrices + outputs) + rest,
        flash_frontend=0 if sound is None else _bytes(_sound_tables(sound)),
        ram_int8=ram_int8,
        ram_float32=ram_float32,
        stack_int8=stack_int8,
        stack_float32=stack_float32,
        frames_int8=frames_int8,
        frames_float32=frames_float32,
        ram_frontend=ram_frontend,
        clip_float=clip_float,
        total_int8=ram_frontend + (clip_float or one) + frames_int8 + ram_int8,
        total_float32=ram_frontend + (clip_float or frames_float32) + ram_float32,
    )


def window(sound: SoundPlan) -> int:
    """Samples that one frame is made of."""
    return sound.hop if sound.kind == "raw" else sound.n_fft


def streams(sound: SoundPlan) -> bool:
    """Whether a frame depends on its own samples alone, so that neither clip nor float frames need be kept."""
    return sound.standardise == "none"


def stem_widest(plan: EncoderPlan) -> int:
    """Channels of the stem's widest map."""
    return max(len(layer.weight) for layer in plan.stem)


def stem_maps(plan: EncoderPlan, frames: int) -> int:
    """Numbers that the stem keeps: three rows of each map between two layers, and what it gives."""
    return stem_rings(plan)[-1] + plan.maps(frames)[-1][0] * plan.frame_features if plan.stem else 0


def stem_rings(plan: EncoderPlan) -> list[int]:
    """Where each layer keeps the rows of its map; the last layer's place is behind them all."""
    sizes = [3 * bands * channels for _, bands, channels in plan.maps(1)[1:-1]]
    return [0, *itertools.accumulate(sizes)]


def compiler() -> str | None:
    """The C compiler of this machine, or None."""
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def compile_c(folder: Path, *, float32: bool = True, flags: Sequence[str] = ("-O2",)) -> Path:
    """Build `avssl_host` in a folder that `write_c` wrote. Raises UsageError with the compiler's first words."""
    cc = compiler()
    check(cc is not None, "there is no C compiler (cc, gcc, clang)", fix="install one, or leave the test out")
    binary = folder / "avssl_host"
    sources = [str(folder / s) for s in SOURCES if s.endswith(".c")]
    command = [
        str(cc),
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-pedantic",
        "-Werror",
        *flags,
        f"-DAVSSL_FLOAT={int(float32)}",
        *sources,
        "-o",
        str(binary),
        "-lm",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    check(
        done.returncode == 0,
        f"the C code does not compile: {done.stderr[:400]}",
        fix="report this, with the compiler's version",
    )
    return binary


def run_c(binary: Path, how: str, what: str, data: np.ndarray) -> np.ndarray:
    """Clips through the compiled model. how: "f32", "int8" or "frontend"; what: "frames" or "pcm".

    data: (B, T, F) float32 or (B, L) int16. Returns float32, flat per clip: (B, ...).
    """
    data = np.ascontiguousarray(data, dtype=np.float32 if what == "frames" else np.int16)
    done = subprocess.run(
        [str(binary), how, what, str(data.shape[1])], input=data.tobytes(), capture_output=True, timeout=600
    )
    check(
        done.returncode == 0,
        f"{binary.name} {how} {what} ended with status {done.returncode}",
        fix="is the clip too long?",
    )
    return np.frombuffer(done.stdout, dtype=np.float32).reshape(len(data), -1)


# ---- text ------------------------------------------------------------------------------------------------------------
def _banner(name: str, licence: str) -> str:
    return (
        f"/* {_comment(name)}: written by avssl {__version__}. Licence of the weights: "
        f"{_comment(licence) or 'not stated'}. Do not edit. */\n"
    )


def _comment(text: str) -> str:
    """Text that cannot end a C comment."""
    return " ".join(text.replace("*/", "* /").split())


def number(value: Any) -> str:
    """A C float constant that reads back as the same float32."""
    text = f"{np.float32(value):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def array(name: str, values: np.ndarray, kind: str) -> str:
    """`static const` array, 4-byte aligned, row by row."""
    flat = np.asarray(values).ravel()
    words = [number(v) for v in flat] if kind == "float" else [str(int(v)) for v in flat]
    lines = [", ".join(words[i : i + 16]) for i in range(0, len(words), 16)]
    aligned = " __attribute__((aligned(4)))" if kind == "int8_t" else ""
    return f"static const {kind} {name}[{len(flat)}]{aligned} = {{\n" + ",\n".join(lines) + "\n};\n"


Table = tuple[str, Any, str]  # name, values, C type


def _bytes(tables: Iterable[Table]) -> int:
    return sum(np.asarray(values).size * SIZES[kind] for _, values, kind in tables)


def _config(
    plan: EncoderPlan, sound: SoundPlan | None, frames: int, labels: Sequence[str], quantised: Quantised
) -> str:
    n = plan.tokens(frames)
    crc = zlib.crc32(b"".join(q.weight.tobytes() for q in quantised.dense.values()))
    need = memory(plan, sound, frames)
    values: dict[str, Any] = {
        "FEATURES": plan.features,
        "FRAME_FEATURES": plan.frame_features,
        "STACK": plan.stack,
        "STEM": len(plan.stem),
        "DIM": plan.dim,
        "HEADS": plan.heads,
        "LAYERS": len(plan.layers),
        "FF": plan.ff,
        "OUTPUTS": plan.outputs,
        "PREFIX": int(plan.token is not None),
        "MAX_FRAMES": frames,
        "MAX_TOKENS": n,
        "ACTIVATION": ("gelu", "gelu_tanh", "relu").index(plan.activation),
        "POSITIONS": 1 if plan.position_rates is not None else 2 if plan.position_table is not None else 0,
        "POOL_FIRST": int(plan.pool == "first"),
        "HAS_POOLER": int(plan.pooler is not None),
        "HAS_HEAD": int(plan.head is not None),
        "HAS_HEAD_NORM": int(plan.head_norm is not None),
        "ATTENTION_SCALE": number((plan.dim // plan.heads) ** -0.5),
        "HAS_FRONTEND": int(sound is not None),
        "WEIGHTS_CRC32": f"0x{crc:08X}u",
        "RAM_INT8": need.ram_int8,
        "RAM_F32": need.ram_float32,
    }
    if plan.stem:
        values |= {
            "STEM_BINS": plan.stem_bins,
            "STEM_WIDEST": stem_widest(plan),
            "STEM_RINGS": stem_rings(plan)[-1],
            "STEM_MAPS": stem_maps(plan, frames),
        }
    if sound is not None:
        values |= {
            "RATE": sound.rate,
            "KIND": KINDS[sound.kind],
            "N_FFT": sound.n_fft or 1,
            "HOP": sound.hop,
            "WINDOW": window(sound),
            "CENTER": int(sound.center and sound.kind != "raw"),
            "HAS_STREAM": int(streams(sound)),
            "BANDS": 0 if sound.bank is None else len(sound.bank),
            "EXPONENT": number(sound.exponent),
            "FLOOR": number(sound.floor),
            "EPS": number(sound.eps),
            "STANDARDISE": ("none", "clip", "coefficient").index(sound.standardise),
            "HAS_STATISTICS": int(sound.gain is not None),
        }
    lines = [f"#define AVSSL_{key} {value}" for key, value in values.items()]
    lines += ["#ifndef AVSSL_FLOAT", "#define AVSSL_FLOAT 0 /* 1: compile the float32 pass too */", "#endif"]
    lines += [f"/* output {i}: {_comment(label)} */" for i, label in enumerate(labels)]
    return "#ifndef AVSSL_MODEL_CONFIG_H\n#define AVSSL_MODEL_CONFIG_H\n" + "\n".join(lines) + "\n#endif\n"


def _float_tables(plan: EncoderPlan) -> list[Table]:
    """What stays float in both passes: norms, the first token, positions."""
    out: list[Table] = []
    for name, layer in plan.norms().items():
        out += [(f"{name}_weight", layer.weight, "float"), (f"{name}_bias", layer.bias, "float")]
    out.append(("first_token", plan.token if plan.token is not None else np.zeros(plan.dim), "float"))
    for name in ("position_rates", "position_table"):
        if getattr(plan, name) is not None:
            out.append((name, getattr(plan, name), "float"))
    return out


def _weights(plan: EncoderPlan, quantised: Quantised) -> str:
    """int8 matrices, int32 biases, scales; and what stays float."""
    tables: list[Table] = []
    for name, q in quantised.dense.items():
        tables += [
            (f"{name}_q", q.weight, "int8_t"),
            (f"{name}_qb", q.bias, "int32_t"),
            (f"{name}_qs", q.scale, "float"),
        ]
    text = "/* int8 weights, row-major [output][input]; bias at the accumulator's scale. */\n"
    text += "".join(array(*table) for table in tables + _float_tables(plan))
    scales = quantised.scales

    def inverse(point: str) -> str:
        return number(np.float32(1) / scales[point])

    def norm_struct(name: str) -> str:
        return f"{{{name}_weight, {name}_bias, {number(plan.norms()[name].eps)}}}"

    def dense_struct(name: str) -> str:
        return f"{{{name}_q, {name}_qb, {name}_qs, {inverse(input_point(name))}}}"

    text += f"static const layer_norm first_norm = {norm_struct('norm')};\n"
    if plan.head_norm is not None:
        text += f"static const layer_norm head_norm = {norm_struct('head_norm')};\n"
    text += "static const layer_common layers_common[AVSSL_LAYERS] = {\n"
    text += (
        "".join(
            f"{{{norm_struct(f'layer{i}_attention_norm')}, {norm_struct(f'layer{i}_output_norm')}}},\n"
            for i in range(len(plan.layers))
        )
        + "};\n"
    )
    text += "static const layer_int8 layers_int8[AVSSL_LAYERS] = {\n"
    for i in range(len(plan.layers)):
        p = f"layer{i}_"
        factor = np.float32(scales[p + "query"] * scales[p + "key"] / np.float32(np.sqrt(plan.dim // plan.heads)))
        text += "{" + ", ".join(dense_struct(p + part) for part in LAYER_PARTS)
        text += f",\n {number(scales[p + 'x'])}, {inverse(p + 'key')}, {inverse(p + 'value')}, {inverse(p + 'query')}"
        text += f", {number(factor)}, {number(scales[p + 'value'])}}},\n"
    text += "};\n"
    if plan.stem:
        text += "static const conv_shape stem_shapes[AVSSL_STEM] = {\n"
        text += "".join(
            f"{{{bands}, {channels}, {len(layer.weight)}, {ring}}},\n"
            for (_, bands, channels), layer, ring in zip(plan.maps(1)[:-1], plan.stem, stem_rings(plan), strict=True)
        )
        text += "};\nstatic const dense_int8 stem_dense_int8[AVSSL_STEM] = {\n"
        text += ",\n".join(dense_struct(f"stem{i}") for i in range(len(plan.stem))) + "\n};\n"
    singles = [n for n in ("project", "pooler", "head") if n in quantised.dense]
    text += "".join(f"static const dense_int8 {name}_int8 = {dense_struct(name)};\n" for name in singles)
    text += "static const struct { const int8_t *data; size_t size; } all_weights[] = {\n"
    text += "".join(f"{{{name}_q, sizeof {name}_q}},\n" for name in quantised.dense) + "};\n"
    return text


def _weights_f32(plan: EncoderPlan) -> str:
    text = "/* float32 weights, row-major [output][input]; only for a build with AVSSL_FLOAT=1. */\n"
    for name, layer in plan.dense().items():
        text += array(f"{name}_w", layer.weight, "float") + array(f"{name}_b", layer.bias, "float")
    text += "static const layer_f32 layers_f32[AVSSL_LAYERS] = {\n"
    for i in range(len(plan.layers)):
        text += "{" + ", ".join(f"{{layer{i}_{part}_w, layer{i}_{part}_b}}" for part in LAYER_PARTS) + "},\n"
    text += "};\n"
    if plan.stem:
        stem = ", ".join(f"{{stem{i}_w, stem{i}_b}}" for i in range(len(plan.stem)))
        text += f"static const dense_f32 stem_dense_f32[AVSSL_STEM] = {{{stem}}};\n"
    singles = [n for n in ("project", "pooler", "head") if n in plan.dense()]
    return text + "".join(f"static const dense_f32 {n}_f32 = {{{n}_w, {n}_b}};\n" for n in singles)


def _sound_tables(sound: SoundPlan) -> list[Table]:
    """Window, twiddle factors, sparse filters, DCT, fixed statistics."""
    out: list[Table] = []
    if sound.kind != "raw":
        angle = 2 * np.pi * np.arange(sound.n_fft // 2) / sound.n_fft
        out += [("window", sound.window, "float")]
        out += [("twiddle_cos", np.cos(angle), "float"), ("twiddle_sin", np.sin(angle), "float")]
    if sound.bank is not None:
        starts, lengths, weights = sparse(sound.bank)
        out += [("mel_start", starts, "int16_t"), ("mel_length", lengths, "int16_t"), ("mel_weights", weights, "float")]
    if sound.dct is not None:
        out.append(("dct", sound.dct, "float"))
    if sound.gain is not None and sound.shift is not None:
        out += [("feature_shift", sound.shift, "float"), ("feature_gain", sound.gain, "float")]
    return out


def sparse(bank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Filters (M, bins) as first bin, number of bins and the weights one after the other."""
    starts, lengths, weights = [], [], []
    for row in bank:
        used = np.flatnonzero(row)
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 0)
        starts.append(first)
        lengths.append(last - first)
        weights.append(row[first:last])
    return np.array(starts), np.array(lengths), np.concatenate(weights)


def _test_vector(plan: EncoderPlan, quantised: Quantised, pcm: np.ndarray, frames: Tensor) -> str:
    """Sound, its frames and the outputs of both passes; what the self-test compares."""
    real, small = forward(plan, frames)[0].numpy(), forward_int8(quantised, frames)[0].numpy()
    # A value that lies on a rounding edge may fall to the other side in another libm: one step somewhere.
    allowed = max(0.02 * float(np.abs(small).max()), 1e-3)
    text = f"#define AVSSL_TEST_SAMPLES {len(pcm)}\n#define AVSSL_TEST_FRAMES {frames.shape[1]}\n"
    text += f"#define AVSSL_TEST_INT8_TOLERANCE {number(allowed)}\n"
    if len(pcm):
        text += array("test_pcm", pcm, "int16_t")
    text += array("test_frames", frames[0].numpy(), "float")
    return text + array("test_logits_f32", real, "float") + array("test_logits_int8", small, "float")
