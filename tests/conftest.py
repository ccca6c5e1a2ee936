"""Shared fixtures: where the real data lie, and one thread per test process. No test reaches the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import no_network  # noqa: F401
import pytest

pytest_plugins = ["toy_fixtures"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path += [str(Path(__file__).resolve().parent / folder) for folder in ("failures", "distributed")]  # their helpers
SHARED = Path(os.environ.get("AVSSL_SHARED_ROOT", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets; a clone without them skips, with the reason."""
    root = SHARED / "data"
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set AVSSL_SHARED_ROOT")
    return root


@pytest.fixture(autouse=True)
def _two_threads():
    """Tests compare numbers, not speed: one thread keeps a shared machine usable and sums in one order."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
