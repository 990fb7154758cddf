"""The plan of training: every clip has its windows or a sentence; all numbers worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reelign.data.buckets import Bucket, fit_frames, plan_buckets

SHORT, LONG = Bucket(frames=5, height=32, width=32), Bucket(frames=17, height=32, width=32)
WIDE = Bucket(frames=17, height=32, width=64)


def row(name: str = "a", frames: int = 48, fps: float = 24.0, height: int = 96, width: int = 96) -> dict:
    return {"id": name, "frames": frames, "fps": fps, "height": height, "width": width}


def test_frames_are_those_nearest_in_time():
    (window,) = plan_buckets([row(frames=13, fps=24)], [SHORT], fps=8, windows="first").windows
    assert window.indices == (0, 3, 6, 9, 12)
    (window,) = plan_buckets([row(frames=16, fps=30)], [SHORT], fps=8, windows="first").windows
    # 0, 3.75, 7.5, 11.25 and 15, rounded to even at a half.
    assert window.indices == (0, 4, 8, 11, 15)


def test_one_frame_less_than_a_bucket_needs_is_refused_with_both_numbers():
    assert plan_buckets([row(frames=49, fps=24)], [LONG], fps=8).windows
    plan = plan_buckets([row(frames=48, fps=24)], [LONG], fps=8)
    assert plan.windows == []
    assert plan.refused == [("a", "gives 16 frames at 8 a second, the shortest bucket needs 17")]


def test_a_rate_above_the_clips_own_is_refused_and_rounding_is_not():
    assert plan_buckets([row(fps=8)], [SHORT], fps=24).refused == [("a", "has 8 frames a second, training wants 24")]
    assert plan_buckets([row(fps=24000 / 1001)], [SHORT], fps=24).windows


def test_a_long_clip_gives_windows_that_do_not_overlap_or_only_the_first():
    every = plan_buckets([row(frames=12, fps=8)], [SHORT], fps=None).windows
    assert [(window.id, window.indices) for window in every] == [
        ("a#0", (0, 1, 2, 3, 4)),
        ("a#1", (5, 6, 7, 8, 9)),
    ]
    assert plan_buckets([row(frames=12, fps=8)], [SHORT], fps=None, windows="first").windows == every[:1]


def test_the_nearest_shape_wins_then_the_most_frames():
    buckets = [SHORT, LONG, WIDE]
    chosen = {
        "square": row("square"),
        "film": row("film", height=270, width=480),
        "short film": row("short film", frames=9, height=270, width=480),
    }
    plan = plan_buckets(list(chosen.values()), buckets, fps=None, windows="first")
    assert [window.bucket for window in plan.windows] == [LONG, WIDE, SHORT]


@given(
    st.lists(st.tuples(st.integers(1, 300), st.floats(1, 120), st.integers(2, 400), st.integers(2, 400)), max_size=12),
    st.one_of(st.none(), st.floats(1, 60)),
    st.sampled_from(["first", "all"]),
)
def test_every_clip_is_planned_or_refused_and_no_window_leaves_its_clip(clips, fps, windows):
    rows = [row(str(i), *clip) for i, clip in enumerate(clips)]
    plan = plan_buckets(rows, [SHORT, LONG, WIDE], fps, windows)
    planned, refused = {window.row["id"] for window in plan.windows}, [name for name, _ in plan.refused]
    assert planned.isdisjoint(refused)
    assert planned | set(refused) == {clip["id"] for clip in rows}
    assert len(refused) == len(set(refused))
    assert len({window.id for window in plan.windows}) == len(plan.windows)
    for window in plan.windows:
        assert len(window.indices) == window.bucket.frames
        assert sorted(window.indices) == list(window.indices)
        assert 0 <= window.indices[0] <= window.indices[-1] < window.row["frames"]


def test_the_printed_plan_names_every_bucket_and_every_refusal():
    plan = plan_buckets([row("a", frames=17), row("b", frames=2)], [SHORT, LONG], fps=None)
    assert str(plan).splitlines() == [
        "1 clips give 1 windows",
        "  17x32x32: 1",
        "  not used: b: gives 2 frames at 24 a second, the shortest bucket needs 5",
    ]


def test_frames_are_covered_and_cropped_in_the_middle_without_distortion():
    frames = np.zeros((3, 60, 120, 3), np.uint8)
    frames[:, :, 30:90] = 200
    fitted = fit_frames(frames, 30, 30)
    assert fitted.shape == (3, 30, 30, 3)
    assert (fitted == 200).all()
    assert fit_frames(frames[:, :20, :40], 32, 32).shape == (3, 32, 32, 3)
    assert np.array_equal(fit_frames(frames, 60, 120), frames)


def test_a_bucket_without_size_is_refused():
    with pytest.raises(ValidationError):
        Bucket(frames=0, height=32, width=32)
    with pytest.raises(ValidationError):
        Bucket.model_validate({"frames": 5, "height": 32, "width": 32, "depth": 1})
