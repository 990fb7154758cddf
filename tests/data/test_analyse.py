"""What a file really holds, against footage whose truth is known because it was made here."""

import struct
from pathlib import Path

import numpy as np
import pytest

from footage import pan, write
from reelign.data.analyse import analyse, extract
from reelign.data.clip import read_clip
from reelign.data.probe import decode

QUARTER = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
HALF = (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30)


def rotated(path: Path, matrix: tuple[int, ...]) -> Path:
    """Put a display matrix into the track header, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("matrix", "turns"), [(QUARTER, -1), (HALF, 2)])
def test_frames_come_upright(tmp_path, matrix, turns):
    frames = pan(1, 6)[:, :64]
    path = rotated(write(tmp_path / "a.mp4", frames), matrix)
    upright = np.rot90(frames, turns, axes=(1, 2))
    for picture, expected in zip(decode(path), upright, strict=True):
        assert picture.image.shape == expected.shape
        # CRF 18 costs about 5 of 255 levels here; a wrong turn costs over 30.
        assert np.abs(picture.image.astype(int) - expected).mean() < 10
    probe = analyse(str(path))["probe"]
    assert (probe["height"], probe["width"]) == upright.shape[1:3]
    assert abs(probe["rotation"]) == 90 * abs(turns)


def test_counts_rate_and_length_are_those_of_the_decoded_frames(tmp_path):
    probe = analyse(str(write(tmp_path / "a.mp4", pan(1, 30), rate=25)))["probe"]
    assert (probe["frames"], probe["declared_frames"], probe["fps"]) == (30, 30, 25.0)
    assert probe["seconds"] == pytest.approx(30 / 25, abs=1e-3)
    assert (probe["variable_frame_rate"], probe["duplicate_frames"], probe["problem"]) == (False, 0.0, None)


def test_repeated_frames_are_counted(tmp_path):
    frames = np.repeat(pan(1, 5), 8, axis=0)
    probe = analyse(str(write(tmp_path / "a.mp4", frames, crf=0)))["probe"]
    assert probe["duplicate_frames"] == pytest.approx(35 / 39, abs=0.1)


def test_the_rate_of_uneven_footage_is_that_of_its_median_step(tmp_path):
    times = [100 * index + (60 if index % 4 == 3 else 0) for index in range(32)]
    probe = analyse(str(write(tmp_path / "a.mp4", pan(1, 32), times=times)))["probe"]
    assert probe["variable_frame_rate"] is True
    assert probe["fps"] == pytest.approx(10, rel=0.02)


def test_recordings_joined_in_one_stream_follow_each_other_in_time(tmp_path):
    parts = [write(tmp_path / f"{seed}.ts", pan(seed, 30, 1)).read_bytes() for seed in (1, 2)]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    stamps = [picture.seconds for picture in decode(tmp_path / "joined.ts")]
    assert len(stamps) == 60
    assert np.diff(stamps) == pytest.approx(1 / 24, abs=1e-3)


def test_a_large_picture_is_looked_at_small_and_described_in_full(tmp_path):
    path = write(tmp_path / "a.mp4", pan(1, 3).repeat(4, axis=1).repeat(4, axis=2))
    assert next(decode(path, 256)).image.shape == (256, 256, 3)
    probe = analyse(str(path))["probe"]
    assert (probe["height"], probe["width"]) == (384, 384)


def test_a_stretch_is_cut_out_at_a_constant_rate_by_the_nearest_time_stamp(tmp_path):
    times = [0, 40, 80, 210, 250, 290, 330, 370, 410, 450]
    path = write(tmp_path / "a.mp4", pan(1, 10, 8), crf=0, times=times)
    found = extract(str(path), 0.04, 0.40, 25.0, 1280, str(tmp_path / "out.mp4"))
    # From 0.04 s to 0.37 s at 25 a second: the gap after 0.08 s is filled by its nearer end.
    nearest = [1, 2, 2, 3, 3, 4, 5, 6, 7]
    assert found == {"problem": None, "frames": len(nearest), "height": 96, "width": 96}
    clip = read_clip(tmp_path / "out.mp4")
    assert clip.fps == 25
    for frame, number in zip(clip.frames, nearest, strict=True):
        differences = [np.abs(frame.astype(int) - other).mean() for other in pan(1, 10, 8)]
        assert int(np.argmin(differences)) == number


def test_a_stretch_that_is_not_there_is_a_problem_in_words(tmp_path):
    path = write(tmp_path / "a.mp4", pan(1, 10))
    found = extract(str(path), 5.0, 6.0, 24.0, 1280, str(tmp_path / "out.mp4"))
    assert found == {"problem": "no frame in this stretch could be decoded a second time"}
    found = extract(str(tmp_path / "gone.mp4"), 0.0, 1.0, 24.0, 1280, str(tmp_path / "out.mp4"))
    assert found == {"problem": "no such file or directory"}
    assert not (tmp_path / "out.mp4").exists()
