"""The contract: a reward gets exactly what it needs, and whatever is wrong with its answer names the clips."""

import math

import numpy as np
import pytest

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import WAITS, Needs, Range, Reward, RewardError, RewardSet, Weighted, fit


def clip(name="a", frames=17, fps=8.0, height=24, width=32):
    """Frame k is filled with the value k."""
    video = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, height, width, 3))
    return Clip(np.ascontiguousarray(video), fps, "a red ball", name)


def shown(found: Clip) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in found.frames]


class Scripted(Reward):
    """Answers what it is told to, and remembers what it was handed."""

    def __init__(self, answer, name="scripted", needs=None, dimensions=None):
        self.answer, self.name, self.seen = answer, name, []
        self.needs = needs or Needs()
        self.dimensions = dimensions or {"good": Range(0.0, 1.0)}

    def score(self, clips):
        self.seen.append(list(clips))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer(clips) if callable(self.answer) else self.answer


def test_scores_come_in_the_order_of_the_clips():
    reward = Scripted(lambda clips: {"good": [len(c.frames) / 100 for c in clips]})
    found = reward([clip("a", 5), clip("b", 9)])
    assert found["good"].dtype == np.float64
    assert found["good"].tolist() == [0.05, 0.09]
    assert reward([])["good"].shape == (0,)
    assert len(reward.seen) == 1


@pytest.mark.parametrize(
    ("answer", "named", "reason"),
    [
        ({"good": [0.5, math.nan]}, "b", "nan"),
        ({"good": [math.inf, 0.5]}, "a", "inf"),
        ({"good": [0.5, 1.01]}, "b", r"1.01, outside \[0, 1\]"),
        ({"good": [0.5]}, "a, b", r"shape \(1,\)"),
        ({"good": [[0.5], [0.5]]}, "a, b", r"shape \(2, 1\)"),
        ({"good": 0.5}, "a, b", "shape"),
        ({"good": [0.5, None]}, "b", "nan"),
        ({"good": ["high", "low"]}, "a, b", "not made of numbers"),
        ({"bad": [0.5, 0.5]}, "a, b", "promised good and gave bad"),
        ({"good": [0.5, 0.5], "more": [1, 1]}, "a, b", "promised good"),
        ([0.5, 0.5], "a, b", "gave list"),
        (None, "a, b", "gave NoneType"),
        (KeyError("prompt"), "a, b", "KeyError: 'prompt'"),
    ],
)
def test_a_failure_is_never_a_number(answer, named, reason):
    with pytest.raises(RewardError, match=reason) as caught:
        Scripted(answer)([clip("a"), clip("b")])
    assert ", ".join(caught.value.clips) == named
    assert f"for {named}:" in str(caught.value)
    assert not caught.value.passing


def test_a_reward_that_names_its_clips_is_passed_on_as_it_is():
    own = RewardError("scripted", ["b"], "no object", passing=True)
    with pytest.raises(RewardError) as caught:
        Scripted(own)([clip("a"), clip("b")])
    assert caught.value is own


def test_a_long_list_of_clips_is_told_in_short():
    assert str(RewardError("r", list("abcdefg"), "x")).startswith(
        "the reward 'r' has no score for a, b, c, d and 3 more:"
    )


def test_a_clip_that_fits_is_handed_on_untouched():
    original = clip()
    assert fit(original, Needs()) is original
    assert fit(original, Needs(fps=8.0, frames=17, side=24)) is original


@pytest.mark.parametrize(
    ("fps", "wanted", "frames"),
    [
        (8.0, 2.0, [0, 4, 8, 12, 16]),
        (8.0, 16.0, None),
        (24.0, 8.0, [0, 3, 6, 9, 12, 15]),
        (10.0, 4.0, [0, 2, 5, 8, 10, 12, 15]),
    ],
)
def test_another_frame_rate_takes_the_frames_nearest_in_time(fps, wanted, frames):
    found = fit(clip(fps=fps), Needs(fps=wanted))
    assert found.fps == wanted
    if frames is None:
        assert len(found.frames) == 33
        assert shown(found)[::2] == list(range(17))
    else:
        assert shown(found) == frames
    assert abs((len(found.frames) - 1) / wanted - 16 / fps) <= 1 / wanted


def test_a_number_of_frames_spans_the_clip_and_keeps_its_duration():
    found = fit(clip(), Needs(frames=5))
    assert shown(found) == [0, 4, 8, 12, 16]
    assert (len(found.frames) - 1) / found.fps == pytest.approx(16 / 8)
    assert shown(fit(clip(frames=3), Needs(frames=5))) == [0, 0, 1, 2, 2]
    assert shown(fit(clip(frames=1), Needs(frames=3))) == [0, 0, 0]
    assert shown(fit(clip(), Needs(frames=1))) == [0]


def test_a_side_keeps_the_aspect_and_the_picture():
    found = fit(clip(height=24, width=32), Needs(side=12))
    assert found.frames.shape == (17, 12, 16, 3)
    assert shown(found) == list(range(17))
    assert fit(clip(height=24, width=32), Needs(side=48)).frames.shape == (17, 48, 64, 3)


def test_a_reward_is_handed_what_it_needs():
    reward = Scripted(lambda clips: {"good": [0.5] * len(clips)}, needs=Needs(fps=4.0, frames=3, side=12))
    reward([clip()])
    (handed,) = reward.seen[0]
    assert handed.frames.shape == (3, 12, 16, 3)
    assert (handed.id, handed.prompt) == ("a", "a red ball")


def test_a_set_keeps_rewards_and_dimensions_apart():
    one = Scripted({"good": [0.1]}, "one")
    other = Scripted({"good": [0.2], "tidy": [9]}, "other", dimensions={"good": Range(), "tidy": Range()})
    rewards = RewardSet([Weighted(one, {"good": 2.0}), Weighted(other, {"tidy": 1.0})])
    assert {name: values.tolist() for name, values in rewards([clip()]).items()} == {
        "one.good": [0.1],
        "other.good": [0.2],
        "other.tidy": [9.0],
    }
    assert rewards.weights == {"one.good": 2.0, "other.tidy": 1.0}


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not():
    waited: list[float] = []

    def away(times: int, passing: bool):
        left = iter([True] * times)

        def answer(clips):
            if next(left, False):
                raise RewardError("scripted", [c.id for c in clips], "away", passing)
            return {"good": [0.5] * len(clips)}

        return RewardSet([Weighted(Scripted(answer), {"good": 1.0})], wait=waited.append)

    assert away(2, passing=True)([clip()])["scripted.good"].tolist() == [0.5]
    assert waited == list(WAITS[:2])
    with pytest.raises(RewardError, match="away"):
        away(len(WAITS) + 1, passing=True)([clip()])
    waited.clear()
    with pytest.raises(RewardError, match="away"):
        away(1, passing=False)([clip()])
    assert not waited


def test_a_set_that_makes_no_sense_is_refused():
    reward = Scripted({"good": [0.5]})
    with pytest.raises(ReelignError, match="no dimension 'god'; it scores good"):
        Weighted(reward, {"god": 1.0})
    with pytest.raises(ReelignError, match="no weight"):
        Weighted(reward, {})
    with pytest.raises(ReelignError, match="same name"):
        RewardSet([Weighted(reward, {"good": 1.0})] * 2)
    with pytest.raises(ReelignError, match="no reward"):
        RewardSet([])
