"""A file that grows plays at every moment, and holds what it says."""

import numpy as np
import pytest

from disk import files_no_larger_than
from reelign.data.clip import read_clip
from reelign.data.growing import GrowingClip
from reelign.errors import ReelignError


def frames(count: int, height: int = 32, width: int = 48, noise: int = 0) -> np.ndarray:
    """A ramp that moves; with noise it does not compress."""
    x = np.arange(width)[None, None, :, None] + 4 * np.arange(count)[:, None, None, None]
    ramp = np.broadcast_to(x * 3 % 200, (count, height, width, 3))
    return (ramp + np.random.default_rng(0).integers(0, noise + 1, ramp.shape)).astype(np.uint8)


def test_the_whole_file_holds_all_frames_at_their_rate(tmp_path):
    video = frames(20)
    with GrowingClip(tmp_path / "clip.mp4", 12.5) as clip:
        for part in np.split(video, [1, 5, 9, 17]):
            clip.add(part)
    read = read_clip(tmp_path / "clip.mp4")
    assert clip.frames == len(read.frames) == 20
    assert read.fps == 12.5
    assert np.abs(read.frames.astype(int) - video).mean() < 4


def test_it_plays_at_every_moment_but_for_the_last_frame(tmp_path):
    clip, seen = GrowingClip(tmp_path / "clip.mp4", 8.0), []
    for part in np.split(frames(13), [1, 5, 9]):
        clip.add(part)
        seen.append(len(read_clip(clip.path).frames) if clip.frames else 0)
        assert seen[-1] == clip.frames
    assert seen == [0, 4, 8, 12]
    clip.close()
    assert len(read_clip(clip.path).frames) == clip.frames == 13


def test_odd_sides_are_padded(tmp_path):
    with GrowingClip(tmp_path / "clip.mp4", 8.0) as clip:
        clip.add(frames(2, 31, 47))
    assert read_clip(clip.path).frames.shape == (2, 32, 48, 3)


@pytest.mark.parametrize("limit", [3_000, 20_000, 20_001, 33_333])
def test_where_the_disk_is_full_the_file_ends_and_plays(tmp_path, limit):
    video = frames(40, noise=50)
    clip = GrowingClip(tmp_path / "c.mp4", 8.0)
    with files_no_larger_than(limit), pytest.raises(ReelignError) as refused, clip:
        for part in np.split(video, 10):
            clip.add(part)
    assert f"It holds {clip.frames} frames ({clip.frames / 8:.1f} s) and plays. Free some space" in str(refused.value)
    assert (tmp_path / "c.mp4").stat().st_size <= limit
    if clip.frames:
        assert len(read_clip(tmp_path / "c.mp4").frames) == clip.frames
    assert (clip.frames > 3) == (limit > 3_000)


def test_an_error_elsewhere_keeps_what_was_made(tmp_path):
    with pytest.raises(KeyboardInterrupt), GrowingClip(tmp_path / "clip.mp4", 8.0) as clip:
        clip.add(frames(5))
        raise KeyboardInterrupt
    assert len(read_clip(clip.path).frames) == 5


def test_an_older_file_stays_until_there_is_a_frame(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"older")
    with GrowingClip(tmp_path / "clip.mp4", 8.0):
        pass
    assert (tmp_path / "clip.mp4").read_bytes() == b"older"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ReelignError, match=r"cannot write .*Is a directory"):
        GrowingClip(tmp_path, 8.0).add(frames(1))
