"""Write the run directory that later releases must keep reading: `python tests/golden/make.py 0.1`, once a release.

Four updates of a model of a few hundred parameters on noise, with a checkpoint every two.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARGUMENTS = [
    "tiny/masked",
    "--workers",
    "0",
    "--device",
    "cpu",
    *(
        word
        for change in (
            "backbone.dim=8",
            "backbone.layers=1",
            "backbone.ff=8",
            "backbone.heads=2",
            "backbone.features=8",
            "frontend.n_mels=8",
            "frontend.seconds=0.4",
            "data.batch_size=4",
            "train.updates=4",
            "train.save_every=2",
            "train.log_every=1",
            "backbone.dropout=0.0",
        )
        for word in ("--set", change)
    ),
]


def main(release: str) -> None:
    sys.path.insert(0, str(HERE.parent / "failures"))
    from runs import write_sounds

    from avssl.cli import main as avssl

    target = HERE / f"run-{release}"
    with tempfile.TemporaryDirectory() as folder:
        sounds, out = write_sounds(Path(folder) / "sounds", items=8), Path(folder) / "run"
        try:
            avssl(["pretrain", *ARGUMENTS, "--data", str(sounds), "--out", str(out)])
        except SystemExit as end:
            assert end.code == 0
        shutil.rmtree(out / "events")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(out, target)
    (target / "environment.json").unlink()  # says where it was made, which is nobody's business
    report = json.loads((target / "report.json").read_text())
    report.pop("environment")
    (target / "report.json").write_text(json.dumps(report))
    (target / "arguments.json").write_text(json.dumps(ARGUMENTS))


if __name__ == "__main__":
    main(sys.argv[1])
