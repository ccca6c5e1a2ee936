"""Items that cannot be used: named, counted, replaced the same way whenever they are found out, waited for once."""

from __future__ import annotations

import csv
import faulthandler
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from messages import says
from runs import Running, assert_same, avssl, children_of, outcome, pretrain_arguments, wait_until

from avssl.data.bad import BadFiles, BadItem
from avssl.data.workers import Blame, WorkerPool
from avssl.errors import DataError

BAD = ("004", "015")


@pytest.fixture(scope="module")
def tainted(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sounds, two of them with good headers and samples that are no numbers."""
    folder = tmp_path_factory.mktemp("tainted") / "sounds"
    shutil.copytree(sounds, folder)
    for name in BAD:
        soundfile.write(folder / f"{name}.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    return folder


def listed(out: Path) -> dict[str, str]:
    with (out / "bad_files.csv").open(newline="") as file:
        return {row["id"]: row["what"] for row in csv.DictReader(file)}


def test_skip_is_the_same_for_any_number_of_workers(tainted: Path, tmp_path: Path) -> None:
    results = []
    for policy, workers in (("skip", 0), ("skip", 2), ("quarantine", 0), ("quarantine", 2)):
        out = tmp_path / f"{policy}{workers}"
        ended = avssl(tmp_path / "logs", *pretrain_arguments(tainted, out, f"data.on_bad={policy}", workers=workers))
        assert ended.code == 0, ended.stderr
        assert f"2 items could not be used: {out / 'bad_files.csv'}" in ended.stderr.splitlines()
        assert listed(out) == dict.fromkeys(BAD, "bad")
        result = outcome(out)
        results.append((result["files"], result["records"], result["state"]))
    for other in results[1:]:
        assert_same(dict(enumerate(other)), dict(enumerate(results[0])))


def test_fail_names_the_file(tainted: Path, tmp_path: Path) -> None:
    ended = avssl(tmp_path / "logs", *pretrain_arguments(tainted, tmp_path / "run", "data.on_bad=fail"))
    assert ended.code == 3
    why = "4800 of its samples are not finite (NaN or infinity)"  # 0.6 s
    fix = "mend or remove the file; data.on_bad=skip goes on without it"
    assert ended.last in [f"error: {tainted / name}.wav: {why} ({fix})" for name in BAD]


def test_the_budget_ends_a_run(tainted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ended = avssl(tmp_path / "logs", *pretrain_arguments(tainted, out, "data.max_bad=0.02"))
    last = list(BadFiles(out / "bad_files.csv").items.values())[-1]
    assert last.reason.startswith(f"{last.path}: ")
    assert (ended.code, ended.last) == (
        3,
        f"error: 2 of 24 items are bad, data.max_bad = 0.02 allows 1; the last: {last.reason} "
        f"(they are listed in {out / 'bad_files.csv'}; mend them or raise data.max_bad)",
    )


def test_the_budget_ends_a_run_before_it_begins(sounds: Path, tmp_path: Path) -> None:
    """Files that say of themselves that they are broken are counted against all the data."""
    data, out = tmp_path / "sounds", tmp_path / "run"
    shutil.copytree(sounds, data)
    for name in ("003", "007", "011"):
        (data / f"{name}.wav").write_bytes(b"RIFF")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(data, out, "data.max_bad=0.05"))
    last = BadFiles(out / "bad_files.csv").by_id["011"]
    assert (ended.code, ended.last) == (
        3,
        f"error: 3 of 24 items are bad, data.max_bad = 0.05 allows 2; the last: {last.reason} "
        f"(they are listed in {out / 'bad_files.csv'}; mend them or raise data.max_bad)",
    )
    assert not (out / "manifest.parquet").exists()


# -- the list ---------------------------------------------------------------------------------------------------------
def test_a_half_written_line_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.csv"
    BadFiles(path).add([BadItem("a", "a.wav", "bad", 'a "quoted", reason')])
    with path.open("ab") as file:
        file.write(b"b,b.wav,ba")  # killed here
    again = BadFiles(path)
    assert list(again.by_id) == ["a"]
    again.add([BadItem("b", "b.wav", "hung", "why"), BadItem("b", "b.wav", "hung", "why")])
    assert listed(tmp_path) == {"a": "bad", "b": "hung"} and len(BadFiles(path)) == 2


@pytest.mark.parametrize("name", [os.fsdecode(b"\xff\xfe.wav"), "half of a pair \ud800"], ids=ascii)
def test_names_that_are_no_utf8(name: str, tmp_path: Path) -> None:
    BadFiles(tmp_path / "bad_files.csv").add([BadItem(name, name, "bad", "line\nbreak")])
    (found,) = BadFiles(tmp_path / "bad_files.csv").by_id
    assert found == (name if "\udcff" in name else "half of a pair \\ud800")


def test_an_item_of_the_list_is_one_line() -> None:
    path = "/a\nb/\ud800.wav"
    assert (
        BadItem("x", path, "bad", "/a\\nb/\\ud800.wav: is empty (0 bytes)").line
        == "/a\\nb/\\ud800.wav: is empty (0 bytes)"
    )
    assert BadItem("x", path, "hung", "did not finish").line == "/a\\nb/\\ud800.wav: did not finish"


# -- decoders that crash or hang --------------------------------------------------------------------------------------
class Work:
    """Doubles numbers; some of them are deadly. What is blamed becomes -1."""

    def __init__(self, deadly: dict[int, Callable[[], Any]]) -> None:
        self.deadly = deadly

    def __call__(self, keys: Sequence[int], blamed: Sequence[Blame], hold: Callable[[int], None]) -> list[Any]:
        out: list[Any] = []
        for key in keys:
            hold(key)
            blame = next((b for b in blamed if b.item == key), None)
            if blame is None and key in self.deadly:
                self.deadly[key]()
            out.append((blame.what, blame.reason) if blame else 2 * key)
        return out


def segfault() -> None:
    faulthandler.disable()  # pytest's would print a screenful
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    time.sleep(1000)


@pytest.mark.parametrize("workers", [1, 3])
def test_crashing_and_hanging_items_are_blamed(workers: int) -> None:
    tasks = [list(range(i, i + 5)) for i in range(0, 40, 5)]
    work = Work({7: segfault, 8: segfault, 21: hang, 39: lambda: os._exit(3)})
    with WorkerPool(work, workers, timeout=3.0) as pool:
        results = [x for task in pool.map(tasks) for x in task]
    expected: list[Any] = [2 * i for i in range(40)]
    expected[7] = expected[8] = ("crashed", "the decoder killed its process (SIGSEGV)")
    expected[21] = ("hung", "the decoder did not finish within 3 s")
    expected[39] = ("crashed", "the decoder killed its process (exit 3)")
    assert results == expected


def _paced(path: str) -> None:
    """Three items of a second's work, with a time-out of four; what came of them goes to a file."""

    def work() -> None:
        for _ in range(20):
            time.sleep(0.05)

    with WorkerPool(Work(dict.fromkeys(range(3), work)), 1, timeout=4.0) as pool:
        Path(path).write_text(str([x for task in pool.map([[n] for n in range(3)]) for x in task]))


def test_a_run_that_is_stopped_and_continued_blames_no_item(tmp_path: Path) -> None:
    """Ctrl-Z and fg: the worker held an item for longer than the time-out, but nobody ran meanwhile."""
    running = Running(tmp_path / "logs", _paced, str(tmp_path / "made"))
    wait_until(lambda: children_of(running.pid))
    time.sleep(0.5)
    group = [running.pid, *children_of(running.pid)]
    for pid in group:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(6.0)
    for pid in group:
        os.kill(pid, signal.SIGCONT)
    assert running.end().code == 0
    assert (tmp_path / "made").read_text() == str([0, 2, 4])


def test_out_of_memory_is_tried_once_more(tmp_path: Path) -> None:
    """The kernel kills whoever is there: an innocent item survives its second try, a guilty one is blamed."""

    def once() -> None:
        if not (tmp_path / "tried").exists():
            (tmp_path / "tried").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    work = Work({1: once, 3: lambda: os.kill(os.getpid(), signal.SIGKILL)})
    with WorkerPool(work, 1) as pool:
        assert list(pool.map([[0, 1, 2, 3]])) == [[0, 2, 4, ("crashed", "the decoder killed its process (SIGKILL)")]]


def test_an_exception_of_the_work_keeps_its_place() -> None:
    def fail() -> None:
        raise DataError("no", fix="yes")

    with WorkerPool(Work({3: fail}), 2) as pool:
        results = pool.map([[1], [2], [3], [4]])
        assert [next(results), next(results)] == [[2], [4]]
        with says(DataError, "no (yes)"):
            next(results)


def test_known_bad_items_are_not_tried() -> None:
    for workers in (0, 1):
        with WorkerPool(
            Work({2: segfault}), workers, known=lambda keys: [Blame(k, "hung", "it did") for k in keys if k == 2]
        ) as pool:
            assert list(pool.map([[1, 2]])) == [[2, ("hung", "it did")]]


@pytest.mark.parametrize("command", ["scan", "prepare", "fingerprint", "embed"])
def test_a_decoder_that_crashes_costs_one_file(
    command: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every command that looks at files: the sixth row kills its worker, and is the only one that is lost."""
    from avssl.data import fingerprint, prepare, scan
    from avssl.data.manifest import read_rows
    from avssl.embedding import rows as embedded

    rows = read_rows(str(sounds))
    owner, name = {
        "scan": (scan, "examine"),
        "prepare": (prepare._Preparer, "one"),
        "fingerprint": (fingerprint, "fingerprint"),
        "embed": (embedded, "looked_up"),
    }[command]
    look = getattr(owner, name)

    def deadly(*arguments: Any, **options: Any) -> Any:
        if rows[5] in arguments:
            segfault()
        return look(*arguments, **options)

    monkeypatch.setattr(owner, name, deadly)
    lost = BadItem(rows[5].id, str(rows[5].parts["audio"]), "crashed", "the decoder killed its process (SIGSEGV)")
    rest = [r.id for r in rows if r is not rows[5]]
    if command == "scan":
        seen = scan.scan(rows, workers=2)
        assert seen.bad == [lost] and [r.id for r in seen.rows] == rest
    elif command == "prepare":
        made, bad = prepare.prepare(rows, tmp_path / "out", workers=2)
        assert bad == [lost] and [r.id for r in made] == rest
    elif command == "embed":  # its length stays unknown; the embedding itself will list it
        made = embedded.probed(rows, {"audio"}, workers=2)
        assert [r.id for r in made] == [r.id for r in rows]
        assert [i for i, r in enumerate(made) if r.duration is None] == [5]
    else:
        found = fingerprint.fingerprints(rows, workers=2)
        assert [i for i, digests in enumerate(found) if not digests] == [5]


# -- replacing them ---------------------------------------------------------------------------------------------------
def items(
    deadly: set[int], partners: int, on_bad: str = "skip", rows: int = 12, touched: list[int] | None = None
) -> Any:
    """Training items over numbers instead of files: row i decodes to i."""
    from avssl.batch import item
    from avssl.data.clip import Clip, Limits, Request, Row
    from avssl.data.items import TrainingItems
    from avssl.frontend import Frontend

    class Numbers(Frontend):
        modalities = frozenset({"text"})

        def plan(self, row: Row, rng: Any) -> Request:
            rng.integers(10)  # a crop
            if int(row.id) in deadly:
                raise DataError(f"{row.id}: bad", fix="")
            if touched is not None:
                touched.append(int(row.id))
            return Request({"text": None}, partners=partners)

        def item(self, clips: Sequence[Clip], rng: Any) -> Any:
            import torch

            return item(
                clips[0].id,
                clips[0].seed,
                None,
                text=torch.tensor([float(c.id) for c in clips] + [float(rng.random())]),
            )

    all_rows = [Row(id=str(i), parts={"text": str(i)}) for i in range(rows)]
    return TrainingItems(all_rows, Numbers(None), None, frozenset({"text"}), 0, Limits(), on_bad)


def made(work: Any, keys: Sequence[int], blamed: Sequence[Blame] = ()) -> Any:
    from avssl.data.sampler import Key

    return work([Key(k, 0) for k in keys], blamed, lambda index: None)


@pytest.mark.parametrize("partners", [0, 1, 2])
def test_when_a_bad_row_is_found_out_changes_nothing(partners: int) -> None:
    """As an item, a partner or a reserve; by trying it, or because a worker died of it, or in an earlier epoch."""
    deadly = {3, 5, 8}
    tried = made(items(deadly, partners), range(12)).batch
    known = made(items(set(), partners), range(12), [Blame(i, "crashed", "x") for i in deadly]).batch
    alone = [made(items(deadly, partners), [i]).batch for i in range(12)]
    assert tried.ids == known.ids and tried.streams["text"].x.tolist() == known.streams["text"].x.tolist()
    assert [b.streams["text"].x.tolist()[0] for b in alone] == tried.streams["text"].x.tolist()
    assert not set(tried.streams["text"].x[:, : partners + 1].flatten().tolist()) & deadly
    clean = made(items(set(), partners), range(12)).batch
    same = [i for i, row in enumerate(clean.streams["text"].x[:, : partners + 1].tolist()) if not set(row) & deadly]
    assert tried.streams["text"].x[same].tolist() == clean.streams["text"].x[same].tolist()  # others are untouched


def test_a_blamed_partner_is_named_not_its_item() -> None:
    result = made(items({3}, partners=3), range(12))
    assert {(b.id, b.what) for b in result.bad} == {("3", "bad")}


def test_when_everything_is_bad_the_run_ends() -> None:
    with says(
        DataError,
        "0: it and 19 replacements are unreadable (see bad_files.csv; `avssl data scan` lists what can be read)",
    ):
        made(items(set(range(12)), 0), [0])
    with says(DataError, "3: bad (mend or remove the file; data.on_bad=skip goes on without it)"):
        made(items({3}, 0, on_bad="fail"), [3])
