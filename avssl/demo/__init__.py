"""The whole story on generated clips: files, pretraining, evaluation, report."""

from __future__ import annotations

from avssl.demo.story import run_demo

__all__ = ["run_demo"]
