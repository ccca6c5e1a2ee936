"""Output is complete or absent, wherever it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from avssl.files import completing


@pytest.mark.parametrize("place", [".", "new", "new/deep"])
def test_a_folder_is_written_whole_or_not_at_all(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into the working directory, beside what is there: it may be a mount point that nothing can be moved over."""
    (tmp_path / "kept.txt").write_text("kept")
    monkeypatch.chdir(tmp_path)

    def write(fail: bool) -> None:
        with completing(Path(place)) as made:
            made.mkdir()
            (made / "a.txt").write_text("a")
            assert not (Path(place) / "a.txt").exists()
            if fail:
                raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write(fail=True)
    assert [p.name for p in tmp_path.rglob("*.txt")] == ["kept.txt"]
    write(fail=False)
    assert (tmp_path / place / "a.txt").read_text() == "a" and (tmp_path / "kept.txt").exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]
