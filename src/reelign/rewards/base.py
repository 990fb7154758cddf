"""The contract of a reward: typed clips in, named scores with declared ranges out, and never a number for a failure.

A reward says what it needs (frame rate, number of frames, size) and is handed exactly that. Whatever it gives back is
checked before anyone sees it: every dimension, one finite number a clip, inside the declared range. What is wrong
becomes a `RewardError` that names the clips; where trying again can help (a service that is away), the error says so.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from reelign.data.clip import Clip
from reelign.errors import ReelignError

Scores = dict[str, np.ndarray]
"""Per dimension float64 (B,), in the order of the clips."""
WAITS = (1.0, 4.0, 15.0)
"""Seconds before the second, third and fourth try of a reward that failed for a passing reason."""


class RewardError(ReelignError):
    """A reward could not score some clips.

    Attributes:
        reward: name of the reward.
        clips: ids of the clips that have no score.
        passing: whether the same call may succeed later.
    """

    def __init__(self, reward: str, clips: Sequence[str], reason: str, passing: bool = False) -> None:
        shown = ", ".join(clips[:4]) + (f" and {len(clips) - 4} more" if len(clips) > 4 else "")
        super().__init__(f"the reward {reward!r} has no score for {shown}: {reason}")
        self.reward, self.clips, self.reason, self.passing = reward, tuple(clips), reason, passing


@dataclass(frozen=True)
class Range:
    """The values that a dimension can take; higher is better."""

    low: float = -math.inf
    high: float = math.inf

    def holds(self, values: np.ndarray) -> np.ndarray:
        """Which values lie inside, bool, with room for rounding at the ends."""
        room = 1e-6 * max(1.0, *(abs(end) for end in (self.low, self.high) if math.isfinite(end)), 1.0)
        return (values >= self.low - room) & (values <= self.high + room)


@dataclass(frozen=True)
class Needs:
    """What a reward asks of a clip; None leaves it as it is.

    Attributes:
        fps: frames a second: the frames nearest in time are taken.
        frames: number of frames, evenly spread from the first to the last (after `fps`).
        side: length of the shorter side in pixels; the aspect is kept.
    """

    fps: float | None = None
    frames: int | None = None
    side: int | None = None


class Reward(ABC):
    """A judge of clips that training may use.

    Attributes:
        name: how messages, logs and recipes call it.
        dimensions: names of its scores with their ranges.
        needs: what it is handed.
    """

    name: str
    dimensions: Mapping[str, Range]
    needs: Needs = Needs()

    @abstractmethod
    def score(self, clips: Sequence[Clip]) -> Mapping[str, Sequence[float] | np.ndarray]:
        """Score clips that fit `needs`: for each dimension one number a clip, in order.

        Raises:
            RewardError: some clips cannot be scored.
        """

    def __call__(self, clips: Sequence[Clip]) -> Scores:
        """Fit the clips to `needs`, score them and check the answer.

        Raises:
            RewardError: the reward failed, or its answer breaks the contract.
        """
        ids = [clip.id for clip in clips]
        if not clips:
            return {name: np.empty(0) for name in self.dimensions}
        try:
            answer = self.score([fit(clip, self.needs) for clip in clips])
        except RewardError:
            raise
        except Exception as error:  # whatever a judge throws, the run must learn which clips it concerns
            raise RewardError(self.name, ids, f"{type(error).__name__}: {error}") from error
        return self._checked(answer, ids)

    def _checked(self, answer: Mapping[str, Sequence[float] | np.ndarray], ids: list[str]) -> Scores:
        if not isinstance(answer, Mapping) or set(answer) != set(self.dimensions):
            found = ", ".join(map(str, answer)) if isinstance(answer, Mapping) else type(answer).__name__
            raise RewardError(self.name, ids, f"it promised {', '.join(self.dimensions)} and gave {found}.")
        scores: Scores = {}
        for name, allowed in self.dimensions.items():
            try:
                values = np.asarray(answer[name], np.float64)
            except (TypeError, ValueError) as error:
                raise RewardError(self.name, ids, f"{name} is not made of numbers ({error}).") from error
            if values.shape != (len(ids),):
                raise RewardError(
                    self.name, ids, f"{name} has the shape {values.shape}; one number a clip is ({len(ids)},)."
                )
            wrong = ~(np.isfinite(values) & allowed.holds(values))
            if wrong.any():
                bad = [clip for clip, is_wrong in zip(ids, wrong, strict=True) if is_wrong]
                first = values[int(np.argmax(wrong))]
                raise RewardError(self.name, bad, f"{name} is {first}, outside [{allowed.low:g}, {allowed.high:g}].")
            scores[name] = values
        return scores


def fit(clip: Clip, needs: Needs) -> Clip:
    """The clip as a reward asks for it; unchanged where it already is.

    Frames are chosen, never blended: a judge of motion must not see ghosts. A clip that is asked for more frames than
    it has shows some of them twice.
    """
    frames, fps = clip.frames, clip.fps
    if needs.fps is not None and needs.fps != fps:
        count = max(1, math.floor((len(frames) - 1) / fps * needs.fps + 1e-6) + 1)
        frames = frames[np.minimum(np.rint(np.arange(count) * fps / needs.fps).astype(int), len(frames) - 1)]
        fps = needs.fps
    if needs.frames is not None and needs.frames != len(frames):
        chosen = np.rint(np.linspace(0, len(frames) - 1, needs.frames)).astype(int)
        fps = fps * (needs.frames - 1) / max(len(frames) - 1, 1) if needs.frames > 1 and len(frames) > 1 else fps
        frames = frames[chosen]
    if needs.side is not None and needs.side != min(frames.shape[1:3]):
        frames = _resized(frames, needs.side)
    return clip if frames is clip.frames else replace(clip, frames=frames, fps=fps)


def _resized(frames: np.ndarray, side: int) -> np.ndarray:
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, size, interpolation=how) for frame in frames])


@dataclass(frozen=True)
class Weighted:
    """A reward with the weight of each dimension that training looks at; the others are only logged."""

    reward: Reward
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.reward.dimensions))
        if unknown or not self.weights:
            what = f"has no dimension {unknown[0]!r}" if unknown else "is given no weight"
            raise ReelignError(
                f"the reward {self.reward.name!r} {what}; it scores {', '.join(self.reward.dimensions)}."
            )


class RewardSet:
    """Several rewards that score the same clips. Scores are never added here: each is normalised by itself first."""

    def __init__(self, rewards: Sequence[Weighted], wait: Callable[[float], None] = time.sleep) -> None:
        names = [entry.reward.name for entry in rewards]
        if len(set(names)) != len(names):
            raise ReelignError(f"two rewards have the same name: {', '.join(sorted(names))}; name them apart.")
        if not rewards:
            raise ReelignError("there is no reward; name at least one.")
        self.rewards, self._wait = tuple(rewards), wait

    @property
    def weights(self) -> dict[str, float]:
        """Weight by `reward.dimension`, of the dimensions that training looks at."""
        return {f"{e.reward.name}.{name}": value for e in self.rewards for name, value in e.weights.items()}

    def __call__(self, clips: Sequence[Clip]) -> Scores:
        """All scores by `reward.dimension`. A reward that fails for a passing reason is tried again, see `WAITS`.

        Raises:
            RewardError: a reward failed for good.
        """
        return {
            f"{entry.reward.name}.{name}": values
            for entry in self.rewards
            for name, values in self._patiently(entry.reward, clips).items()
        }

    def _patiently(self, reward: Reward, clips: Sequence[Clip]) -> Scores:
        for seconds in WAITS:
            try:
                return reward(clips)
            except RewardError as error:
                if not error.passing:
                    raise
                self._wait(seconds)
        return reward(clips)
