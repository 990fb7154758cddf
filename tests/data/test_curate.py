"""Curation of real files: everything is accounted for, nothing is touched, twice is the same."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from command import command, environment
from footage import SIDE, make_footage, pan, write
from reelign.data.clip import read_clip
from reelign.data.curate import CurateConfig, curate
from reelign.data.manifest import read_dropped, read_manifest
from reelign.data.select import SelectConfig
from reelign.errors import ReelignError

SHARED = Path(__file__).parents[3] / "shared" / "data"
CONFIG = CurateConfig(workers=1)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    root = tmp_path_factory.mktemp("curate")
    folder = make_footage(root / "footage")
    before = digests(folder)
    result = curate(folder, root / "dataset", CONFIG)
    assert digests(folder) == before
    return root, result


def test_every_input_is_kept_or_has_a_reason(curated):
    root, result = curated
    kept, dropped = read_manifest(result.dataset), read_dropped(result.dataset)
    assert (len(kept), len(dropped)) == (result.kept, result.dropped)
    seen = {row["source"] for row in kept} | {row["source"] for row in dropped}
    assert seen == set(digests(root / "footage"))
    for row in dropped:
        assert row["reason"]
        assert "Traceback" not in row["reason"]
        assert str(root) not in row["reason"]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("copy.mp4", "near-duplicate"),
        ("black.mp4", "no picture"),
        ("empty.mp4", "unreadable"),
        ("words.mp4", "unreadable"),
        ("page.mp4", "unreadable"),
        ("pointer.mp4", "unreadable"),
        ("cut off.mp4", "unreadable"),
        ("README.md", "not a video"),
        ("metadata.csv", "not a video"),
    ],
)
def test_what_is_left_out_is_left_out_for_the_right_reason(curated, source, rule):
    _, result = curated
    rows = [row for row in read_dropped(result.dataset) if row["source"] == source]
    assert [row["rule"] for row in rows] == [rule]


def test_still_and_short_shots_say_value_and_threshold(curated):
    _, result = curated
    for source in ("still.mp4", "short.mp4"):
        (row,) = [row for row in read_dropped(result.dataset) if row["source"] == source]
        assert row["value"]
        assert row["threshold"]


def test_good_footage_is_kept_whole(curated):
    _, result = curated
    rows = {row["source"]: row for row in read_manifest(result.dataset)}
    assert {"good one.mp4", "cut.mp4", "sub/🎬 e\u0301te\u0301.mp4", "-dash.webm"} <= set(rows)
    for row in rows.values():
        clip = read_clip(result.dataset / row["path"])
        assert clip.frames.shape == (row["frames"], row["height"], row["width"], 3)
        assert hashlib.sha256((result.dataset / row["path"]).read_bytes()).hexdigest() == row["sha256"]
    assert rows["good one.mp4"]["caption"] == "A slow pan over a bright texture."
    assert rows["-dash.webm"]["caption"] == "A pan that starts with a dash."
    assert rows["cut.mp4"]["caption_source"] == "none"


def test_a_file_with_a_cut_gives_two_trimmed_shots(curated):
    _, result = curated
    shots = sorted(
        (row["source_start"], row["source_end"]) for row in read_manifest(result.dataset) if row["source"] == "cut.mp4"
    )
    assert shots == [(0.0, pytest.approx(1.7, abs=0.05)), (pytest.approx(2.3, abs=0.05), pytest.approx(4.0, abs=0.05))]


def test_the_variable_frame_rate_is_seen(curated):
    _, result = curated
    rows = {row["source"]: row["variable_frame_rate"] for row in read_manifest(result.dataset)}
    assert rows["good one.mp4"] is False
    assert rows["vfr.mp4"] is True


def test_twice_gives_the_same_also_with_more_processes(curated, tmp_path):
    root, result = curated
    again = curate(root / "footage", tmp_path / "again", CurateConfig(workers=2)).dataset
    for name in ("manifest.parquet", "dropped.parquet"):
        assert pq.read_table(again / name).equals(pq.read_table(result.dataset / name))


def test_the_audit_shows_every_clip_and_every_reason(curated):
    _, result = curated
    page = (result.dataset / "audit.html").read_text()
    assert all(row["id"] in page or row["source"] in page for row in read_manifest(result.dataset))
    assert "near-duplicate" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_killed_curation_goes_on_to_the_same_result(curated, tmp_path):
    root, result = curated
    out = tmp_path / "dataset"
    arguments = command("curate", root / "footage", "--out", out, "--set", "workers=1")
    process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 60
    while not list((out / ".cache").glob("*.json")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.parquet").exists()
    curate(root / "footage", out, CONFIG)
    assert pq.read_table(out / "manifest.parquet").equals(pq.read_table(result.dataset / "manifest.parquet"))


def test_a_deleted_clip_is_made_again(curated, tmp_path):
    root, result = curated
    out = tmp_path / "dataset"
    shutil.copytree(result.dataset, out)
    row = read_manifest(out)[0]
    (out / row["path"]).unlink()
    curate(root / "footage", out, CONFIG)
    assert hashlib.sha256((out / row["path"]).read_bytes()).hexdigest() == row["sha256"]


def test_a_lost_manifest_is_made_again_from_the_cache(curated, tmp_path):
    root, result = curated
    out = Path(shutil.copytree(result.dataset, tmp_path / "dataset"))
    clips = {path.name: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    for name in ("manifest.parquet", "dropped.parquet", "audit.html"):
        (out / name).unlink()
    curate(root / "footage", out, CONFIG)
    for name in ("manifest.parquet", "dropped.parquet", "audit.html"):
        assert (out / name).read_bytes() == (result.dataset / name).read_bytes()
    assert {path.name: path.stat().st_mtime_ns for path in (out / "clips").iterdir()} == clips


def test_a_damaged_cache_is_made_again(curated, tmp_path):
    root, result = curated
    out = Path(shutil.copytree(result.dataset, tmp_path / "dataset"))
    for number, path in enumerate(sorted((out / ".cache").iterdir())):
        path.write_bytes((b"", b"{", b"\xff\x00")[number % 3])
    curate(root / "footage", out, CONFIG)
    for name in ("manifest.parquet", "dropped.parquet"):
        assert (out / name).read_bytes() == (result.dataset / name).read_bytes()


def test_footage_replaced_under_its_name_gives_the_new_clip(tmp_path):
    footage, out = tmp_path / "footage", tmp_path / "dataset"
    write(footage / "a.mp4", pan(1, 30))
    (old,) = read_manifest(curate(footage, out, CONFIG).dataset)
    write(footage / "a.mp4", pan(2, 30))
    os.utime(footage / "a.mp4", (1, 1))
    (new,) = read_manifest(curate(footage, out, CONFIG).dataset)
    assert (new["path"], new["frames"]) == (old["path"], old["frames"])
    frames = read_clip(out / new["path"]).frames.astype(int)
    # What two lossy encodings cost, against what two unlike textures differ by.
    assert np.abs(frames - pan(2, 30)).mean() < 10 < np.abs(frames - pan(1, 30)).mean()


def test_another_size_is_written_anew_and_the_clips_that_no_row_names_are_removed(tmp_path):
    write(tmp_path / "footage" / "a.mp4", pan(1, 30))
    write(tmp_path / "footage" / "b.mp4", pan(2, 30))
    out = curate(tmp_path / "footage", tmp_path / "dataset", CONFIG).dataset
    (tmp_path / "footage" / "b.mp4").unlink()
    small = CurateConfig(workers=1, longest_side=48)
    (row,) = read_manifest(curate(tmp_path / "footage", out, small).dataset)
    assert (row["source"], row["height"], row["width"]) == ("a.mp4", 48, 48)
    assert read_clip(out / row["path"]).frames.shape == (30, 48, 48, 3)
    assert [path.name for path in (out / "clips").iterdir()] == [Path(row["path"]).name]


def test_what_lies_between_shots_or_beyond_the_longest_clip_is_accounted_for(tmp_path):
    black = np.zeros((24, SIDE, SIDE, 3), np.uint8)
    write(tmp_path / "footage" / "faded.mp4", np.concatenate([pan(2, 48, 1), black, pan(3, 48, 1)]))
    write(tmp_path / "footage" / "long.mp4", pan(4, 72, 1))
    out = curate(tmp_path / "footage", tmp_path / "dataset", CONFIG).dataset
    (gap,) = read_dropped(out)
    assert (gap["source"], gap["rule"]) == ("faded.mp4", "between shots")
    assert (gap["start"], gap["end"]) == (pytest.approx(2.0, abs=0.1), pytest.approx(3.0, abs=0.1))
    select = SelectConfig(max_seconds=2.0)
    out = curate(tmp_path / "footage", out, CurateConfig(workers=1, select=select)).dataset
    (rest,) = [row for row in read_dropped(out) if row["rule"] == "too long"]
    assert (rest["source"], rest["start"], rest["end"], rest["threshold"]) == ("long.mp4", 2.0, 3.0, "2 s")


def test_the_dataset_never_lies_in_the_footage(tmp_path):
    (tmp_path / "footage").mkdir()
    with pytest.raises(ReelignError, match="inside the footage"):
        curate(tmp_path / "footage", tmp_path / "footage" / "out", CONFIG)
    with pytest.raises(ReelignError, match="no folder"):
        curate(tmp_path / "nowhere", tmp_path / "out", CONFIG)


def test_an_empty_folder_gives_an_empty_dataset_that_says_so(tmp_path):
    (tmp_path / "footage").mkdir()
    result = curate(tmp_path / "footage", tmp_path / "dataset", CONFIG)
    assert (result.kept, result.dropped) == (0, 0)
    with pytest.raises(ReelignError, match="empty"):
        read_manifest(result.dataset)


def test_curation_imports_no_torch():
    code = "import sys, reelign.data.curate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not SHARED.is_dir(), reason="the hostile files are not on this machine")
def test_hostile_files_each_get_a_plain_reason(tmp_path):
    folder = tmp_path / "footage"
    long = shutil.ignore_patterns("two_hours_*")  # is no riddle, and takes as long as all others together
    shutil.copytree(SHARED / "broken", folder / "broken", ignore=long)
    with zipfile.ZipFile(SHARED / "hostile_names.zip") as archive:
        archive.extractall(folder / "names")
    before = digests(folder)
    result = curate(folder, tmp_path / "dataset", CurateConfig(workers=2))
    assert digests(folder) == before
    dropped = read_dropped(result.dataset)
    kept = pq.read_table(result.dataset / "manifest.parquet").to_pylist()
    assert {row["source"] for row in dropped} | {row["source"] for row in kept} == set(before)
    assert all(row["reason"] and "Traceback" not in row["reason"] for row in dropped)
