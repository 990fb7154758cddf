"""Cuts, dissolves and fades are found where they were put; motion and flicker are none of them."""

from itertools import pairwise

import numpy as np
import pytest

from footage import pan
from reelign.data.shots import Shot, ShotDetector

FPS = 24.0


def shots(frames: np.ndarray) -> list[Shot]:
    detector = ShotDetector()
    for frame in frames:
        detector.feed(frame)
    return detector.shots(FPS)


def test_a_hard_cut_is_found_at_its_frame():
    films = [pan(seed, count, 1) for seed, count in ((1, 30), (2, 25), (3, 40))]
    assert shots(np.concatenate(films)) == [Shot(0, 30), Shot(30, 55), Shot(55, 95)]


def test_one_take_is_one_shot():
    assert shots(pan(1, 60, 1)) == [Shot(0, 60)]
    assert shots(np.repeat(pan(1, 1), 40, axis=0)) == [Shot(0, 40)]


@pytest.mark.parametrize("seed", range(2, 12))
def test_a_fast_pan_is_no_dissolve(seed):
    assert shots(pan(seed, 48, 3)) == [Shot(0, 48)]


def test_a_fade_through_black_parts_two_shots_and_is_part_of_neither():
    fade = np.linspace(1, 0, 12).reshape(-1, 1, 1, 1)
    first, second = pan(1, 40, 1).astype(float), pan(2, 40, 1).astype(float)
    first[-12:] *= fade
    second[:12] *= fade[::-1]
    found = shots(np.concatenate([first, second]).astype(np.uint8))
    assert len(found) == 2
    assert 36 <= found[0].end < 40 < found[1].start <= 44


@pytest.mark.parametrize(("one", "other"), [(1, 21), (2, 22), (3, 23), (6, 26), (7, 27)])
@pytest.mark.parametrize("length", [12, 16, 24])
def test_a_dissolve_belongs_to_no_shot(one, other, length):
    first, second = pan(one, 60, 1).astype(float), pan(other, 60, 1).astype(float)
    share = np.linspace(0, 1, length).reshape(-1, 1, 1, 1)
    mixed = first[-length:] * (1 - share) + second[:length] * share
    found = shots(np.concatenate([first[:-length], mixed, second[length:]]).astype(np.uint8))
    assert len(found) == 2
    # What is taken out lasts 1.2 s around the middle: it covers the dissolve, and loses no more than it must.
    assert found[0].end <= 60 - length
    assert found[1].start >= 60
    assert found[1].start - found[0].end == 28


def test_black_frames_are_no_shot():
    assert shots(np.zeros((30, 48, 48, 3), np.uint8)) == []


def test_no_frame_lies_in_two_shots():
    films = np.concatenate([pan(1, 30, 1), np.zeros((10, 96, 96, 3), np.uint8), pan(2, 20, 4), pan(3, 30, 1)])
    found = shots(films)
    assert all(first.end <= second.start for first, second in pairwise(found))
    assert all(0 <= shot.start < shot.end <= len(films) for shot in found)
