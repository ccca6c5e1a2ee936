"""BEATs beside the authors' code, in one process and alternating: ratios that do not depend on the machine's mood.

    AVSSL_OFFICIAL_BEATS=.../unilm/beats python tests/benchmarks/bench_beats.py embed [--clips 4] [--threads 2]
    AVSSL_OFFICIAL_BEATS=.../unilm/beats python tests/benchmarks/bench_beats.py memory [--clips 4]
    python tests/benchmarks/bench_beats.py step [--precision bf16] [--clips 4]

embed: ten-second clips from the waveform to patch features, base model, official float32 against ours in float32 and in
bf16 autocast; wall time and processor time, best of the rounds. memory: peak resident memory of the same, each in a
process of its own. step: forward, backward and update of iteration 2, and the share of its parts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from avssl.batch import Batch, Stream
from avssl_beats.backbone import Beats
from avssl_beats.checkpoint import official_name
from avssl_beats.config import BeatsConfig, BeatsFrontendConfig, BeatsLossConfig, TokenizerConfig
from avssl_beats.frontend import BeatsFrontend
from avssl_beats.masked import TokenizerLabels
from avssl_beats.tokenizers import Tokenizer, TokenizerHead

OFFICIAL = "AVSSL_OFFICIAL_BEATS"
RELEASED = {
    "input_patch_size": 16,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "max_distance": 800,
}
SECONDS = 10


def official() -> Any:
    """The authors' base model with random weights."""
    folder = os.environ.get(OFFICIAL) or sys.exit(f"set {OFFICIAL} to a checkout of microsoft/unilm, folder beats/")
    sys.path.insert(0, folder)
    from BEATs import BEATs, BEATsConfig

    torch.manual_seed(0)
    return BEATs(BEATsConfig(RELEASED)).eval()


def sounds(clips: int) -> Batch:
    wave = 0.1 * torch.randn(clips, 16000 * SECONDS, generator=torch.Generator().manual_seed(0))
    return Batch(tuple(map(str, range(clips))), torch.arange(clips), {"audio": Stream(wave)})


def autocast(precision: str) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext()


def ours(batch: Batch, precision: str, weights: dict[str, torch.Tensor] | None = None) -> Callable[[], torch.Tensor]:
    """A call that embeds the batch."""
    backbone, frontend = Beats(BeatsConfig()).eval(), BeatsFrontend(BeatsFrontendConfig()).eval()
    if weights is not None:
        backbone.load_state_dict({name: weights[official_name(name)] for name in backbone.state_dict()})

    def call() -> torch.Tensor:
        with torch.inference_mode(), autocast(precision):
            return backbone(frontend(batch)).tokens["audio"]

    return call


def theirs(model: Any, batch: Batch) -> Callable[[], torch.Tensor]:
    def call() -> torch.Tensor:
        with torch.inference_mode():
            return model.extract_features(batch.streams["audio"].x)[0]

    return call


def embed(clips: int, rounds: int) -> dict[str, Any]:
    model, batch = official(), sounds(clips)
    calls = {
        "official fp32": theirs(model, batch),
        "ours fp32": ours(batch, "fp32", model.state_dict()),
        "ours bf16": ours(batch, "bf16", model.state_dict()),
    }
    first = {name: call().float() for name, call in calls.items()}  # warms up, and must be the same thing
    error = (first["ours fp32"] - first["official fp32"]).abs().max().item()
    assert error < 2e-3, f"not the same features: {error}"
    best: dict[str, dict[str, float]] = {name: {"wall": float("inf"), "cpu": float("inf")} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            best[name] = {k: min(best[name][k], v) for k, v in spent.items()}
    out: dict[str, Any] = {
        name: {"clips/s": round(clips / b["wall"], 3), "cpu s/clip": round(b["cpu"] / clips, 3)}
        for name, b in best.items()
    }
    for name in ("ours fp32", "ours bf16"):
        out[name] |= {f"{k} ratio": round(best["official fp32"][k] / best[name][k], 2) for k in ("wall", "cpu")}
        out[name]["largest difference"] = (first[name] - first["official fp32"]).abs().max().item()
    return out


def peak(who: str, clips: int) -> None:
    batch = sounds(clips)
    call = theirs(official(), batch) if who == "official" else ours(batch, who)
    call()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def memory(clips: int) -> dict[str, Any]:
    def of(who: str) -> float:
        command = [sys.executable, __file__, "peak", "--who", who, "--clips", str(clips)]
        return round(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]), 2)

    return {f"{who} GiB": of(who) for who in ("official", "fp32", "bf16")}


def step(clips: int, precision: str, rounds: int) -> dict[str, Any]:
    """One update of iteration 2 with the base sizes, and what each part of its forward pass takes."""
    torch.manual_seed(0)
    loss = TokenizerLabels(Beats(BeatsConfig()), BeatsLossConfig())
    head = TokenizerHead(768, TokenizerConfig())
    head.codebook.weight.copy_(torch.nn.functional.normalize(torch.randn(1024, 256), dim=-1))
    head.codebook.started.fill_(1)
    loss._build(Tokenizer(Beats(BeatsConfig()), head), 1024)
    loss.train()
    optimizer = torch.optim.AdamW([p for p in loss.parameters() if p.requires_grad], 1e-4, fused=True)
    batch = BeatsFrontend(BeatsFrontendConfig())(sounds(clips))
    parts: dict[str, float] = {}

    def timed(name: str, module: torch.nn.Module, method: str) -> None:
        inner = getattr(module, method)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = inner(*args, **kwargs)
            parts[name] = parts.get(name, 0.0) + time.perf_counter() - start
            return out

        object.__setattr__(module, method, call)

    timed("tokenizer", loss.tokenizer, "labels")
    timed("encoder", loss.backbone, "forward")
    timed("predictor", loss.predictor, "forward")
    best: dict[str, float] = {}
    for _ in range(rounds + 1):
        parts.clear()
        start = time.perf_counter()
        with autocast(precision):
            total = loss(batch).total()
        forward = time.perf_counter() - start
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        whole = time.perf_counter() - start
        if not best or whole < best["step s"]:
            best = {"step s": whole, "forward s": forward, "backward and update s": whole - forward, **parts}
    shares = {f"{k} forward share of the step": round(best[k] / best["step s"], 3) for k in parts}
    return {"clips/s": round(clips / best["step s"], 3), **{k: round(v, 3) for k, v in best.items()}, **shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("embed", "memory", "step", "peak"))
    parser.add_argument("--clips", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--who", choices=("official", "fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.what == "peak":
        peak(args.who, args.clips)
    elif args.what == "embed":
        print(json.dumps(embed(args.clips, args.rounds), indent=1))
    elif args.what == "memory":
        print(json.dumps(memory(args.clips), indent=1))
    else:
        print(json.dumps(step(args.clips, args.precision, args.rounds), indent=1))


if __name__ == "__main__":
    main()
