"""A model directory that was tampered with is refused in words, by every file; it never crashes a command."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from test_safeload import mutate

from avssl.errors import AvsslError, CheckpointError
from avssl.model import open_model, read_initial
from avssl.training import checkpoint

FILES = ("recipe.toml", "checksums.json", "weights.safetensors", "training.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_needed_and_named(name: str, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AvsslError) as caught:
        open_model(folder)
        read_initial(folder)  # the decoder is read only here
    assert str(folder) in str(caught.value) and caught.value.fix


def test_an_unfinished_run_says_so(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    assert str(caught.value) == (
        f"{folder} has no weights.safetensors: the run is not finished "
        f"(resume it: avssl pretrain ... --out {folder} --resume)"
    )


@pytest.mark.parametrize(
    "name", ["recipe.toml", "checksums.json", "checkpoint/state.json", "checkpoint/checksums.json"]
)
def test_mutations(name: str, finished: Path, tmp_path: Path) -> None:
    """300 of each: the model opens, or an error of ours says why."""
    folder = tmp_path / "model"
    shutil.copytree(finished, folder)
    saved = checkpoint.steps(folder / "checkpoints")[-1]
    path = saved / name.removeprefix("checkpoint/") if name.startswith("checkpoint/") else folder / name
    content, rng, refused = path.read_bytes(), random.Random(5), 0
    for _ in range(300):
        path.write_bytes(mutate(content, rng))
        try:
            checkpoint.read(saved) if name.startswith("checkpoint/") else open_model(folder)
        except AvsslError:
            refused += 1
    assert refused > 50
