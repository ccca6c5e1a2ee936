"""Every system goes on exactly: killed in the middle of an epoch and inside a save, with its augmentation and dropout on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from runs import Running, assert_same, avssl, fragile, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
CAV_MAE = ("backbone.dim=32", "backbone.depth=1", "frontend.frames=48", "backbone.audio_frames=48")
DATA2VEC = ("backbone.dim=32", "backbone.depth=2", "loss.targets.top_k=2")
DATA2VEC2 = (*DATA2VEC, "loss.mask.clones=2")
NARROW = "backbone.conv_layers=[[32,10,5],[32,3,2],[32,3,2],[32,3,2],[32,3,2],[32,2,2],[32,2,2]]"
DROPOUT = ("backbone.dropout=0.1", "backbone.attention_dropout=0.1", "backbone.layerdrop=0.2")
BEATS = ("backbone.dim=48", "backbone.depth=1", "backbone.heads=4", "backbone.ffn=64", "backbone.patch_dim=32",
         "backbone.dropout=0.1", "frontend.seconds=0.8")  # fmt: skip
TINY = ("backbone.dim=16", "backbone.layers=1", "backbone.ff=32", "backbone.heads=2", "backbone.dropout=0.1",
        "frontend.seconds=0.8", "frontend.time_masks=1", "frontend.frequency_masks=1")  # fmt: skip
SYSTEMS = {  # recipe -> what makes it small, and everything random in it
    "cav_mae/tiny": (*CAV_MAE, "loss.decoder_dim=16", "loss.decoder_depth=1", "frontend.noise=true", "train.micro_batch=4"),
    "cav_mae/tiny-finetune-audio": (*CAV_MAE, "frontend.freq_mask=8", "frontend.time_mask=8", "train.weight_average=[1,3]"),
    "data2vec/audio_tiny": (*DATA2VEC, *DROPOUT, "frontend.seconds=0.6", "train.ema=0.9"),
    "data2vec/vision_tiny": (*DATA2VEC, "backbone.dropout=0.1", "backbone.drop_path=0.2", "frontend.jitter=0.4"),
    "data2vec/text_tiny": (*DATA2VEC, *DROPOUT, "data.epoch_items=24", "frontend.max_tokens=24"),
    "data2vec/audio2_base": (*DATA2VEC2, NARROW, "backbone.heads=4", "frontend.min_seconds=0.1", "frontend.seconds=0.6",
                             "loss.decoder.dim=16", "loss.decoder.layers=1", "train.precision=fp32"),
    "data2vec/vision2_tiny": (*DATA2VEC2, "backbone.dropout=0.1", "backbone.drop_path=[0.1,0.2]"),
    "data2vec/text2_tiny": (*DATA2VEC2, "backbone.dropout=0.1", "backbone.embedding_dropout=0.1", "data.epoch_items=24"),
    "data2vec/asr_tiny": ("backbone.dim=32", "backbone.depth=2", *DROPOUT, "optim.freeze_updates=4"),
    "data2vec/vision_tiny_finetune": ("backbone.dim=32", "backbone.depth=2", "frontend.mixup=0.8", "frontend.cutmix=1.0",
                                      "frontend.erase=0.25", "frontend.rand_augment=9", "data.target=multi_hot"),
    "beats/esc10-finetune": (*BEATS, "frontend.mixup=0.5", "frontend.mel_mask=8", "frontend.time_warp=4",
                             "data.target=multi_hot"),
    "tiny/masked": (*TINY, "frontend.noise_snr=[5.0,20.0]"),
    "tiny/cnn-esc10": ("backbone.widths=[8,8]", "backbone.dense=[16]", "frontend.mixup=0.5", "frontend.seconds=0.8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 30 clips with sound, a picture, a sentence and a label; six of them to validate on."""
    import soundfile
    from PIL import Image

    folder, rng, lines = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for n in range(30):
        soundfile.write(folder / f"{n}.wav", 0.1 * rng.normal(size=8000 + 400 * (n % 12)), 16000)
        Image.fromarray(rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{n}.png")
        text = " ".join(rng.choice(["a", "dog", "barks", "in", "the", "rain"], 4 + n % 5))
        lines.append({"id": str(n), "audio": f"{n}.wav", "vision": f"{n}.png", "text": text,
                      "label": ("one", "two")[n % 2], "split": "train" if n < 24 else "val"})  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "clips.jsonl"


def arguments(recipe: str, data: Path, out: Path, overrides: tuple[str, ...], workers: int) -> list[str]:
    from avssl.recipe import read_recipe

    stage = read_recipe(recipe).get("stage", "pretrain")
    common = ("train.updates=9", "train.save_every=3", "train.log_every=2", "data.batch_size=8", "monitor.every=4")
    words = [w for change in (*common, *overrides) for w in ("--set", change)]
    return [stage, recipe, "--data", str(data), "--out", str(out), "--device", "cpu", "--workers", str(workers), "--resume",
            *words]  # fmt: skip


def killed_and_resumed(tmp_path: Path, start, deaths: list[tuple[int, int]]) -> None:  # type: ignore[no-untyped-def]
    """`start(workers)` gives the command; it dies as told, with other numbers of workers, and then ends well."""
    for number, (steps, saves) in enumerate(deaths):
        ended = Running(tmp_path / "logs", fragile, start(number * 2 % 4), steps, saves).end(300)
        assert ended.code == -9, ended.stderr
    ended = avssl(tmp_path / "logs", *start(0))
    assert ended.code == 0, ended.stderr


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_goes_on_exactly(name: str, clips: Path, tmp_path: Path) -> None:
    """Killed in its fifth update, then, from the checkpoint of three, while it saves the sixth."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    ended = avssl(tmp_path / "logs", *arguments(name, clips, whole, SYSTEMS[name], workers=1))
    assert ended.code == 0, ended.stderr
    killed_and_resumed(tmp_path, lambda n: arguments(name, clips, out, SYSTEMS[name], n), [(5, 0), (0, 1)])
    assert_same(outcome(out), outcome(whole))


def test_a_taught_system_goes_on_exactly(clips: Path, tmp_path: Path) -> None:
    """The teacher is another run; the pupil's items are mixed."""
    teacher = arguments("tiny/cnn-esc10", clips, tmp_path / "teacher", SYSTEMS["tiny/cnn-esc10"], workers=0)
    assert avssl(tmp_path / "logs", *teacher).code == 0
    overrides = (*TINY, f"loss.teacher={tmp_path / 'teacher'}", "backbone.features=32")
    whole, out = tmp_path / "whole", tmp_path / "out"
    ended = avssl(tmp_path / "logs", *arguments("tiny/6k-distill", clips, whole, overrides, workers=1))
    assert ended.code == 0, ended.stderr
    killed_and_resumed(tmp_path, lambda n: arguments("tiny/6k-distill", clips, out, overrides, n), [(5, 0), (0, 1)])
    assert_same(outcome(out), outcome(whole))


PIPELINE = """
name = "small"
summary = "BEATs, two iterations"
stage = "pipeline"
[[stages]]
name = "one"
recipe = "beats/esc10-iter1"
[stages.overrides]
{small}
"loss.predictor.depth" = 1
[[stages]]
name = "tokenizer"
recipe = "beats/esc10-tokenizer"
inputs = {{"loss.teacher" = "one"}}
[stages.overrides]
{small}
"loss.codes" = 16
"loss.estimator.depth" = 1
[[stages]]
name = "two"
recipe = "beats/esc10-iter"
inputs = {{"loss.tokenizer" = "tokenizer"}}
[stages.overrides]
{small}
"loss.predictor.depth" = 1
"""


def test_a_pipeline_goes_on_exactly(clips: Path, tmp_path: Path) -> None:
    """Killed in each stage: the encoder, the tokenizer with its codebook of moving averages, the next encoder."""
    settings = (*BEATS, "train.updates=6", "train.save_every=3", "train.log_every=2", "data.batch_size=8")
    small = "\n".join('"{}" = {}'.format(*change.split("=")) for change in settings)
    (tmp_path / "small.toml").write_text(PIPELINE.format(small=small))

    def start(out: Path, workers: int) -> list[str]:
        return ["pretrain", str(tmp_path / "small.toml"), "--data", str(clips), "--out", str(out), "--device", "cpu",
                "--workers", str(workers), "--resume"]  # fmt: skip

    ended = avssl(tmp_path / "logs", *start(tmp_path / "whole", 1))
    assert ended.code == 0, ended.stderr
    # in update 5 of stage one; in update 4 of the tokenizer; then while stage two saves its third update
    killed_and_resumed(tmp_path, lambda n: start(tmp_path / "out", n), [(5, 0), (7, 0), (0, 2)])
    for stage in ("one", "tokenizer", "two"):
        found, want = (outcome(tmp_path / name / "stages" / stage) for name in ("out", "whole"))
        assert_same(found, want)
