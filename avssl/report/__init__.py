"""One self-contained HTML page about a run: curves, and clips that one can look at and listen to."""

from __future__ import annotations

from avssl.report.build import Summary, write_report

__all__ = ["Summary", "write_report"]
