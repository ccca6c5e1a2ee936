"""data2vec on real data, at CPU size: sounds, pictures, sentences and letters, pretrained against not, over seeds.

    python tests/benchmarks/data2vec_real.py --data ../shared/data --out runs/data2vec [--part audio --seeds 0]

--data holds av-digits, cifar10-subset, text-banking77 and text-plain. Each run is an ordinary `avssl pretrain` or
`avssl finetune`; a second call goes on where the first one stopped, and prints the tables of what is there.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avssl.api import evaluate
from avssl.data.manifest import read_rows
from avssl.recipe import load_recipe
from avssl.training.run import finetune, pretrain
from avssl.training.setup import Machine

MACHINE = Machine(precision="bf16", workers=0)
NOTHING = ["optim.lr=1e-12", "train.updates=1", "train.log_every=1"]  # the network as it is before training
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PER_CLASS = 10
EIGHT_KHZ = [  # the digits' own rate: one halving less to the same 10 ms frames
    "frontend.rate=8000",
    "backbone.rate=8000",
    "backbone.conv_layers=[[64,20,10],[64,3,2],[64,3,2],[64,2,2]]",
]


@dataclass(frozen=True)
class Part:
    """One modality: what is pretrained on, what is labelled, and the stream that a probe reads."""

    stream: str
    recipe: str
    data: Callable[[Path, Path], tuple[Path, Path, list[str]]]  # (--data, --out) -> (unlabelled, labelled, overrides)
    updates: int  # of pretraining


def digits(data: Path, out: Path) -> tuple[Path, Path, list[str]]:
    manifest = data / "av-digits" / "manifest.csv"
    return manifest, manifest, EIGHT_KHZ


def pictures(data: Path, out: Path) -> tuple[Path, Path, list[str]]:
    manifest = data / "cifar10-subset" / "manifest.csv"
    return manifest, manifest, []


def sentences(data: Path, out: Path) -> tuple[Path, Path, list[str]]:
    """Queries of BANKING77. Pretraining reads those of its training split and 3,000 paragraphs of the books; the tokens are
    a BPE of those queries and all the books."""
    from avssl.data.tokenizer import train_bpe

    labelled, unlabelled, tokenizer = out / "queries.csv", out / "texts.csv", out / "tokenizer.json"
    if not tokenizer.is_file():
        queries = [
            (r.parts["text"], r.labels[0], s)
            for s in ("train", "test")
            for r in read_rows(data / "text-banking77" / f"{s}.csv")
        ]
        own = [q for q, _, s in queries if s == "train"]
        books = [r.parts["text"] for r in read_rows(data / "text-plain")]
        write(labelled, ("text", "category", "split"), queries)
        write(unlabelled, ("text",), [[t] for t in [*own, *random.Random(0).sample(books, 3000)]])
        train_bpe([*own, *books], VOCABULARY, tokenizer)
    tokens = [
        f"frontend.tokenizer={tokenizer}",
        f"backbone.vocabulary={VOCABULARY}",
        f"backbone.mask={VOCABULARY - 1}",
        "frontend.max_tokens=40",
        "backbone.max_tokens=40",
        "data.batch_size=32",
    ]
    return unlabelled, labelled, tokens


VOCABULARY = 2000
PARTS = {
    "audio": Part("audio", "data2vec/audio_tiny", digits, 400),
    "vision": Part("vision", "data2vec/vision2_tiny", pictures, 300),
    "text": Part("text", "data2vec/text2_tiny", sentences, 400),
}


def classes(name: str, options: argparse.Namespace) -> None:
    """Probes on all and on few labels, and fine-tuning on few: the untrained network against the pretrained one."""
    part, out = PARTS[name], options.out
    unlabelled, labelled, changes = part.data(options.data, out)
    columns: dict[str, dict[str, list[float]]] = {}
    for seed in options.seeds:
        for start, more in (
            ("untrained", NOTHING),
            ("pretrained", [f"train.updates={part.updates}", *options.overrides]),
        ):
            model = out / f"{name}-{start}-{seed}"
            recipe = load_recipe(part.recipe, [*changes, *more, f"train.seed={seed}"])
            pretrain(recipe, unlabelled, model, resume=True, machine=MACHINE)
            tuned = out / f"{name}-{start}-{seed}-tuned"
            finetune(
                f"{part.recipe}_finetune",
                model if start == "pretrained" else None,
                labelled,
                tuned,
                overrides=[*changes, f"data.per_class={PER_CLASS}", f"train.seed={seed}"],
                resume=True,
                machine=MACHINE,
            )
            few = [f"per_class={PER_CLASS}", f"seed={seed}"]
            stream = [f'streams=["{part.stream}"]', "bootstrap=0", "c=[0.1]"]
            columns.setdefault(start, {}).setdefault("probe, all labels", []).append(
                measured(model, labelled, "probe", f"probe.{part.stream}.accuracy", stream)
            )
            columns[start].setdefault(f"probe, {PER_CLASS} per class", []).append(
                measured(model, labelled, "probe", f"probe.{part.stream}.accuracy", [*stream, *few])
            )
            columns[start].setdefault(f"fine-tuned, {PER_CLASS} per class", []).append(
                measured(tuned, labelled, "classification", "classification.accuracy", ["bootstrap=0"])
            )
    show(name, columns)


def letters(name: str, options: argparse.Namespace) -> None:
    """Words of spoken digits as letters by CTC, from scratch and from a network that was pretrained on their sounds."""
    manifest = options.out / "words.csv"
    folder = (options.data / "av-digits").resolve()
    if not manifest.is_file():
        with (folder / "manifest.csv").open(newline="") as file:
            rows = [
                (folder / r["audio"], WORDS[int(r["label"])], r["speaker"], r["split"]) for r in csv.DictReader(file)
            ]
        write(manifest, ("audio", "label", "speaker", "split"), rows)
    part = LETTERS[name]
    columns: dict[str, dict[str, list[float]]] = {}
    for seed in options.seeds:
        model = options.out / f"audio-pretrained-{part.updates}-{seed}"
        changes = [*EIGHT_KHZ, f"train.updates={part.updates}", f"train.seed={seed}"]
        pretrain("data2vec/audio_tiny", manifest, model, overrides=changes, resume=True, machine=MACHINE)
        for start in ("scratch", "pretrained"):
            run = options.out / f"{name}-{start}-{seed}"
            finetune(
                "data2vec/asr_tiny",
                model if start == "pretrained" else None,
                manifest,
                run,
                overrides=[*EIGHT_KHZ, *part.changes, "optim.freeze_updates=0", f"train.seed={seed}"],
                resume=True,
                machine=MACHINE,
            )
            for decoder, how in (("greedy", []), ("beam of 10", ["decoder=beam", "beam=10"])):
                for rate in ("wer", "cer"):
                    value = measured(run, manifest, "speech", f"speech.{rate}", [*how, "bootstrap=0"])
                    columns.setdefault(start, {}).setdefault(f"{rate.upper()}, {decoder}", []).append(value)
    show(name, columns)


@dataclass(frozen=True)
class Letters:
    """updates: of pretraining; changes: of fine-tuning."""

    updates: int
    changes: tuple[str, ...]


LETTERS = {
    "ctc": Letters(400, ("data.per_class=27", "train.updates=600", "data.batch_size=16")),  # a tenth of the labels
    "ctc-all": Letters(1500, ()),
}


def measured(model: Path, data: Path, task: str, metric: str, overrides: list[str]) -> float:
    """A metric of a model, computed once and kept beside it."""
    kept = model / "table.json"
    table = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    protocol = " ".join([task, *overrides])
    if protocol not in table:
        table[protocol] = evaluate(model, data, task, overrides=[*overrides, "workers=0"]).metrics
        kept.write_text(json.dumps(table), encoding="utf-8")
    return table[protocol][metric]


def write(path: Path, header: tuple[str, ...], rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def show(name: str, columns: dict[str, dict[str, list[float]]]) -> None:
    names = list(next(iter(columns.values())))
    print(f"\n| {name} | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for start, values in columns.items():
        print(f"| {start} | " + " | ".join(cell(values[n]) for n in names) + " |")


def cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ± {statistics.pstdev(values) if len(values) > 1 else 0:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", action="append", choices=[*PARTS, *LETTERS], help="default: all, in this order")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="for every pretraining")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.part or [*PARTS, *LETTERS]:
        (letters if name in LETTERS else classes)(name, options)


if __name__ == "__main__":
    main()
