"""Two loss curves of one recipe from the same seed, in fp32 and in bf16 (or any two settings): do they agree?

    python tests/benchmarks/curves.py cav_mae/tiny --data AV-DIGITS/manifest.csv --out runs/curves [--updates 400]
    python tests/benchmarks/curves.py cav_mae/tiny --data ... --out ... --other train.compile=true

Prints, for every term, the mean over each quarter of the run and the largest relative difference of the two curves,
smoothed over 20 updates. A run that exists is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from avssl.recipe import load_recipe
from avssl.training.run import pretrain

SMOOTH = 20


def curve(folder: Path, recipe: str, data: str, overrides: list[str]) -> dict[str, np.ndarray]:
    """term -> (updates,), of a new run or of one that is there."""
    pretrain(load_recipe(recipe, overrides), data, folder, resume=True)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    records = [r for r in records if r["kind"] == "train"]
    return {term: np.array([r["terms"][term] for r in records]) for term in records[0]["terms"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--other", default="train.precision=bf16", help="what the second run changes")
    options = parser.parse_args()
    same = [f"train.updates={options.updates}", "train.log_every=1", "train.precision=fp32"]
    first = curve(options.out / "first", options.recipe, options.data, same)
    second = curve(options.out / "second", options.recipe, options.data, [*same, options.other])
    for term, a in first.items():
        b = second[term]
        smooth_a, smooth_b = (np.convolve(x, np.ones(SMOOTH) / SMOOTH, "valid") for x in (a, b))
        worst = float(np.max(np.abs(smooth_b - smooth_a) / np.abs(smooth_a)))
        quarters = " ".join(
            f"{x.mean():.4f}/{y.mean():.4f}" for x, y in zip(np.array_split(a, 4), np.array_split(b, 4), strict=True)
        )
        print(f"{term}: quarters {quarters}; largest difference {worst:.2%}")


if __name__ == "__main__":
    main()
