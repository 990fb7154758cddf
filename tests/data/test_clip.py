"""A clip written is the clip read."""

import numpy as np
import pytest

from footage import pan
from reelign.data.clip import Clip, read_clip, write_clip
from reelign.errors import ReelignError


@pytest.mark.parametrize("fps", [8.0, 24.0, 30000 / 1001, 12.5])
def test_frames_rate_and_words_come_back(tmp_path, fps):
    frames = pan(1, 13)
    write_clip(tmp_path / "sub" / "a.mp4", frames, fps)
    clip = read_clip(tmp_path / "sub" / "a.mp4", "a pan")
    assert (clip.fps, clip.prompt, clip.id) == (pytest.approx(fps, rel=1e-6), "a pan", "a")
    # CRF 12 and the halved colour planes cost about 2 of 255 levels here.
    assert np.abs(clip.frames.astype(int) - frames).mean() < 4


def test_odd_sides_are_padded_by_a_repeated_line(tmp_path):
    frames = np.full((5, 17, 31, 3), 128, np.uint8)
    write_clip(tmp_path / "a.mp4", frames, 8)
    assert read_clip(tmp_path / "a.mp4").frames.shape == (5, 18, 32, 3)


def test_the_same_frames_give_the_same_bytes_and_leave_nothing_else(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_clip(tmp_path / name, pan(2, 9), 24)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_failed_write_leaves_the_old_clip_and_no_half(tmp_path):
    write_clip(tmp_path / "a.mp4", pan(3, 9), 24)
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises((ValueError, TypeError)):
        write_clip(tmp_path / "a.mp4", pan(3, 9).astype(np.float32), 24)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("content", [None, b"", b"this is not a video"])
def test_a_clip_that_cannot_be_read_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ReelignError, match=r"cannot read the clip .*a\.mp4.*moved, deleted or damaged"):
        read_clip(tmp_path / "a.mp4")


def test_frames_of_another_kind_are_refused():
    for frames in (np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="frames must be uint8"):
            Clip(frames, 8.0)
    with pytest.raises(ValueError, match="fps must be positive"):
        Clip(np.zeros((1, 8, 8, 3), np.uint8), 0.0)
