"""The ESC-10 table of docs/measurements.md: BEATs before pretraining, after one iteration and after two.

    avssl data prepare ESC-10 --out esc10-16k --rate 16000
    python tests/benchmarks/esc10_beats.py --data esc10-16k/manifest.parquet --out runs/esc10-beats --precision bf16

Both iterations see the sound of all 400 clips, those of the test folds too, and no label. The probe is a logistic
regression on frozen features, fine-tuning is `beats/esc10-finetune`; both train on four folds and are tested on the
fifth, five times. Each run is an ordinary `avssl pretrain` or `avssl finetune --kfold`; a second call goes on where the
first one stopped, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from avssl.api import evaluate, pretrain
from avssl.training.pipeline import run_folds
from avssl.training.setup import Machine

PRETRAIN, FINETUNE = "beats/esc10", "beats/esc10-finetune"
UNTRAINED = ["optim.lr=1e-12", "train.updates=1", "train.log_every=1"]
MODELS = {
    "untrained": "untrained",
    "iteration 1": "pretrained/stages/iter1",
    "iteration 2": "pretrained/stages/iter2",
}
LABELS = {"iteration 1": "iter1", "tokenizer of iteration 2": "tokenizer2", "iteration 2": "iter2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--precision", default="", help="of all training: fp32 or bf16; default: the recipes'")
    parser.add_argument(
        "--only", choices=("pretrain", "probe", "finetune"), action="append", default=[], help="default: all three"
    )
    parser.add_argument(
        "--model", choices=MODELS, action="append", default=[], help="to probe and fine-tune; default: all three"
    )
    options = parser.parse_args()
    wanted = options.only or ["pretrain", "probe", "finetune"]
    machine, runs = Machine(precision=options.precision), options.out / "pretrained"
    models = {name: options.out / MODELS[name] for name in options.model or MODELS}
    if "pretrain" in wanted:
        first = f"{PRETRAIN}-iter1"
        pretrain(
            first, options.data, options.out / MODELS["untrained"], overrides=UNTRAINED, resume=True, machine=machine
        )
        pretrain(PRETRAIN, options.data, runs, resume=True, machine=machine)
    there = {name: model for name, model in models.items() if (model / "report.json").is_file()}
    if "probe" in wanted:
        for name, model in there.items():
            if not (report := probe_of(options.out, name)).is_file():
                evaluate(model, options.data, "kfold").write(report)
    if "finetune" in wanted:
        for name, model in there.items():
            folds = options.out / "finetuned" / slug(name)
            run_folds(FINETUNE, model, options.data, folds, resume=True, machine=machine)
    print(accuracies(options.out))
    print(codes(runs / "stages"))


def slug(name: str) -> str:
    return name.replace(" ", "-")


def probe_of(out: Path, name: str) -> Path:
    return out / f"probe-{slug(name)}.json"


def accuracies(out: Path) -> str:
    """Mean and deviation over the folds, of what has been run."""
    lines = ["| accuracy, five folds | linear probe | fine-tuned |", "|---|---|---|"]
    for name in MODELS:
        probe = read(probe_of(out, name)).get("metrics", {})
        tuned = read(out / "finetuned" / slug(name) / "report.json").get("folds", {})
        lines.append(f"| {name} | {cell(probe, 'kfold.audio.accuracy')} | {cell(tuned, 'accuracy')} |")
    return "\n".join(lines) + "\n"


def codes(stages: Path) -> str:
    """How varied the labels of each stage are, and what was learned of them, at the end of its run."""
    lines = ["| labels | codes in use | perplexity | hidden patches named | commonest code |", "|---|---|---|---|---|"]
    for name, stage in LABELS.items():
        end = read(stages / stage / "report.json").get("final", {}).get("metrics", {})
        shares = [f"{end[k]:.3f}" if k in end else "–" for k in ("accuracy_masked", "code_share_largest")]
        if end:
            lines.append(f"| {name} | {end['codes_used']:.0f} | {end['code_perplexity']:.1f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def cell(metrics: dict[str, float], name: str) -> str:
    return f"{metrics[name]:.3f} ± {metrics[f'{name}.std']:.3f}" if name in metrics else "–"


if __name__ == "__main__":
    main()
