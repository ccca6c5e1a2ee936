"""The commands that the README shows, run as they stand there."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from runs import avssl

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"<!-- tested -->\n```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a few videos and a manifest of sounds in two folds."""
    import soundfile

    from avssl.demo.clips import CLASSES, make_clip

    home = tmp_path_factory.mktemp("home")
    (home / "videos").mkdir()
    for i in range(5):
        make_clip(
            home / "videos" / ("surf.mp4" if i == 0 else f"clip {i}.mp4"),
            CLASSES[i % len(CLASSES)],
            np.random.default_rng(i),
        )
    with (home / "sounds.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "label", "fold"])
        for i in range(4):
            wave = np.sin(np.arange(8000) * 0.1 * (1 + i % 2)) * 0.3 + np.random.default_rng(i).normal(0, 0.01, 8000)
            soundfile.write(home / f"{i}.wav", wave, 8000)
            table.writerow([f"{i}.wav", "low" if i % 2 else "high", 1 + i // 2])
    return home


def test_there_are_commands_to_test() -> None:
    assert len(BLOCKS) == 2 and len(COMMANDS) >= 8


def test_every_command_of_the_readme_does_what_it_says(home: Path, tmp_path: Path) -> None:
    for command in COMMANDS:
        words = [str(home / w[2:]) if w.startswith("~/") else w for w in shlex.split(command)]
        assert words[0] == "avssl"
        ended = avssl(tmp_path, *words[1:], environment={"HOME": str(home)}, folder=home)
        assert ended.code == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-2000:]}"
    for made in (
        "clips.parquet",
        "runs/mine/report.html",
        "runs/mine/README.md",
        "vectors.parquet",
        "runs/sounds/report.json",
    ):
        assert (home / made).is_file(), made


def test_the_test_command_of_ci_is_the_readmes() -> None:
    found = re.search(r"<!-- test -->\n```bash\n(python3 .*?)\n```", README)
    assert found and "pytest" in found.group(1)


def test_the_plugin_of_the_readme_passes_the_conformance_suite(tmp_path: Path) -> None:
    section = README[README.index("## Write a plugin") : README.index("## Promises")]
    files = re.findall(r"`(my_plugin/\w+\.py)`.*?```python\n(.*?)```", section, re.DOTALL)
    assert [name for name, _ in files] == ["my_plugin/__init__.py", "my_plugin/config.py", "my_plugin/agree.py"]
    installed = tmp_path / "my_plugin-0.1.dist-info"  # what pip leaves behind
    for folder in (tmp_path / "my_plugin", installed):
        folder.mkdir()
    for name, code in files:
        (tmp_path / name).write_text(code, encoding="utf-8")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[avssl]\nmy_plugin = my_plugin\n")
    ended = avssl(tmp_path / "logs", "plugins", "check", "my_plugin", folder=tmp_path)
    assert ended.code == 0 and "5 of 5 checks passed" in ended.stdout + ended.stderr, ended.stdout + ended.stderr
