"""Hostile files and names: each gets a row with a plain reason, what can be saved is saved, nothing is modified."""

import hashlib
import os
import re
import shutil
import struct
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from footage import pan, write
from reelign.data.clip import read_clip, write_clip
from reelign.data.curate import CurateConfig, curate
from reelign.data.manifest import read_dropped, read_manifest
from reelign.data.select import SelectConfig

CONFIG = CurateConfig(workers=1, select=SelectConfig(drop_blurriest=0))
MARKUP = "<img src=x onerror=alert(1)> & 'quotes' \".mp4"
NAMES = (".hidden.mp4", "frame_%03d.mp4", "[brackets] {x}.mp4", "line\nbreak.mp4", MARKUP, f"{'é' * 120}.mp4")
NOT_UTF8 = "not utf-8 \udcff.mp4"
"""How Python spells a name that holds the byte FF."""
ESCAPED = r"not utf-8 \udcff.mp4"


def sound(path: Path, cover: bool) -> Path:
    """A tenth of a second of silence, with or without a cover picture."""
    with av.open(str(path), "w") as container:
        voice = container.add_stream("aac", rate=48000)
        picture = container.add_stream("mjpeg") if cover else None
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        if picture is not None:
            picture.width = picture.height = 64
            picture.pix_fmt, picture.disposition = "yuvj420p", Disposition.attached_pic
            picture.codec_context.color_range = 2
        container.mux(voice.encode(frame))
        if picture is not None:
            still = np.ascontiguousarray(pan(90, 1)[0][:64, :64])
            container.mux(picture.encode(av.VideoFrame.from_ndarray(still, format="rgb24")))
            container.mux(picture.encode())
        container.mux(voice.encode())
    return path


def make_hostile(folder: Path) -> None:
    for seed, name in enumerate(NAMES):
        write(folder / name, pan(20 + seed, 30, 1))
    write(folder / "later.mp4", pan(30, 30, 1)).rename(folder / NOT_UTF8)
    shutil.copy(write(folder / "a.webm", pan(31, 30, 1)), folder / "webm named.mp4")
    (folder / "a.webm").unlink()
    noise = np.random.default_rng(1)
    (folder / "random.mp4").write_bytes(noise.bytes(20_000))
    (folder / "no type \udcff").write_bytes(noise.bytes(2_000))
    cv2.imwrite(str(folder / "picture.jpg"), pan(32, 1)[0])
    (folder / "picture.jpg").rename(folder / "picture.mp4")
    sound(folder / "sound.mp4", cover=False)
    sound(folder / "cover.mp4", cover=True)
    write(folder / "one frame.mp4", pan(33, 1))
    write(folder / "tiny.mp4", np.repeat(pan(34, 1)[:, :2, :2], 30, axis=0))
    write_clip(folder / "half.mp4", pan(35, 96, 1), 24)
    data = (folder / "half.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(data[: len(data) * 7 // 10])
    whole = bytearray(write(folder / "lying header.mp4", pan(36, 30, 1)).read_bytes())
    at = whole.index(b"mvhd") + 20
    whole[at : at + 4] = struct.pack(">I", 3_600_000)
    (folder / "lying header.mp4").write_bytes(whole)
    parts = (write(folder / f"{n}.ts", pan(37 + n, 48, 1)[:, : 96 - 32 * n]) for n in range(2))
    (folder / "two sizes.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    (folder / "0.ts").unlink()
    (folder / "1.ts").unlink()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "circle.mp4").symlink_to(folder / "circle.mp4")
    (folder / "elsewhere").symlink_to(folder / "folder.mp4")
    (folder / "table.csv").write_bytes(noise.bytes(500))
    (folder / "table.parquet").write_bytes(b"PAR1" + noise.bytes(500) + b"PAR1")
    (folder / "half a character.json").write_text('[{"video": ".hidden.mp4", "prompt": "a \\ud83d hat"}]')


def digests(folder: Path) -> dict[str, str]:
    """By shown name; what is no regular file counts as itself."""
    return {
        path.relative_to(folder).as_posix().encode("utf-8", "backslashreplace").decode(): hashlib.sha256(
            path.read_bytes() if path.is_file() else b""
        ).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    (root / "footage").mkdir()
    make_hostile(root / "footage")
    before = digests(root / "footage")
    curate(root / "footage", root / "dataset", CONFIG)
    assert digests(root / "footage") == before
    return root


def test_every_hostile_file_is_accounted_for_in_plain_words(hostile):
    kept, dropped = read_manifest(hostile / "dataset"), read_dropped(hostile / "dataset")
    assert {row["source"] for row in kept} | {row["source"] for row in dropped} == set(digests(hostile / "footage"))
    for row in dropped:
        assert row["reason"]
        assert not re.search(r"Traceback|Errno|Error\(|0x[0-9a-f]{6}|crashed|" + re.escape(str(hostile)), row["reason"])


def test_good_footage_with_a_hostile_name_is_kept_whole(hostile):
    rows = {row["source"]: row for row in read_manifest(hostile / "dataset")}
    for name in (*NAMES, ESCAPED, "webm named.mp4", "lying header.mp4"):
        assert rows[name]["frames"] == 30
        assert re.fullmatch(r"clips/[a-z0-9-]+\.mp4", rows[name]["path"])
        assert len(read_clip(hostile / "dataset" / rows[name]["path"]).frames) == 30
    assert len({row["path"] for row in rows.values()}) == len(rows)


@pytest.mark.parametrize(
    ("source", "rule", "words"),
    [
        ("random.mp4", "unreadable", "invalid data"),
        (r"no type \udcff", "unreadable", "invalid data"),
        ("sound.mp4", "unreadable", "no video stream"),
        ("cover.mp4", "unreadable", "no video stream"),
        ("picture.mp4", "too short", "too short"),
        ("one frame.mp4", "too short", "too short"),
        ("tiny.mp4", "too small", "too small"),
        ("pipe.mp4", "not a file", "pipe"),
        ("dangling.mp4", "not a file", "not there"),
        ("circle.mp4", "not a file", "not there"),
        ("elsewhere", "not a file", "link to a folder"),
        ("table.parquet", "not a video", "damaged Parquet"),
        ("table.csv", "not a video", "not UTF-8|not read as captions"),
        ("half a character.json", "not a video", "captions of 1 files"),
    ],
)
def test_the_reason_fits_the_file(hostile, source, rule, words):
    (row,) = [row for row in read_dropped(hostile / "dataset") if row["source"] == source]
    assert row["rule"] == rule
    assert re.search(words, row["reason"])


def test_the_good_part_of_a_damaged_file_is_kept_and_the_loss_is_said(hostile):
    (lost,) = [row for row in read_dropped(hostile / "dataset") if row["source"] == "half.mp4"]
    (kept,) = [row for row in read_manifest(hostile / "dataset") if row["source"] == "half.mp4"]
    assert (lost["rule"], lost["threshold"]) == ("damaged", "96")
    assert int(lost["value"]) == kept["frames"]
    assert 24 < kept["frames"] < 96


def test_a_change_of_the_picture_size_does_not_stop_a_file(hostile):
    clips = [row for row in read_manifest(hostile / "dataset") if row["source"] == "two sizes.ts"]
    assert len(clips) == 2
    for row in clips:
        assert read_clip(hostile / "dataset" / row["path"]).frames.shape[1:3] == (row["height"], row["width"])


def test_half_a_character_in_a_caption_is_escaped(hostile):
    (row,) = [row for row in read_manifest(hostile / "dataset") if row["source"] == ".hidden.mp4"]
    assert row["caption"] == r"a \ud83d hat"


def test_a_name_is_text_on_the_audit_page_and_never_markup(hostile):
    page = (hostile / "dataset" / "audit.html").read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "line\nbreak" in page


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_accounted_for(tmp_path):
    write(tmp_path / "footage" / "locked.mp4", pan(1, 30)).chmod(0)
    for name in ("locked.txt", "table.csv", "videos.txt"):
        (tmp_path / "footage" / name).write_text("words")
        (tmp_path / "footage" / name).chmod(0)
    (tmp_path / "footage" / "prompts.txt").write_text("words")
    curate(tmp_path / "footage", tmp_path / "dataset", CurateConfig(workers=1))
    reasons = {row["source"]: row["reason"].lower() for row in read_dropped(tmp_path / "dataset")}
    assert reasons.keys() == {"locked.mp4", "locked.txt", "table.csv", "videos.txt", "prompts.txt"}
    assert all("permission denied" in reason for name, reason in reasons.items() if name != "prompts.txt")
