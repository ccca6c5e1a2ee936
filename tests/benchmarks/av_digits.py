"""The AV-Digits table of docs/measurements.md: CAV-MAE, its two ablations and the untrained network, over seeds.

    python tests/benchmarks/av_digits.py --data ../shared/data/av-digits/manifest.csv --out runs/av-digits

Each run is an ordinary `avssl pretrain`; a second call goes on where the first one stopped, and prints the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from avssl.api import evaluate
from avssl.recipe import load_recipe
from avssl.training.run import pretrain

RECIPE = "cav_mae/tiny"
VARIANTS = {
    "untrained": ["optim.lr=1e-12", "train.updates=1", "train.log_every=1"],
    "AV-MAE (no contrast)": ["loss.contrast_weight=0"],
    "CAV (no reconstruction)": ["loss.reconstruction_weight=0"],
    "CAV-MAE": [],
}
METRICS = {
    "retrieval.audio->vision.class.r@1": "audio -> image, class R@1",
    "retrieval.vision->audio.class.r@1": "image -> audio, class R@1",
    "probe.joint.accuracy": "linear probe, joint",
    "probe.audio.accuracy": "linear probe, audio",
    "probe.vision.accuracy": "linear probe, image",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], help="for every variant, e.g. train.epochs=10"
    )
    parser.add_argument("--only", action="append", default=[], help="a variant; default: all")
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for seed in options.seeds:
        for variant, changes in VARIANTS.items():
            if options.only and variant not in options.only:
                continue
            folder = options.out / f"{variant.split()[0].lower()}-{seed}"
            run(folder, options.data, [*options.overrides, *changes, f"train.seed={seed}"])
            for name, value in json.loads((folder / "table.json").read_text(encoding="utf-8")).items():
                results.setdefault(variant, {}).setdefault(name, []).append(value)
    print(f"| {len(options.seeds)} seeds, mean ± standard deviation | " + " | ".join(METRICS.values()) + " |")
    print("|---" * (len(METRICS) + 1) + "|")
    for variant, values in results.items():
        print(f"| {variant} | " + " | ".join(cell(values[m]) for m in METRICS) + " |")


def run(folder: Path, data: str, overrides: list[str]) -> None:
    """Train and evaluate one run, unless it is there."""
    if (folder / "table.json").is_file():
        return
    pretrain(load_recipe(RECIPE, overrides), data, folder, resume=True)
    metrics = {}
    for task in ("retrieval", "probe"):
        metrics |= evaluate(folder, data, task).metrics
    (folder / "table.json").write_text(json.dumps({m: metrics[m] for m in METRICS}), encoding="utf-8")


def cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
