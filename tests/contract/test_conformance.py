"""Every registered backbone and loss passes the public conformance suite, ours like anyone's."""

from __future__ import annotations

import pytest

from avssl.registry import registry
from avssl.testing import check_backbone, check_loss


@pytest.mark.parametrize("name", [e.name for e in registry().all("backbone")])
def test_backbone(name: str) -> None:
    """Shapes, determinism, an item alone and among others, gradients, save and load, masks (padding: test_padding.py)."""
    check_backbone(name)


@pytest.mark.parametrize("name", [e.name for e in registry().all("loss")])
def test_loss(name: str) -> None:
    """Draws by item, a training step, save and load, a wrong backbone refused in words."""
    check_loss(name)
