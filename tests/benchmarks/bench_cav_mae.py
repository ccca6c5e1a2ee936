"""CAV-MAE beside its references, in one process: ratios that do not depend on the machine's mood.

    AVSSL_OFFICIAL_CAV_MAE=.../cav-mae python tests/benchmarks/bench_cav_mae.py step [--precision bf16] [--batch 4]
    python tests/benchmarks/bench_cav_mae.py mel
    AVSSL_OFFICIAL_CAV_MAE=.../cav-mae python tests/benchmarks/bench_cav_mae.py memory

step: forward, backward and Adam update of the base pretraining model, ours and the authors', alternating. The official
code needs timm 0.4.5, which current torch cannot import; the three names it takes from there are written out below.
memory: peak resident memory of one such step, each in a process of its own. mel: against torchaudio, one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

OFFICIAL = "AVSSL_OFFICIAL_CAV_MAE"


# -- the authors' model ---------------------------------------------------------------------------------------------
class PlainAttention(nn.Module):
    """Multi-head attention as explicit products, with the parameter names that the official checkpoints have."""

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool, qk_scale: float | None, attn_drop: float, proj_drop: float
    ) -> None:
        super().__init__()
        assert qk_scale is None and attn_drop == proj_drop == 0.0
        self.heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, d))


class PlainMlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int, act_layer: type[nn.Module], drop: float) -> None:
        super().__init__()
        assert drop == 0.0
        self.fc1, self.act = nn.Linear(in_features, hidden_features), act_layer()
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


def official_model() -> nn.Module:
    """The authors' CAVMAE at its base size, from the checkout that the environment variable names."""
    root = os.environ.get(OFFICIAL)
    if not root or not (Path(root) / "src/models/cav_mae.py").is_file():
        sys.exit(f"set {OFFICIAL} to a checkout of github.com/YuanGongND/cav-mae")
    import numpy as np

    np.float = float  # type: ignore[attr-defined]  # gone since NumPy 1.24
    layers, transformer = types.ModuleType("timm.models.layers"), types.ModuleType("timm.models.vision_transformer")
    layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)  # type: ignore[attr-defined]
    layers.trunc_normal_, layers.DropPath = nn.init.trunc_normal_, nn.Identity  # type: ignore[attr-defined]
    for name, value in {"Attention": PlainAttention, "Mlp": PlainMlp, "PatchEmbed": None, "Block": None}.items():
        setattr(transformer, name, value)
    models, timm = types.ModuleType("timm.models"), types.ModuleType("timm")
    models.layers, models.vision_transformer, timm.models = layers, transformer, models  # type: ignore[attr-defined]
    timm.__version__ = "0.4.5"  # type: ignore[attr-defined]
    sys.modules |= {
        "timm": timm,
        "timm.models": models,
        "timm.models.layers": layers,
        "timm.models.vision_transformer": transformer,
    }
    package = types.ModuleType("official_cav_mae")  # its __init__ imports more than the model
    package.__path__ = [str(Path(root) / "src/models")]  # type: ignore[attr-defined]
    sys.modules["official_cav_mae"] = package
    import importlib

    module = importlib.import_module("official_cav_mae.cav_mae")
    with contextlib.redirect_stdout(io.StringIO()):
        return module.CAVMAE(norm_pix_loss=True)


# -- steps ----------------------------------------------------------------------------------------------------------
def inputs(batch: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, 1024, 128, generator=g), torch.randn(batch, 3, 224, 224, generator=g)


def autocast(precision: str) -> contextlib.AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()


def official_step(batch: int, precision: str) -> Callable[[], float]:
    model = official_model().train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, 5e-5, weight_decay=5e-7, betas=(0.95, 0.999))
    audio, image = inputs(batch)

    def step() -> float:
        with autocast(precision):
            loss = model(audio, image, 0.75, 0.75, mae_loss_weight=1.0, contrast_loss_weight=0.01)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(batch: int, precision: str) -> Callable[[], float]:
    from avssl.batch import Batch, Stream
    from avssl.model import build_backbone, build_loss
    from avssl.recipe import load_recipe
    from avssl.training.optim import build_optimizer

    recipe = load_recipe("cav_mae/base")
    loss = build_loss(recipe.plain(), build_backbone(recipe.plain())).train()
    optimizer = build_optimizer(loss, recipe.optim)
    audio, image = inputs(batch)
    streams = {"audio": Stream(audio), "vision": Stream(image)}
    seeds = iter(range(10**6))

    def step() -> float:
        data = Batch(tuple(map(str, range(batch))), torch.arange(batch) + 1000 * next(seeds), streams)
        draw = loss.sample(data)
        with autocast(precision):
            total = loss.compute(data, draw).total()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        return total.item()

    return step


STEPS = {"ours": our_step, "official": official_step}


def compare_steps(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    steps = {
        "official": official_step(args.batch, "fp32" if args.precision == "bf16" else args.precision),
        "ours": our_step(args.batch, args.precision),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    work: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):  # the first is a warm-up
        for name, step in steps.items():
            began, spent = time.perf_counter(), time.process_time()
            step()
            if round_:
                times[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - spent)
    best, cpu = ({name: min(t) for name, t in kind.items()} for kind in (times, work))
    ratios = [a / b for a, b in zip(times["official"], times["ours"], strict=True)]
    print(
        json.dumps(
            {
                "what": f"base pretraining step, batch {args.batch}, {args.threads} threads",
                "official": "fp32",
                "ours": args.precision,
                "official_s": round(best["official"], 3),
                "ours_s": round(best["ours"], 3),
                "official_cpu_s": round(cpu["official"], 3),
                "ours_cpu_s": round(cpu["ours"], 3),
                "ratio_of_best": round(best["official"] / best["ours"], 3),
                "ratio_median": round(statistics.median(ratios), 3),
                # less moved by other work on the machine
                "ratio_of_cpu_time": round(cpu["official"] / cpu["ours"], 3),
            }
        )
    )


def compare_memory(args: argparse.Namespace) -> None:
    peaks = {}
    for name in STEPS:
        command = [
            sys.executable,
            __file__,
            "one",
            "--which",
            name,
            "--precision",
            args.precision,
            "--batch",
            str(args.batch),
            "--threads",
            str(args.threads),
        ]
        shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[name] = json.loads(shown.splitlines()[-1])
    print(
        json.dumps(
            {
                "what": f"peak resident memory of two steps, batch {args.batch}, {args.precision}",
                **peaks,
                "ratio": round(peaks["official"] / peaks["ours"], 3),
            }
        )
    )


def one(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    step = STEPS[args.which](args.batch, args.precision)
    for _ in range(2):
        step()
    print(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3))  # GiB: Linux counts in KiB


def compare_mel(args: argparse.Namespace) -> None:
    from torchaudio.compliance import kaldi

    from avssl.nn.mel import KaldiFbank

    torch.set_num_threads(1)
    x = torch.randn(args.batch, 160000, generator=torch.Generator().manual_seed(0)) * 0.1
    fbank = KaldiFbank()

    def theirs() -> Tensor:
        return torch.stack(
            [
                kaldi.fbank(
                    row[None],
                    htk_compat=True,
                    sample_frequency=16000,
                    use_energy=False,
                    window_type="hanning",
                    num_mel_bins=128,
                    dither=0.0,
                    frame_shift=10,
                )
                for row in x
            ]
        )

    worst = (theirs() - fbank(x)).abs().max().item()
    times: dict[str, list[float]] = {"torchaudio": [], "ours": []}
    for _ in range(args.rounds * 10):
        for name, run in (("torchaudio", theirs), ("ours", lambda: fbank(x))):
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    best = {name: min(t) for name, t in times.items()}
    ratios = [a / b for a, b in zip(times["torchaudio"], times["ours"], strict=True)]
    print(
        json.dumps(
            {
                "what": f"log-mel of {args.batch} x 10 s, one thread",
                "torchaudio_ms": round(1e3 * best["torchaudio"], 2),
                "ours_ms": round(1e3 * best["ours"], 2),
                "ratio_of_best": round(best["torchaudio"] / best["ours"], 2),
                "ratio_median": round(statistics.median(ratios), 2),
                "largest_difference": worst,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["step", "memory", "mel", "one"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="ours; the official is fp32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--which", choices=list(STEPS))
    args = parser.parse_args()
    {"step": compare_steps, "memory": compare_memory, "mel": compare_mel, "one": one}[args.what](args)


if __name__ == "__main__":
    main()
