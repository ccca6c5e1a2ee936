"""The plugin of docs/plugins.md, as a reader would copy it: a modality that nothing here knows, end to end."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import avssl as run

PAGE = (Path(__file__).resolve().parents[2] / "docs/plugins.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, and what pip leaves behind."""
    home = tmp_path_factory.mktemp("home")
    files = re.findall(r"`(avssl_motion/[\w./]+)`.*?```(?:python|toml)\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == 5
    for name, code in files:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(code, encoding="utf-8")
    info = home / "avssl_motion-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: avssl-motion\nVersion: 0.1\n")
    points = re.search(r"\[project.entry-points.avssl\]\n(.*?)\n", PAGE)
    assert points
    (info / "entry_points.txt").write_text("[avssl]\n" + points.group(1).replace('"', "") + "\n")
    return home


def avssl(home: Path, *words: object) -> str:
    ended = run(home / "logs", *map(str, words), folder=home)
    assert ended.code == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    return ended.stdout


def test_the_plugin_passes_the_conformance_suite(installed: Path) -> None:
    results = json.loads(avssl(installed, "plugins", "check", "motion", "--json"))
    assert {r["entry"] for r in results} == {"motion", "backbone motion", "modality motion", "recipe motion/small"}
    assert not [r for r in results if r["error"]]


def test_another_plugins_loss_trains_it_and_every_command_takes_it(installed: Path) -> None:
    rng, lines = np.random.default_rng(0), []
    for i in range(24):  # two gestures, of unequal length
        time = np.arange(70 + i)[:, None] * (0.2 + 0.4 * (i % 2))
        readings = 10 * np.sin(time + np.arange(6)) + rng.normal(size=(70 + i, 6))
        np.savetxt(installed / f"{i}.imu", readings, delimiter=",")
        lines.append({"motion": f"{i}.imu", "label": ["shake", "turn"][i % 2], "split": "train" if i < 16 else "test"})
    (installed / "broken.imu").write_text("no, number\n")
    lines.append({"motion": "broken.imu", "label": "shake", "split": "train"})
    (installed / "sensors.jsonl").write_text("\n".join(map(json.dumps, lines)))
    quick = ("--workers", 0)
    avssl(installed, "pretrain", "motion/small", "--data", "sensors.jsonl", "--out", "run", *quick)
    assert "broken.imu" in (installed / "run/bad_files.csv").read_text()
    avssl(installed, "embed", "sensors.jsonl", "--model", "run", "--out", "vectors.npz", *quick)
    assert any(v.shape == (24, 32) for v in np.load(installed / "vectors.npz").values())
    report = json.loads(
        avssl(installed, "evaluate", "--model", "run", "--data", "sensors.jsonl", "--task", "knn", *quick, "--json")
    )
    assert report["metrics"]["knn.motion.accuracy"] > 0.9


ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    pytest.param(line.split("  #")[0].split(" || ")[0].split(" > ")[0].strip(), id=f"{page.stem}: {line[:60]}")
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("avssl ")
]


@pytest.fixture(scope="module")
def idle() -> Any:
    """The command line itself, whose commands do nothing."""
    import typer

    from avssl import cli

    def rest(group: Any) -> None:
        for one in getattr(group, "commands", {}).values():
            one.callback = lambda **options: None
            rest(one)

    cli._command()
    group = typer.main.get_command(cli.app)
    rest(group)
    return group


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_guides_has_options_that_exist(command: str, idle: Any) -> None:
    """Recipes must be registered."""
    from avssl.registry import registry

    words = shlex.split(command)[1:]
    idle.main(words, prog_name="avssl", standalone_mode=False)
    if words[0] in ("pretrain", "finetune") and "/" in words[1] and not words[1].startswith("motion/"):
        assert registry().get("recipe", words[1])


def test_there_are_commands_to_parse() -> None:
    assert len(COMMANDS) > 25
