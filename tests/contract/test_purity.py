"""The core names no system, no plugin imports another, and a listing imports no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(p.name for p in (ROOT / "plugins").iterdir() if (p / "__init__.py").is_file())
SYSTEMS = re.compile(r"\b(cav[_-]?mae|data2vec|beats|one[_-]?peace|teminal|clap)\b", re.IGNORECASE)


def sources(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def code_words(path: Path) -> str:
    """Names and strings that the program acts on; docstrings and comments may tell where an idea comes from."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {
        id(n.body[0].value)
        for n in ast.walk(tree)
        if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and n.body
        and isinstance(n.body[0], ast.Expr)
        and isinstance(n.body[0].value, ast.Constant)
    }
    words = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            words.append(node.id)
        elif isinstance(node, ast.Attribute):
            words.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            words.append(node.value)
    return " ".join(words)


def test_the_core_names_no_system() -> None:
    found = {
        str(p.relative_to(ROOT)): m.group() for p in sources(ROOT / "avssl") if (m := SYSTEMS.search(code_words(p)))
    }
    assert not found


@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_plugin_imports_another(plugin: str) -> None:
    others = set(PLUGINS) - {plugin}
    found = {str(p): imported(p) & others for p in sources(ROOT / "plugins" / plugin) if imported(p) & others}
    assert not found


def test_the_core_imports_no_plugin() -> None:
    assert not {str(p) for p in sources(ROOT / "avssl") if imported(p) & set(PLUGINS)}


def test_the_library_does_without_its_command_line() -> None:
    doors = {ROOT / "avssl" / "__main__.py", ROOT / "avssl" / "launch.py"}  # these start it
    others = {p for p in sources(ROOT / "avssl") if p.parent.name != "cli"} - doors
    assert len(others) > 100
    assert not {str(p) for p in others if "avssl.cli" in p.read_text(encoding="utf-8")}


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys; from avssl.cli import main\n"
        "for line in ('--help', 'backbones --json', 'losses', 'recipes', 'plugins', 'pretrain --help',\n"
        "             'recipes show tiny/masked'):\n"
        "    try: main(line.split())\n"
        "    except SystemExit as e: assert not e.code, (line, e.code)\n"
        "    heavy = {'torch', 'torchaudio', 'sklearn', 'pyarrow', 'av', 'soundfile', 'scipy'} & set(sys.modules)\n"
        "    assert not heavy, (line, heavy)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("plugin", PLUGINS)
def test_configs_import_no_torch(plugin: str) -> None:
    configs = [p for p in (ROOT / "plugins" / plugin).glob("config*.py")]
    assert configs, "a plugin has a config module"
    code = f"import sys; import {plugin}, {', '.join(f'{plugin}.{p.stem}' for p in configs)}; assert 'torch' not in sys.modules"
    path = f"{ROOT}:{ROOT / 'plugins'}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr


def test_no_verb_has_the_name_of_a_module() -> None:
    """Importing `avssl.x` binds the module to that name, and a function of the same name is gone."""
    import avssl

    modules = {p.stem for p in (ROOT / "avssl").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert not modules & set(avssl.__all__)
