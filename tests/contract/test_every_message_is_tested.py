"""Each sentence that a user may be told by runs, data, embeddings and checkpoints stands in a test that compares it whole.

What is looked at: the literal words in calls that raise, refuse, report or say something. Words that a test only looks for
(`match=`, `in`, `startswith`) do not count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("data", "training", "embedding")
FILES = ("safeload", "unpickler", "doctor", "model", "imports", "launch", "card", "model_import", "api")
COMMANDS = ("__init__", "data", "debug", "doctor", "embed", "inputs", "launch", "models", "train")
SOURCES = [
    *(p for folder in FOLDERS for p in sorted((ROOT / "avssl" / folder).glob("*.py"))),
    *(ROOT / "avssl" / f"{name}.py" for name in FILES),
    *(ROOT / "avssl" / "cli" / f"{name}.py" for name in COMMANDS),
]
TELLING = re.compile(r"\w*Error|Absent|Stopped|NonFinite|Collapsed|PeerLost|Absurd|Problem|Finding|BadItem|Blame"
                     r"|check|bad|unusable|say|print|_Unusable")  # fmt: skip
PARTIAL = {"startswith", "endswith", "removeprefix", "search", "findall", "index"}
SHORT = 5  # letters below which a fragment says nothing


def literals(node: ast.AST) -> Iterator[str]:
    """The constant pieces of a string expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from (v.value for v in node.values if isinstance(v, ast.Constant) and isinstance(v.value, str))
    elif isinstance(node, ast.BinOp):
        yield from (*literals(node.left), *literals(node.right))
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))


def told(source: Path) -> Iterator[tuple[int, str]]:
    """(line, piece of a message) of a module."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if TELLING.fullmatch(name):
                values = [*node.args, *(k.value for k in node.keywords if k.arg == "fix")]
                for text in (t for value in values for t in literals(value)):
                    for piece in re.split(r"[():]", text):
                        if len(piece := piece.strip()) >= SHORT:
                            yield node.lineno, piece


@cache
def compared() -> str:
    """Every string of the tests that is not merely looked for in another one."""
    out = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        partial: set[int] = set()
        for node in ast.walk(tree):
            some: list[ast.AST] = []
            if isinstance(node, ast.keyword) and node.arg == "match":
                some = [node.value]
            elif isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
                some = [node.left]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in PARTIAL:
                some = list(node.args)
            partial |= {id(inner) for one in some for inner in ast.walk(one)}
        for node in ast.walk(tree):
            if id(node) not in partial and isinstance(node, (ast.Constant, ast.JoinedStr)):
                out.append("\0".join(literals(node)))
    return "\0".join(out).replace("\\", "")  # regular expressions of whole messages escape


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_message_is_compared_whole(source: Path) -> None:
    text = compared()
    missing = [f"{source.relative_to(ROOT)}:{line}: {piece!r}" for line, piece in told(source) if piece not in text]
    assert not missing, "\n".join(["messages that no test compares whole:", *missing])
