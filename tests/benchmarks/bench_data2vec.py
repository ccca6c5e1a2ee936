"""data2vec beside its references, in one process: ratios that do not depend on the machine's mood.

    AVSSL_OFFICIAL_FAIRSEQ=.../fairseq python tests/benchmarks/bench_data2vec.py step [--precision bf16]
    AVSSL_OFFICIAL_FAIRSEQ=.../fairseq python tests/benchmarks/bench_data2vec.py memory
    python tests/benchmarks/bench_data2vec.py embed [--precision bf16]

step: masks, forward, backward, Adam update and teacher of the Base audio model, ours (in bf16 if asked) and fairseq's in
fp32, alternating, on 2 clips of 10 s. The checkout needs hydra-core and omegaconf beside it; its dataclasses have
defaults that Python 3.11 refuses, which is mended here. embed: the Base audio encoder against Hugging Face transformers.
memory: peak resident memory of one step, each in a process of its own. Times are CPU seconds and wall seconds; on a
shared machine only the former mean much.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import torch

OFFICIAL = "AVSSL_OFFICIAL_FAIRSEQ"


def official(layers: int) -> Any:
    """fairseq's Data2VecAudioModel at the Base recipe, from the checkout."""
    checkout = os.environ.get(OFFICIAL)
    if not checkout:
        raise SystemExit(f"set {OFFICIAL} to a checkout of github.com/facebookresearch/fairseq")
    sys.path.insert(0, checkout)
    original = dataclasses.dataclass

    def hashable(cls: Any = None, **options: Any) -> Any:
        def make(c: Any) -> Any:
            theirs = c.__module__.startswith(("fairseq", "examples.")) and not options and "__hash__" not in c.__dict__
            return original(c, unsafe_hash=True) if theirs else original(c, **options)

        return make(cls) if cls is not None else make

    version = types.ModuleType("fairseq.version")
    version.__version__ = "0"
    sys.modules.setdefault("fairseq.version", version)  # a checkout that was never built has none
    dataclasses.dataclass = hashable
    try:
        from examples.data2vec.models.data2vec_audio import Data2VecAudioConfig, Data2VecAudioModel
    finally:
        dataclasses.dataclass = original
    config = Data2VecAudioConfig(
        extractor_mode="layer_norm", encoder_layers=layers, pos_conv_depth=5, conv_pos=95, mask_prob=0.65,
        mask_length=10,
        instance_norm_target_layer=True, average_top_k_layers=min(8, layers), ema_transformer_only=True,
        ema_layers_only=True, ema_decay=0.999, ema_end_decay=0.9999, ema_anneal_end_step=30000, max_update=400000,
        encoder_layerdrop=0.0, dropout_input=0.0, dropout_features=0.0,
    )  # fmt: skip
    return Data2VecAudioModel(config)


def ours(layers: int) -> Any:
    from avssl.model import build_backbone, build_loss

    return build_loss(*_built(layers, build_backbone)).train()


def _built(layers: int, build: Callable[[Any], Any]) -> tuple[dict[str, Any], Any]:
    tables = {
        "backbone": {"name": "data2vec_audio", "depth": layers, "layerdrop": 0.0},
        "loss": {"name": "data2vec", "targets": {"top_k": min(8, layers)},
                 "teacher": {"own_local": False, "copied": ["positions.*"]}},
    }  # fmt: skip
    return tables, build(tables)


def steps(which: str, args: argparse.Namespace) -> Callable[[], None]:
    """A closure that does one training step."""
    from avssl.batch import Batch, Stream

    wave = torch.randn(args.batch, int(args.seconds * 16000))
    model = official(args.layers).train() if which == "official" else ours(args.layers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-5, fused=which == "ours")
    batch = Batch(tuple(map(str, range(args.batch))), torch.arange(args.batch), {"audio": Stream(wave)})
    done = 0

    def step() -> None:
        nonlocal done
        bf16 = args.precision == "bf16" and which == "ours"  # fairseq's mask fails under autocast on a CPU
        if which == "official":
            model.set_num_updates(done)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if which == "official":
                out = model(wave)
                total = out["losses"]["regression"] / out["sample_size"]
            else:
                total = model(batch).total()
        total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        done += 1
        if which == "ours":
            model.after_step(done)

    return step


def encoders(which: str, args: argparse.Namespace) -> Callable[[], None]:
    """A closure that embeds one batch."""
    from avssl.batch import Batch, Stream
    from avssl.model import build_backbone

    wave = torch.randn(args.batch, int(args.seconds * 16000))
    if which == "official":
        from transformers import Data2VecAudioConfig, Data2VecAudioModel

        model = Data2VecAudioModel(Data2VecAudioConfig(num_hidden_layers=args.layers)).eval()
    else:
        model = _built(args.layers, build_backbone)[1].eval()
    batch = Batch(tuple(map(str, range(args.batch))), torch.arange(args.batch), {"audio": Stream(wave)})

    def embed() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            model(wave) if which == "official" else model(batch)

    return embed


def alternate(
    make: Callable[[str, argparse.Namespace], Callable[[], None]], args: argparse.Namespace
) -> dict[str, Any]:
    """Median seconds of both, taking turns, after one round of warming up."""
    runs = {which: make(which, args) for which in ("official", "ours")}
    cpu: dict[str, list[float]] = {which: [] for which in runs}
    wall: dict[str, list[float]] = {which: [] for which in runs}
    for turn in range(args.rounds + 1):
        for which, run in runs.items():
            begun, used = time.perf_counter(), time.process_time()
            run()
            if turn:
                cpu[which].append(time.process_time() - used)
                wall[which].append(time.perf_counter() - begun)
    out: dict[str, Any] = {"precision": args.precision, "batch": args.batch, "seconds": args.seconds,
                           "layers": args.layers, "threads": torch.get_num_threads()}  # fmt: skip
    for name, times in (("cpu", cpu), ("wall", wall)):
        medians = {which: statistics.median(values) for which, values in times.items()}
        out[name] = {
            **{k: round(v, 3) for k, v in medians.items()},
            "ratio": round(medians["official"] / medians["ours"], 2),
        }
    return out


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak resident GiB of two steps, each implementation in its own process."""
    out = {}
    for which in ("official", "ours"):
        command = [sys.executable, __file__, "peak", "--which", which, "--batch", str(args.batch), "--seconds",
                   str(args.seconds), "--layers", str(args.layers), "--precision", args.precision]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out[which] = round(float(done.stdout.strip().splitlines()[-1]), 2)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "embed", "memory", "peak"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--which", choices=["official", "ours"], default="ours")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.what == "peak":
        step = steps(args.which, args)
        with contextlib.redirect_stdout(sys.stderr):
            step(), step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    elif args.what == "memory":
        print(json.dumps(memory(args)))
    else:
        print(json.dumps(alternate(steps if args.what == "step" else encoders, args)))


if __name__ == "__main__":
    main()
