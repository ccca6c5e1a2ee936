"""ESC-10, five folds: tiny Transformers against the 4-million-parameter CNN, plain, augmented, distilled, in int8.

    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS                       # everything, then the table
    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS --folds 1 2 & ... --folds 3 4 5 &    # in parallel
    python tests/benchmarks/esc10_tiny.py --out RESULTS --table                            # the table of what is there
    python tests/benchmarks/esc10_tiny.py --data ESC10 --out RESULTS --inner              # choose settings without test folds

Every (variant, fold, seed) is one JSON file: what exists is not run again, and processes may share RESULTS. Test folds
are used once, after a fixed number of epochs. `--inner` trains on three folds and tests on the next one after the test
fold, whole folds only, so that settings can be chosen without looking at the test fold.

Features are computed once. Augmentation therefore works on frames: the circular shift by whole frames, the gain as an
offset in dB (nothing, where clips are standardised), mixup and masks as in the recipes. One thread per process.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avssl.batch import Batch, Stream
from avssl.data.clip import AudioRequest, Waveform
from avssl.data.decode import decode_audio
from avssl.data.manifest import read_rows
from avssl.data.resample import mono, resample
from avssl.export.interpret import calibrate, forward_int8
from avssl.export.plan import folded, plan_of
from avssl.files import write_json
from avssl.schema import structure
from avssl_tiny.augment import spec_augment
from avssl_tiny.backbone import Tiny
from avssl_tiny.cnn import TinyCnn
from avssl_tiny.config import ClassifyConfig, SoundConfig, TinyCnnConfig, TinyConfig
from avssl_tiny.distill import divergence
from avssl_tiny.features import standardised
from avssl_tiny.frontend import SoundFrontend
from avssl_tiny.loss import Classify

FOLDS, SECONDS, RATE, BATCH = (1, 2, 3, 4, 5), 5.0, 16000, 32
MEL = {"kind": "mel", "n_fft": 1024, "hop": 512}  # 157 frames
MEL_COARSE = {"kind": "mel", "n_fft": 2048, "hop": 1024}  # 79 frames
MEL_FINE = {"kind": "mel", "n_fft": 512, "hop": 256}  # 313 frames, the specification's
MFCC = {"kind": "mfcc", "n_fft": 1024, "hop": 512, "n_mels": 128, "standardise": "none"}
MFCC_COARSE = {**MFCC, "n_fft": 2048, "hop": 1024}
AUGMENTED = {"shift": 1.0, "gain_db": 6.0, "mixup": 0.2}
MASKED = {**AUGMENTED, "time_masks": 2, "frequency_masks": 2}


@dataclass(frozen=True)
class Variant:
    backbone: str
    sound: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    epochs: int = 300
    lr: float = 1e-3
    teacher: str = ""
    temperature: float = 3.0
    weight: float = 0.7  # of the imitation


CNN = Variant("tiny_cnn", MFCC_COARSE, epochs=40)
TINY = Variant("tiny", MEL)
VARIANTS: dict[str, Variant] = {
    "tiny-6k": TINY,
    "tiny-6k, augmented": replace(TINY, sound={**MEL, **AUGMENTED}),
    "tiny-6k, 79 frames, augmented": replace(TINY, sound={**MEL_COARSE, **AUGMENTED}),
    "tiny-6k, patches of 4, augmented": replace(TINY, sound={**MEL_FINE, **AUGMENTED}, sizes={"stack": 4}),
    "tiny-6k, taught by the CNN": replace(
        TINY, sound={**MEL_COARSE, "shift": 1.0, "gain_db": 6.0}, teacher="cnn-4m, augmented"
    ),
    "small-40k, augmented": replace(
        TINY, sound={**MEL_COARSE, **MASKED}, sizes={"dim": 48, "heads": 4, "ff": 96, "dropout": 0.1}
    ),
    "cnn-4m": CNN,
    "cnn-4m, augmented": replace(CNN, sound={**MFCC_COARSE, **AUGMENTED}),
    "cnn-4m, masks too": replace(CNN, sound={**MFCC_COARSE, **MASKED}),
}
COARSE = replace(TINY, sound={**MEL_COARSE, **AUGMENTED})
ON_REQUEST: dict[str, Variant] = {  # candidates for --inner, and costly ones: name them with --variants
    "tiny-6k, 79 frames, lr 3e-3": replace(COARSE, lr=3e-3),
    "tiny-6k, 79 frames, lr 1e-2": replace(COARSE, lr=1e-2),
    "tiny-6k, 79 frames, shift alone, lr 3e-3": replace(COARSE, lr=3e-3, sound={**MEL_COARSE, "shift": 1.0}),
    "tiny-6k, 79 frames, mean pooling, lr 3e-3": replace(COARSE, lr=3e-3, sizes={"pooler": "mean"}),
    "tiny-6k, 79 frames, mean pooling, lr 1e-2": replace(COARSE, lr=1e-2, sizes={"pooler": "mean"}),
    "tiny-6k, 79 frames, mean pooling, shift alone, lr 1e-2": replace(
        COARSE, lr=1e-2, sizes={"pooler": "mean"}, sound={**MEL_COARSE, "shift": 1.0}
    ),
    "tiny-6k, mean pooling, lr 3e-3": replace(TINY, lr=3e-3, sizes={"pooler": "mean"}, sound={**MEL, **AUGMENTED}),
    "tiny-6k, 79 frames, 1000 epochs": replace(COARSE, epochs=1000),
    "cnn-4m, lr 3e-4": replace(CNN, lr=3e-4, sound={**MFCC_COARSE, **AUGMENTED}),
    "cnn-4m, 100 epochs": replace(CNN, epochs=100, sound={**MFCC_COARSE, **AUGMENTED}),
    "tiny-6k, 313 frames, augmented": replace(TINY, sound={**MEL_FINE, **AUGMENTED}),
    "cnn-4m, 157 frames, augmented": replace(CNN, sound={**MFCC, **AUGMENTED}),
    "cnn-4m of convolutions, augmented": replace(
        CNN, sound={**MFCC_COARSE, **AUGMENTED}, sizes={"widths": [96, 192, 384, 800], "dense": [512]}
    ),
}


# ---- data ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Clips:
    frames: Tensor  # (N, T, F), dB or coefficients, not standardised
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


def clips_for(config: SoundConfig, data: str, out: Path, memory: dict[Any, Clips]) -> Clips:
    key = (config.kind, config.n_fft, config.hop, config.n_mels)
    if key not in memory:
        sound, labels, folds, _ = waves(data, out)
        extract = SoundFrontend(config).extract
        with torch.inference_mode():
            frames = torch.cat([extract(torch.from_numpy(part)) for part in np.array_split(sound, 20)]).clone()
        memory[key] = Clips(frames, torch.from_numpy(labels), torch.from_numpy(folds))
    return memory[key]


def gained(frames: Tensor, db: Tensor, config: SoundConfig) -> Tensor:
    """A gain in dB: an offset of every band; of the first coefficient alone after an orthonormal DCT."""
    if config.kind == "mfcc":
        return torch.cat([frames[..., :1] + db[:, None, None] * math.sqrt(config.n_mels), frames[..., 1:]], -1)
    return frames + db[:, None, None]


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


def as_batch(frames: Tensor, labels: Tensor, **streams: Stream) -> Batch:
    n = len(frames)
    return Batch(("",) * n, torch.zeros(n, dtype=torch.long), {"audio": Stream(frames), **streams}, Stream(labels))


def train(
    variant: Variant, clips: Clips, rows: Tensor, seed: int, teacher: tuple[Classify, Variant, Clips] | None
) -> Classify:
    config = sound_config(variant)
    torch.manual_seed(seed)
    loss = build(variant, config, int(clips.labels.max()) + 1).train()
    decays = [p for p in loss.parameters() if p.ndim > 1]
    others = [p for p in loss.parameters() if p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=variant.lr)
    per_epoch = len(rows) // BATCH
    total = variant.epochs * per_epoch
    rng = np.random.default_rng([seed, 7])
    step = 0
    for _ in range(variant.epochs):
        for chosen in torch.from_numpy(rng.permutation(rows.numpy()))[: per_epoch * BATCH].split(BATCH):
            step += 1
            warm = 0.05 * total
            rate = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))
            for group in optimizer.param_groups:
                group["lr"] = variant.lr * rate
            shift = torch.from_numpy(rng.uniform(-config.shift, config.shift, len(chosen)))
            gain = torch.from_numpy(rng.uniform(-config.gain_db, config.gain_db, len(chosen))).float()

            def view(of: Clips, how: SoundConfig, index: Tensor, shift: Tensor = shift, gain: Tensor = gain) -> Tensor:
                return standardised(shifted(gained(of.frames[index], gain, how), shift), how)

            x = view(clips, config, chosen)
            seeds = torch.from_numpy(rng.integers(0, 2**60, len(chosen)))
            x = spec_augment(x, seeds, config)
            streams = {}
            if config.mixup:
                other = chosen[torch.from_numpy(rng.permutation(len(chosen)))]
                share = torch.from_numpy(rng.beta(config.mixup, config.mixup, len(chosen))).float()
                share = torch.maximum(share, 1 - share)
                x = share[:, None, None] * x + (1 - share)[:, None, None] * view(clips, config, other)
                streams = {"share": Stream(share), "other": Stream(clips.labels[other])}
            batch = as_batch(x, clips.labels[chosen], **streams)
            objective = loss(batch).total()
            if teacher is not None:
                network, how, theirs = teacher
                with torch.no_grad():
                    wanted = network.head(
                        network.backbone(as_batch(view(theirs, sound_config(how), chosen), batch.targets.x))
                    )
                logits = loss.head(loss.backbone(batch))
                imitation = divergence(logits, wanted, variant.temperature) / len(chosen)
                objective = (1 - variant.weight) * objective + variant.weight * imitation
            objective.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return loss.eval()


# ---- measuring -------------------------------------------------------------------------------------------------------
def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    guess = logits.argmax(1)
    f1 = []
    for c in labels.unique():
        hit, said, there = ((guess == c) & (labels == c)).sum(), (guess == c).sum(), (labels == c).sum()
        f1.append(float(2 * hit / (said + there)))
    return {"accuracy": float((guess == labels).float().mean()), "macro_f1": float(np.mean(f1))}


def int8_scores(
    loss: Classify, config: SoundConfig, clips: Clips, train_rows: Tensor, test_rows: Tensor
) -> dict[str, float]:
    """Accuracy of the int8 definition that the C code repeats, calibrated on 128 training clips."""

    class Model:
        backbone, frontend, head = loss.backbone, SoundFrontend(config), loss.head

    original, sound = plan_of(Model)
    plan, _ = folded(original, sound)
    quantised = calibrate(
        plan, standardised(clips.frames[train_rows[:: max(1, len(train_rows) // 128)][:128]], config).split(32)
    )
    logits = forward_int8(quantised, standardised(clips.frames[test_rows], config))
    return {f"int8_{k}": v for k, v in scores(logits, clips.labels[test_rows]).items()}


def weights_file(out: Path, key: str) -> Path:
    return out / f"{key}.safetensors"


def run(name: str, fold: int, seed: int, args: argparse.Namespace, memory: dict[Any, Clips]) -> Path:
    """Train and test one variant on one fold; returns its result file."""
    variant = {**VARIANTS, **ON_REQUEST}[name]
    out = args.out / ("inner" if args.inner else "outer")
    key = f"{name.replace(', ', '--').replace(' ', '-')}--fold{fold}--seed{seed}"
    result = out / f"{key}.json"
    if result.is_file():
        return result
    config = sound_config(variant)
    clips = clips_for(config, args.data, args.out, memory)
    tested = fold % len(FOLDS) + 1 if args.inner else fold
    train_rows = torch.nonzero((clips.folds != fold) & (clips.folds != tested))[:, 0]
    test_rows = torch.nonzero(clips.folds == tested)[:, 0]
    teacher = None
    if variant.teacher:
        run(variant.teacher, fold, seed, args, memory)
        how = {**VARIANTS, **ON_REQUEST}[variant.teacher]
        theirs = clips_for(sound_config(how), args.data, args.out, memory)
        teacher = (load_teacher(out, variant.teacher, fold, seed, how, theirs), how, theirs)
    start = time.process_time()
    loss = train(variant, clips, train_rows, seed, teacher)
    seconds = time.process_time() - start
    with torch.inference_mode():
        logits = loss.head(
            loss.backbone(as_batch(standardised(clips.frames[test_rows], config), clips.labels[test_rows]))
        )
    record = {
        "variant": name,
        "fold": fold,
        "seed": seed,
        "tested_fold": tested,
        "cpu_seconds": seconds,
        "epochs": variant.epochs,
        "parameters": sum(p.numel() for p in loss.parameters()),
        **scores(logits, clips.labels[test_rows]),
        "macs": loss.backbone.macs(clips.frames.shape[1]) + loss.head.weight.numel(),
    }
    if variant.backbone == "tiny":
        record |= int8_scores(loss, config, clips, train_rows, test_rows)
    out.mkdir(parents=True, exist_ok=True)
    if any(v.teacher == name for v in {**VARIANTS, **ON_REQUEST}.values()):
        from avssl.model import save_tensors

        save_tensors(weights_file(out, key), loss.state_dict())
    write_json(result, record)
    print(f"{name}, fold {fold}, seed {seed}: {record['accuracy']:.1%} in {seconds:.0f} s of CPU", flush=True)
    return result


def load_teacher(out: Path, name: str, fold: int, seed: int, variant: Variant, clips: Clips) -> Classify:
    from safetensors.torch import load_file

    key = f"{name.replace(', ', '--').replace(' ', '-')}--fold{fold}--seed{seed}"
    loss = build(variant, sound_config(variant), int(clips.labels.max()) + 1)
    loss.load_state_dict(load_file(weights_file(out, key)))
    return loss.eval()


def table(folder: Path) -> str:
    """Mean over folds and seeds; the deviation is that of the folds' means (over seeds), as the protocol asks."""
    records = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
    lines = [
        "| variant | parameters | MACs | accuracy | +- folds | int8 | macro F1 | runs | CPU s a run |",
        "|" + " --- |" * 9,
    ]
    order = [*VARIANTS, *ON_REQUEST]
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
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *ON_REQUEST])
    parser.add_argument("--inner", action="store_true", help="compare settings on inner splits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the table of what is there, run nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.table:
        if args.data is None:
            parser.error("--data is needed to train")
        memory: dict[Any, Clips] = {}
        for seed in args.seeds:
            for name in args.variants:
                for fold in args.folds:
                    run(name, fold, seed, args, memory)
    print(table(args.out / ("inner" if args.inner else "outer")))


if __name__ == "__main__":
    main()
