"""An embedding job is killed, shared, repeated, damaged: no row is lost or doubled and the bytes are the same."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from messages import says
from runs import Running, wait_until

from avssl.embedding.encode import EmbedOptions, Encoder, embed_rows
from avssl.embedding.files import read_index, read_meta
from avssl.embedding.job import Job, embed
from avssl.embedding.lease import claim, is_dead
from avssl.errors import DataError, UsageError
from avssl.model import open_model


def _embed(model: Path, manifest: Path, out: Path, pause: float) -> None:
    """In 15 blocks, with a pause after each."""
    from avssl.embedding import job

    compute = job._compute

    def slow(*args):
        compute(*args)
        time.sleep(pause)

    job._compute = slow
    done = job.embed(open_model(model), toy.rows(manifest), out, block=2, batch_size=4)
    print(done.rows, done.computed, flush=True)


@pytest.fixture
def start(toy_plugin, toy_path, toy_manifest, tmp_path):
    """Starts a process that embeds the toy clips."""

    def start(out: Path, pause: float = 0.0) -> Running:
        logs = tmp_path / "logs" / str(time.monotonic_ns())
        return Running(logs, _embed, toy_path, toy_manifest, out, pause, folder=toy_plugin)

    return start


@pytest.fixture(scope="module")
def undisturbed(toy_model, toy_manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "x.parquet"
    embed(toy_model, toy.rows(toy_manifest), out, block=2, batch_size=4)
    return out.read_bytes()


def finished(running: Running) -> tuple[int, int]:
    ended = running.end()
    assert ended.code == 0, ended.stderr
    return tuple(map(int, ended.stdout.split()))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_instant_the_same_command_goes_on(start, undisturbed, tmp_path):
    out, rng, kills = tmp_path / "x.parquet", random.Random(0), 0
    parts = tmp_path / ".x.parquet.parts"
    before = 0
    for _ in range(6):
        running = start(out, pause=0.5)
        until = before + 1 + rng.randrange(2)
        wait_until(lambda until=until: len(list(parts.glob("[0-9]*.parquet"))) >= until)
        time.sleep(rng.random() * 0.5)
        running.kill()
        kills += running.end().code == -signal.SIGKILL
        before = len(list(parts.glob("[0-9]*.parquet")))
    assert kills >= 5 and 0 < before < 15 and not out.exists()
    rows, computed = finished(start(out))
    assert (rows, computed) == (30, 15 - before)  # nothing that was finished is computed again
    assert out.read_bytes() == undisturbed
    assert not parts.exists()


def test_a_signal_ends_the_job_between_batches_and_keeps_what_is_done(start, undisturbed, tmp_path):
    running = start(tmp_path / "x.parquet", pause=0.5)
    wait_until(lambda: len(list((tmp_path / ".x.parquet.parts").glob("[0-9]*.parquet"))) >= 2)
    running.kill(signal.SIGTERM)
    text = (
        f"avssl.errors.Stopped: SIGTERM arrived while embedding to {tmp_path / 'x.parquet'} (the same command goes on)"
    )
    assert running.end().last == text
    assert not list(tmp_path.glob(".x.parquet.parts/*.lease")) and not (tmp_path / "x.parquet").exists()
    assert 2 <= len(list(tmp_path.glob(".x.parquet.parts/[0-9]*.parquet"))) < 15
    assert finished(start(tmp_path / "x.parquet"))[0] == 30
    assert (tmp_path / "x.parquet").read_bytes() == undisturbed


def test_several_processes_share_one_job_and_one_of_them_may_die(start, undisturbed, tmp_path):
    out = tmp_path / "x.parquet"
    first, second, third = (start(out, pause=0.3) for _ in range(3))
    wait_until(lambda: len(list((tmp_path / ".x.parquet.parts").glob("[0-9]*.parquet"))) >= 4)
    third.kill()
    third.end()
    shares = [finished(first), finished(second)]
    assert all(rows == 30 for rows, _ in shares)
    assert 11 <= sum(computed for _, computed in shares) <= 15 and min(computed for _, computed in shares) > 0
    assert out.read_bytes() == undisturbed


def test_repeating_a_finished_job_computes_nothing(toy_model, toy_manifest, tmp_path):
    rows = toy.rows(toy_manifest)
    first = embed(toy_model, rows, tmp_path / "x.npz", block=8)
    stamp = (tmp_path / "x.npz").stat().st_mtime_ns
    again = embed(toy_model, rows, tmp_path / "x.npz", block=8)
    assert (first.computed, again.computed, again.rows) == (4, 0, 30)
    assert (tmp_path / "x.npz").stat().st_mtime_ns == stamp


def test_an_output_of_other_options_or_files_is_not_overwritten_unasked(toy_model, toy_manifest, tmp_path):
    rows, out = toy.rows(toy_manifest)[:4], tmp_path / "x.parquet"
    embed(toy_model, rows, out)
    refusal = f"{out} exists and holds something else (choose another name, or --overwrite)"
    with says(UsageError, refusal):
        embed(toy_model, rows, out, EmbedOptions(normalize=True))
    assert embed(toy_model, rows, out, EmbedOptions(normalize=True), overwrite=True).computed == 1
    assert read_meta(out)["options"]["normalize"]
    out.write_bytes(b"something of the user's")
    with says(UsageError, refusal):
        embed(toy_model, rows, out)


def test_a_changed_file_is_embedded_again(toy_model, toy_path, tmp_path):
    manifest = toy.write_media(tmp_path / "media", items=3)
    embed(toy_model, toy.rows(manifest), tmp_path / "x.parquet")
    before = read_index(tmp_path / "x.parquet")
    toy.write_media(tmp_path / "media", items=3, seed=1)
    embed(toy_model, toy.rows(manifest), tmp_path / "x.parquet", overwrite=True)
    assert not np.array_equal(read_index(tmp_path / "x.parquet").values["audio"], before.values["audio"])


# -- formats -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["parquet", "npz", "safetensors"])
@pytest.mark.parametrize("sequence", [False, True], ids=["vectors", "sequences"])
def test_every_format_gives_back_what_was_computed(toy_model, toy_manifest, tmp_path, suffix, sequence):
    rows, options = toy.rows(toy_manifest)[:7], EmbedOptions(sequence=sequence, streams=("audio", "vision"))
    rows[2] = replace(rows[2], parts={"audio": rows[2].parts["audio"]})
    want = embed_rows(toy_model, rows, options, batch_size=4)
    out = tmp_path / f"x.{suffix}"
    embed(toy_model, rows, out, options, batch_size=4)
    index = read_index(out)
    assert index.ids == want.ids and index.labels == [list(r.labels) for r in rows]
    assert index.media[0]["audio"] == rows[0].parts["audio"]
    assert index.meta["digest"] == toy_model.digest and index.meta["model"] == str(toy_model.path)
    for stream in ("audio", "vision"):
        assert index.present[stream].tolist() == want.present[stream].tolist()
        for got, wanted in zip(index.values[stream], want.values[stream], strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_parquet_opens_in_pandas_style_readers(toy_model, toy_manifest, tmp_path):
    import pyarrow.parquet as pq

    embed(toy_model, toy.rows(toy_manifest)[:3], tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert table.column_names == ["id", "media", "labels", "audio", "vision", "joint"]
    assert len(table["audio"][0].as_py()) == 16


def test_every_byte_of_the_output_repeats(toy_model, toy_manifest, tmp_path):
    for suffix in ("parquet", "npz", "safetensors"):
        once, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
        for out in (once, again):
            embed(toy_model, toy.rows(toy_manifest)[:5], out)
        assert once.read_bytes() == again.read_bytes()


# -- bad input ---------------------------------------------------------------------------------------------------------
def test_failures_are_listed_beside_the_output(toy_model, toy_manifest, tmp_path):
    rows = toy.rows(toy_manifest)[:4]
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    rows[1] = replace(rows[1], parts={"audio": str(tmp_path / "bad.wav")})
    done = embed(toy_model, rows, tmp_path / "x.parquet")
    assert (done.rows, done.failed) == (3, 1) and read_index(done.out).ids == ["0000", "0002", "0003"]
    with (tmp_path / "bad_files.csv").open(newline="") as file:
        (line,) = list(csv.DictReader(file))
    assert (line["id"], line["path"], line["what"]) == ("0001", str(tmp_path / "bad.wav"), "bad") and line["reason"]
    with pytest.raises(DataError, match=r"1 of 4 items are bad, more than --max-bad allows"):
        embed(toy_model, rows, tmp_path / "y.parquet", max_bad=0.1)
    why = "cannot be read as media: Invalid data found when processing input"
    with says(DataError, f"{tmp_path / 'bad.wav'}: {why} (on_bad=skip goes on without it)"):
        embed(toy_model, rows, tmp_path / "z.parquet", on_bad="fail")
    with pytest.raises(DataError, match="no item could be embedded"):
        embed(toy_model, rows[1:2], tmp_path / "w.parquet")
    assert not any((tmp_path / f"{n}.parquet").exists() for n in "yzw")


@pytest.mark.parametrize("suffix", ["parquet", "npz", "safetensors"])
def test_a_finished_output_is_held_to_the_rules_of_the_call(toy_model, toy_manifest, tmp_path, suffix):
    """Of the second call, not only of the one that computed it; items that merely lack a modality are no damage."""
    rows = toy.rows(toy_manifest)[:5]
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    rows[1] = replace(rows[1], parts={"audio": str(tmp_path / "bad.wav")})
    rows[3] = replace(rows[3], parts={"text": "words alone"})
    out = tmp_path / f"x.{suffix}"
    first = embed(toy_model, rows, out)
    assert (first.rows, first.failed) == (3, 2) == (read_meta(out)["rows"], read_meta(out)["failed"])
    why = f"{tmp_path / 'bad.wav'}: cannot be read as media: Invalid data found when processing input"
    many = f"1 of 5 items are bad, more than --max-bad allows; the first: {why} (see {tmp_path / 'bad_files.csv'})"
    with says(DataError, many):
        embed(toy_model, rows, out, max_bad=0.0)
    with says(DataError, f"{why} (on_bad=skip goes on without it)"):
        embed(toy_model, rows, out, on_bad="fail")
    assert embed(toy_model, rows, out, max_bad=0.2) == replace(first, computed=0)


def test_a_file_of_a_release_that_did_not_count_the_bad_ones_is_held_to_the_rules_too(tmp_path):
    from types import SimpleNamespace

    from avssl.embedding.job import _tolerated

    old, job, out = {"rows": 3, "failed": 1}, SimpleNamespace(items=4), tmp_path / "x.npz"
    _tolerated(job, old, "skip", 0.5, out)
    with says(DataError, f"see {tmp_path / 'bad_files.csv'} (on_bad=skip goes on without it)"):
        _tolerated(job, old, "fail", 0.5, out)


def test_blocks_of_an_earlier_call_are_held_to_the_rules_of_this_one(toy_model, toy_manifest, tmp_path):
    rows = toy.rows(toy_manifest)[:4]
    (tmp_path / "bad.wav").write_bytes(b"no sound at all")
    rows[1] = replace(rows[1], parts={"audio": str(tmp_path / "bad.wav")})
    with pytest.raises(DataError, match="more than --max-bad allows"):
        embed(toy_model, rows, tmp_path / "x.npz", max_bad=0.0)
    with pytest.raises(DataError, match=r"bad\.wav: cannot be read"):
        embed(toy_model, rows, tmp_path / "x.npz", on_bad="fail")
    assert embed(toy_model, rows, tmp_path / "x.npz").computed == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "{}/x.csv: what format is .csv? (end the name with one of .parquet, .npz, .safetensors)"),
        ("x", "{}/x: what format is a name without an ending? (end the name with one of .parquet, .npz, .safetensors)"),
        ("missing/x.npz", "{}/missing: no such folder (make it first, or choose another --out)"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(toy_model, toy_manifest, tmp_path, name, text):
    with says(UsageError, text.format(tmp_path)):
        embed(toy_model, toy.rows(toy_manifest), tmp_path / name)


def test_a_job_of_nothing_or_of_views(toy_model, toy_manifest, tmp_path):
    with says(DataError, "nothing to embed (the folder or manifest has no usable files)"):
        embed(toy_model, [], tmp_path / "x.npz")
    fix = "--views all (their mean) or one; --sequence for tokens"
    with says(UsageError, f"a file holds one vector per clip, not one for each view ({fix})"):
        embed(toy_model, toy.rows(toy_manifest), tmp_path / "x.npz", EmbedOptions(views="each"))


def test_ids_must_be_unique(toy_model, toy_manifest, tmp_path):
    row = toy.rows(toy_manifest)[0]
    with says(DataError, "two items are called '0000' (give unique ids in the manifest)"):
        embed(toy_model, [row, row], tmp_path / "x.npz")


@pytest.mark.parametrize("suffix", ["parquet", "npz", "safetensors"])
def test_a_damaged_or_foreign_file_is_one_clear_error(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with says(DataError, f"{path}: no such embedding file (make one: avssl embed --model MODEL PATH --out FILE)"):
        read_index(path)
    path.write_bytes(b"PK\x03\x04 not one of ours")
    why = {
        "parquet": "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.",
        "npz": "File is not a zip file",
        "safetensors": "Error while deserializing header: header too large",
    }[suffix]
    with says(DataError, f"{path} is no embedding file of avssl, or damaged: {why} (make it again with `avssl embed`)"):
        read_index(path)


# -- leases ------------------------------------------------------------------------------------------------------------
def test_a_claim_excludes_others_until_it_is_released(tmp_path):
    with claim(tmp_path / "a.lease") as lease:
        assert lease is not None and claim(tmp_path / "a.lease") is None
    again = claim(tmp_path / "a.lease")
    assert again is not None
    again.release()


def test_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path):
    code = (
        f"from avssl.embedding.lease import claim; from pathlib import Path; import os\n"
        f"claim(Path({str(tmp_path / 'a.lease')!r})); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ}, cwd=toy.TESTS.parent, check=False)
    assert is_dead(tmp_path / "a.lease")
    lease = claim(tmp_path / "a.lease")
    assert lease is not None
    lease.release()


def test_the_claim_of_another_machine_is_void_when_its_heartbeat_stops(tmp_path):
    path = tmp_path / "a.lease"
    path.write_text('{"host": "elsewhere", "pid": 1}')
    assert claim(path, stale=30) is None
    os.utime(path, (time.time() - 31,) * 2)
    lease = claim(path, stale=30)
    assert lease is not None
    lease.release()


def test_a_heartbeat_keeps_a_claim_alive(tmp_path):
    lease = claim(tmp_path / "a.lease", stale=0.4)
    assert lease is not None
    old = time.time() - 100
    os.utime(lease.path, (old, old))
    for _ in range(200):
        if lease.path.stat().st_mtime > old + 50:
            break
        time.sleep(0.05)
    assert lease.path.stat().st_mtime > old + 50
    lease.release()


def test_an_output_of_one_precision_is_never_continued_in_another(toy_model, toy_manifest, tmp_path):
    rows, out = toy.rows(toy_manifest)[:8], tmp_path / "x.npz"
    full, half = EmbedOptions(), EmbedOptions(precision="bf16")
    assert not set(Job(Encoder(toy_model, full), rows, 4).names) & set(Job(Encoder(toy_model, half), rows, 4).names)
    embed(toy_model, rows, out, half, block=4)
    assert read_index(out).meta["options"]["precision"] == "bf16"
    with pytest.raises(UsageError, match="holds something else"):
        embed(toy_model, rows, out, full, block=4)
