"""ESC-10, five folds: tiny Transformers against the 4-million-parameter CNN, plain, augmented, distilled, in int8.

    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS                       # everything, then the table
    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS --folds 1 2 & ... --folds 3 4 5 &    # in parallel
    python tests/benchmarks/esc10_tiny.py --out RESULTS --table                            # the table of what is there
    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS --inner              # choose settings without test folds

Every (variant, fold, seed) is one JSON file: what exists is not run again, and processes may share RESULTS. Test folds
are used once, after a fixed number of epochs; fold 1 alone had been looked at twice while this script was first written.
`--inner` trains on three folds and tests on the next one after the test fold, whole folds only. One setting was chosen
for all folds (by the mean of inner splits 1, 3 and 5), so the choice is not strictly nested.

Log-mel frames are computed once. Augmentation therefore works on frames: the circular shift by whole frames, the gain
as an offset in dB, the equaliser as one for each band, mixup and masks as in the recipes. A teacher (the CNN of the same
fold, seed 0) answers beforehand, in bfloat16, for MIXTURES mixtures of the training clips that teacher and student
both hear. One thread per process; the CNN trains in bfloat16 (autocast, float32 weights) and is tested in float32.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from avssl.batch import Batch, Stream
from avssl.data.clip import AudioRequest, Waveform
from avssl.data.decode import decode_audio
from avssl.data.manifest import read_rows
from avssl.data.resample import mono, resample
from avssl.export.interpret import calibrate, forward_int8
from avssl.export.plan import folded, plan_of
from avssl.files import write_json
from avssl.model import save_tensors
from avssl.schema import structure
from avssl_tiny.augment import spec_augment
from avssl_tiny.backbone import Tiny
from avssl_tiny.cnn import TinyCnn
from avssl_tiny.config import ClassifyConfig, SoundConfig, TinyCnnConfig, TinyConfig
from avssl_tiny.distill import divergence
from avssl_tiny.features import standardised
from avssl_tiny.frontend import SoundFrontend
from avssl_tiny.loss import Classify, supervised

FOLDS, SECONDS, RATE, BATCH = (1, 2, 3, 4, 5), 5.0, 16000, 32
MIXTURES = 12000
TEACHER_SEED = 0  # whatever seeds this process runs
NEPER = math.log(10) / 10  # logarithm of a power per decibel
FRAMES = {40: (2048, 2048), 79: (2048, 1024), 157: (1024, 512)}  # number of frames: (n_fft, hop)
AUGMENTED = {"shift": 1.0, "gain_db": 6.0, "mixup": 0.2}
MASKED = {**AUGMENTED, "time_masks": 2, "frequency_masks": 2}


def mel(frames: int = 40, **rest: Any) -> dict[str, Any]:
    n_fft, hop = FRAMES[frames]
    return {"kind": "mel", "n_fft": n_fft, "hop": hop, **AUGMENTED, **rest}


def mfcc(frames: int = 40, **rest: Any) -> dict[str, Any]:
    return {**mel(frames), "kind": "mfcc", "n_mels": 128, "standardise": "none", **rest}


@dataclass(frozen=True)
class Variant:
    backbone: str
    sound: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    epochs: int = 300
    lr: float = 3e-3
    weight_decay: float = 0.01
    teacher: str = ""  # a variant: its model of the same fold, of TEACHER_SEED
    temperature: float = 2.0
    weight: float = 1.0  # of the imitation


BY_CLIP = Variant("tiny", mel(79, n_mels=32, floor=1e-4), {"pooler": "mean", "stack": 2}, lr=1e-2)  # 40 tokens
TINY = replace(  # each band by the statistics of training, as the CNN's coefficients
    BY_CLIP, sound={**BY_CLIP.sound, "standardise": "none"}, sizes={**BY_CLIP.sizes, "input_norm": True}, epochs=150
)
STEM = Variant(  # two convolutions before the tokens
    "tiny",
    mel(79, n_mels=64, floor=1e-4, standardise="none", equaliser_db=4.0),
    {"stem": [8, 16], "stem_bins": 2, "ff": 24, "pooler": "mean", "input_norm": True},
    lr=1e-2,
    epochs=150,
)
CNN = Variant("tiny_cnn", mfcc(floor=1e-4), epochs=40, lr=1e-3)
EQUALISED = replace(CNN, sound=mfcc(floor=1e-4, equaliser_db=4.0))
WHOLE = replace(BY_CLIP, sound=mel(), sizes={"pooler": "mean"}, lr=3e-3)  # 64 bands, one frame a token
CANDIDATES: dict[str, Variant] = {  # compared by --inner
    "tiny-6k": WHOLE,
    "tiny-6k, floor 1e-6": replace(WHOLE, sound=mel(floor=1e-6)),
    "tiny-6k, floor 1e-4": replace(WHOLE, sound=mel(floor=1e-4)),
    "tiny-6k, 32 bands x 2": BY_CLIP,
    "tiny-6k, 32 bands x 2, by band": TINY,
    "tiny-6k, 16 bands x 4": replace(
        BY_CLIP, sound=mel(157, n_mels=16, floor=1e-4), sizes={"pooler": "mean", "stack": 4}
    ),
    "tiny-6k, 32 bands x 2, 60 epochs": replace(BY_CLIP, epochs=60),
    "tiny-6k, 32 bands x 2, by band, taught": replace(
        TINY, sound={**TINY.sound, "mixup": 1.0}, teacher="cnn-4m, floor 1e-4"
    ),
    "tiny-6k, stem": STEM,
    "tiny-6k, stem, no equaliser": replace(STEM, sound={**STEM.sound, "equaliser_db": 0.0}),
    "tiny-6k, stem, masks": replace(STEM, sound={**STEM.sound, **MASKED}),
    "tiny-7k, stem": replace(STEM, sizes={**STEM.sizes, "ff": 32, "stem_bins": 4}, lr=5e-3),
    "tiny-7k, stem, taught": replace(
        STEM,
        sound={**STEM.sound, "mixup": 1.0},
        sizes={**STEM.sizes, "ff": 32, "stem_bins": 4},
        lr=5e-3,
        teacher="cnn-4m, equaliser",
    ),
    "cnn-4m, equaliser": EQUALISED,
    "cnn-4m": replace(CNN, sound=mfcc()),
    "cnn-4m, floor 1e-6": replace(CNN, sound=mfcc(floor=1e-6)),
    "cnn-4m, floor 1e-4": CNN,
    "cnn-4m, floor 1e-4, masks": replace(CNN, sound=mfcc(**MASKED, floor=1e-4)),
    "cnn-4m, equaliser, masks": replace(CNN, sound=mfcc(**MASKED, floor=1e-4, equaliser_db=4.0)),
    "cnn-4m, floor 1e-4, 79 frames": replace(CNN, sound=mfcc(79, floor=1e-4)),
}
PLAIN = {"shift": 0.0, "gain_db": 0.0, "equaliser_db": 0.0, "mixup": 0.0}
TAUGHT = replace(TINY, sound={**TINY.sound, "mixup": 1.0}, teacher="cnn-4m, augmented")
VARIANTS: dict[str, Variant] = {  # what the inner splits chose
    "cnn-4m, augmented": CNN,
    "cnn-4m, equaliser": EQUALISED,
    "tiny-6k, stem, augmented": STEM,
    "tiny-6k, augmented": TINY,
    "tiny-6k, stem, taught by the CNN": replace(STEM, sound={**STEM.sound, "mixup": 1.0}, teacher="cnn-4m, augmented"),
    "tiny-6k, taught by the CNN": TAUGHT,
    "tiny-6k, stem, plain": replace(STEM, sound={**STEM.sound, **PLAIN}),
    "tiny-6k, plain": replace(TINY, sound={**TINY.sound, **PLAIN}),
    "cnn-4m, plain": replace(CNN, sound={**CNN.sound, **PLAIN}),
}


# ---- data ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clips:
    mels: Tensor  # (N, T, M) in dB, with the lowest floor
    labels: Tensor  # (N,)
    folds: Tensor  # (N,)


def waves(data: str, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """(N, L) float32 at 16 kHz, labels, folds, class names; decoded once."""
    cache = out / "waves.npz"
    if not cache.is_file():
        rows = read_rows(data, modalities=["audio"])
        names = sorted({r.labels[0] for r in rows})
        length = round(SECONDS * RATE)
        sound = np.zeros((len(rows), length), np.float32)
        for row, to in zip(rows, sound, strict=True):
            wave: Waveform = decode_audio(row.parts["audio"], AudioRequest(0.0, SECONDS))
            got = resample(mono(wave.samples), wave.rate, RATE)[:length]
            to[: len(got)] = got
        out.mkdir(parents=True, exist_ok=True)
        temporary = out / f".waves.{time.time_ns()}.npz"
        np.savez(
            temporary,
            sound=sound,
            labels=[names.index(r.labels[0]) for r in rows],
            folds=[r.fold for r in rows],
            names=names,
        )
        temporary.replace(cache)
    loaded = np.load(cache)
    return loaded["sound"], loaded["labels"], loaded["folds"], loaded["names"].tolist()


def sound_config(variant: Variant) -> SoundConfig:
    return structure(SoundConfig, {"seconds": SECONDS, "rate": RATE, **variant.sound})


def mels_of(config: SoundConfig, sound: Tensor) -> Tensor:
    """(n, L) -> (n, T, M) in dB."""
    extract = SoundFrontend(replace(config, kind="mel", floor=1e-10)).extract
    with torch.inference_mode():
        return torch.cat([extract(part) for part in sound.split(20)]).clone()


def clips_for(config: SoundConfig, args: argparse.Namespace, memory: dict[Any, Any]) -> Clips:
    key = (config.n_fft, config.hop, config.n_mels)
    if key not in memory:
        sound, labels, folds, _ = waves(args.data, args.out)
        mels = mels_of(config, torch.from_numpy(sound))
        memory[key] = Clips(mels, torch.from_numpy(labels), torch.from_numpy(folds))
    return memory[key]


class View:
    """Rows of log-mels -> what the backbone reads (n, T, F): gain, shift, floor, DCT, standardisation."""

    def __init__(self, mels: Tensor, config: SoundConfig) -> None:
        """mels: (N, T, M) in dB, with the lowest floor."""
        self.mels, self.config = mels, config
        self.dct = SoundFrontend(config).extract.dct if config.kind == "mfcc" else None

    def __call__(self, rows: Tensor | slice, shift: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        """shift: (n,) shares of the clip; gain: (n, 1 or more) dB, at equal steps over the bands."""
        frames = self.mels[rows]
        if gain is not None:
            frames = frames + by_band(gain, frames.shape[2])
        if shift is not None:
            frames = shifted(frames, shift)
        frames = frames.clamp_min(10 * math.log10(self.config.floor))
        return standardised(frames if self.dct is None else frames @ self.dct, self.config)


def by_band(gain: Tensor, bands: int) -> Tensor:
    """(n, k) gains at equal steps -> (n, 1, bands), with lines between them."""
    return nn.functional.interpolate(gain[:, None], size=bands, mode="linear", align_corners=True)


def shifted(frames: Tensor, share: Tensor) -> Tensor:
    """Circular shift of each clip by a share of its length, in whole frames."""
    count = frames.shape[1]
    place = (torch.arange(count)[None] - (share * count).round().long()[:, None]) % count
    return frames.gather(1, place[..., None].expand_as(frames))


# ---- training --------------------------------------------------------------------------------------------------------
def build(variant: Variant, config: SoundConfig, classes: int) -> Classify:
    sizes = {"features": config.features, **variant.sizes}
    backbone = (
        Tiny(structure(TinyConfig, sizes)) if variant.backbone == "tiny" else TinyCnn(structure(TinyCnnConfig, sizes))
    )
    return Classify(backbone, ClassifyConfig(classes=classes, label_smoothing=0.1))


def as_batch(frames: Tensor, labels: Tensor | None = None, seeds: Tensor | None = None, **streams: Stream) -> Batch:
    n = len(frames)
    seeds = torch.zeros(n, dtype=torch.long) if seeds is None else seeds
    return Batch(("",) * n, seeds, {"audio": Stream(frames), **streams}, None if labels is None else Stream(labels))


def logits_of(loss: Classify, frames: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.cat([loss.head(loss.backbone(as_batch(part))) for part in frames.split(80)]).clone()


def fit(
    module: nn.Module,
    variant: Variant,
    rows: Tensor,
    epochs: int,
    rng: np.random.Generator,
    objective: Callable[[Tensor], Tensor],
) -> None:
    """AdamW, 5 % warm-up, cosine to 0; `objective` maps the rows of a batch to what is minimised."""
    module.train()
    decays = [p for p in module.parameters() if p.ndim > 1]
    others = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": variant.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=variant.lr, fused=True)
    per_epoch = len(rows) // BATCH
    total, step = epochs * per_epoch, 0
    for _ in range(epochs):
        for chosen in torch.from_numpy(rng.permutation(rows.numpy()))[: per_epoch * BATCH].split(BATCH):
            step += 1
            warm = 0.05 * total
            rate = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
            for group in optimizer.param_groups:
                group["lr"] = variant.lr * rate
            objective(chosen).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    module.eval()


def draw(config: SoundConfig, count: int, rng: np.random.Generator) -> dict[str, Tensor]:
    """The augmentations that `View` applies."""
    shift = rng.uniform(-config.shift, config.shift, count)
    gain = rng.uniform(-config.gain_db, config.gain_db, (count, 1))
    if config.equaliser_db:
        gain = gain + rng.standard_normal((count, 4)) * config.equaliser_db
    return {"shift": torch.from_numpy(shift), "gain": torch.from_numpy(gain).float()}


@dataclass(frozen=True)
class Lessons:
    """Mixtures of two training clips, and what the teacher says about them."""

    mels: Tensor  # (N, T, M) in dB, the student's
    labels: Tensor  # (N,)
    others: Tensor  # (N,)
    shares: Tensor  # (N,) of the clip itself, at least a half
    logits: Tensor  # (N, C)


def train(
    variant: Variant, config: SoundConfig, clips: Clips, rows: Tensor, seed: int, taught: Lessons | None
) -> Classify:
    """rows: of the training clips."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 7])
    loss = build(variant, config, int(clips.labels.max()) + 1)
    view, labels, epochs = View(clips.mels, config), clips.labels, variant.epochs
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=variant.backbone == "tiny_cnn")
    if variant.backbone == "tiny_cnn":
        loss.to(memory_format=torch.channels_last)

    def logits_for(batch: Batch) -> Tensor:
        with bf16:
            return loss.head(loss.backbone(batch)).float()

    def mixed(chosen: Tensor) -> Tensor:
        x = view(chosen, **draw(config, len(chosen), rng))
        x = spec_augment(x, torch.from_numpy(rng.integers(0, 2**60, len(chosen))), config)
        streams = {}
        if config.mixup:
            other = chosen[torch.from_numpy(rng.permutation(len(chosen)))]
            share = torch.from_numpy(rng.beta(config.mixup, config.mixup, len(chosen))).float()
            share = torch.maximum(share, 1 - share)
            partner = view(other, **draw(config, len(chosen), rng))
            x = share[:, None, None] * x + (1 - share)[:, None, None] * partner
            streams = {"share": Stream(share), "other": Stream(labels[other])}
        batch = as_batch(x, labels[chosen], **streams)
        return supervised(logits_for(batch), batch, loss.config.label_smoothing).total()

    def imitated(chosen: Tensor) -> Tensor:
        streams = {"share": Stream(taught.shares[chosen]), "other": Stream(taught.others[chosen])}
        batch = as_batch(view(chosen), taught.labels[chosen], **streams)
        logits = logits_for(batch)
        objective = supervised(logits, batch, loss.config.label_smoothing).total()
        imitation = divergence(logits, taught.logits[chosen], variant.temperature) / len(chosen)
        return (1 - variant.weight) * objective + variant.weight * imitation

    if taught is not None:  # as many steps as without a teacher
        view, epochs = View(taught.mels, config), max(1, epochs * len(rows) // len(taught.mels))
        rows = torch.arange(len(taught.mels))
    fit(loss, variant, rows, epochs, rng, mixed if taught is None else imitated)
    return loss


# ---- measuring -------------------------------------------------------------------------------------------------------
def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    guess = logits.argmax(1)
    f1 = []
    for c in labels.unique():
        hit, said, there = ((guess == c) & (labels == c)).sum(), (guess == c).sum(), (labels == c).sum()
        f1.append(float(2 * hit / (said + there)))
    return {"accuracy": float((guess == labels).float().mean()), "macro_f1": float(np.mean(f1))}


def int8_scores(loss: Classify, view: View, train_rows: Tensor, test_rows: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy of the int8 definition that the C code repeats, calibrated on 128 training clips."""

    class Model:
        backbone, frontend, head = loss.backbone, SoundFrontend(view.config), loss.head

    original, sound = plan_of(Model)
    plan, _ = folded(original, sound)

    def frames(rows: Tensor) -> Tensor:  # the statistics of training move to the front end
        x = view(rows)
        if original.shift is None or original.gain is None:
            return x
        return (x - torch.from_numpy(original.shift)) * torch.from_numpy(original.gain)

    quantised = calibrate(plan, frames(train_rows[:: max(1, len(train_rows) // 128)][:128]).split(32))
    logits = forward_int8(quantised, frames(test_rows))
    return {f"int8_{k}": v for k, v in scores(logits, labels).items()}


def key_of(name: str, fold: int, seed: int) -> str:
    return f"{name.replace(', ', '--').replace(' ', '-')}--fold{fold}--seed{seed}"


def run(name: str, fold: int, seed: int, args: argparse.Namespace, memory: dict[Any, Any]) -> None:
    """Train and test one variant on one fold, unless its result is there."""
    variant = {**CANDIDATES, **VARIANTS}[name]
    out = args.out / ("inner" if args.inner else "outer")
    result = out / f"{key_of(name, fold, seed)}.json"
    if result.is_file():
        return
    config = sound_config(variant)
    clips = clips_for(config, args, memory)
    tested = fold % len(FOLDS) + 1 if args.inner else fold
    train_rows = torch.nonzero((clips.folds != fold) & (clips.folds != tested))[:, 0]
    test_rows = torch.nonzero(clips.folds == tested)[:, 0]
    taught = None
    if variant.teacher:
        run(variant.teacher, fold, TEACHER_SEED, args, memory)
        weights = out / f"{key_of(variant.teacher, fold, TEACHER_SEED)}.safetensors"
        if (config, weights) not in memory:
            memory[config, weights] = lessons(config, train_rows, variant.teacher, weights, args, memory)
        taught = memory[config, weights]
    start = time.process_time()
    loss = train(variant, config, clips, train_rows, seed, taught)
    seconds = time.process_time() - start
    view = View(clips.mels, config)
    labels = clips.labels[test_rows]
    record = {
        "variant": name,
        "fold": fold,
        "seed": seed,
        "tested_fold": tested,
        "cpu_seconds": seconds,
        "epochs": variant.epochs,
        "parameters": sum(p.numel() for p in loss.parameters()),
        **scores(logits_of(loss, view(test_rows)), labels),
        "train_accuracy": scores(logits_of(loss, view(train_rows)), clips.labels[train_rows])["accuracy"],
        "macs": loss.backbone.macs(clips.mels.shape[1]) + loss.head.weight.numel(),
    }
    if variant.backbone == "tiny":
        record |= int8_scores(loss, view, train_rows, test_rows, labels)
    out.mkdir(parents=True, exist_ok=True)
    if any(v.teacher == name for v in {**VARIANTS, **CANDIDATES}.values()):
        save_tensors(result.with_suffix(".safetensors"), loss.state_dict())
    write_json(result, record)
    print(f"{name}, fold {fold}, seed {seed}: {record['accuracy']:.1%} in {seconds:.0f} s of CPU", flush=True)


def lessons(
    config: SoundConfig, rows: Tensor, name: str, weights: Path, args: argparse.Namespace, memory: dict[Any, Any]
) -> Lessons:
    """Pairs of the clips `rows`, each shifted and amplified; config: the student's, with the mixup.

    Their powers are added, as two sounds' are that have nothing to do with each other: no waveform is mixed.
    """
    variant = {**CANDIDATES, **VARIANTS}[name]
    theirs = sound_config(variant)
    mine, yours = (clips_for(c, args, memory) for c in (config, theirs))
    teacher = build(variant, theirs, int(mine.labels.max()) + 1).eval().to(memory_format=torch.channels_last)
    teacher.load_state_dict(load_file(weights))
    rng = np.random.default_rng(MIXTURES)
    pair = torch.from_numpy(rng.choice(rows.numpy(), (2, MIXTURES)))
    share = rng.beta(config.mixup, config.mixup, MIXTURES)
    share = torch.from_numpy(np.maximum(share, 1 - share).astype(np.float32))
    steps = yours.mels.shape[1]  # of the coarser frames, so that both hear one shift
    shift = torch.from_numpy(rng.integers(0, steps, (2, MIXTURES)) / steps)
    gain = [draw(config, MIXTURES, rng)["gain"] for _ in (0, 1)]
    level = 20 * torch.stack([share, 1 - share]).clamp_min(1e-5).log10()  # dB
    mels, logits = [], []

    def mixed(source: Tensor, part: Tensor) -> Tensor:
        each = [
            shifted(source[pair[k, part]], shift[k, part])
            + by_band(gain[k][part] + level[k, part, None], source.shape[2])
            for k in (0, 1)
        ]
        return torch.logaddexp(each[0] * NEPER, each[1] * NEPER) / NEPER

    for part in torch.arange(MIXTURES).split(64):
        mels.append(mixed(mine.mels, part))
        with torch.autocast("cpu", torch.bfloat16):
            answer = logits_of(teacher, View(mixed(yours.mels, part), theirs)(slice(None)))
        logits.append(answer.float())
    labels = mine.labels
    return Lessons(torch.cat(mels), labels[pair[0]], labels[pair[1]], share, torch.cat(logits))


def table(folder: Path) -> str:
    """Mean over folds and seeds; the deviation is that of the folds' means (over seeds), as the protocol asks."""
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    lines = [
        "| variant | parameters | MACs | accuracy | +- folds | int8 | macro F1 | runs | CPU s a run |",
        "|" + " --- |" * 9,
    ]
    order = [*VARIANTS, *CANDIDATES]
    for name in sorted({r["variant"] for r in records}, key=order.index):
        mine = [r for r in records if r["variant"] == name]
        folds = [np.mean([r["accuracy"] for r in mine if r["fold"] == f]) for f in sorted({r["fold"] for r in mine})]
        small = [r["int8_accuracy"] for r in mine if "int8_accuracy" in r]
        f1 = np.mean([r["macro_f1"] for r in mine])
        seconds = np.mean([r["cpu_seconds"] for r in mine])
        cells = [
            name,
            f"{mine[0]['parameters']:,}",
            f"{mine[0]['macs']:,}",
            f"{np.mean(folds):.1%}",
            f"{np.std(folds):.1%}",
        ]
        cells += [f"{np.mean(small):.1%}" if small else "-", f"{f1:.3f}", str(len(mine)), f"{seconds:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="the ESC-10 folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=list(FOLDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=None, choices=[*VARIANTS, *CANDIDATES])
    parser.add_argument("--inner", action="store_true", help="compare settings on inner splits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.table:
        if args.data is None:
            parser.error("--data is needed to train")
        memory: dict[Any, Any] = {}
        for seed in args.seeds:
            for name in args.variants or (CANDIDATES if args.inner else VARIANTS):
                for fold in args.folds:
                    run(name, fold, seed, args, memory)
    print(table(args.out / ("inner" if args.inner else "outer")))


if __name__ == "__main__":
    main()
