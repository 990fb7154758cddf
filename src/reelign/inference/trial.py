"""What an acceleration costs and what it gives, measured against the same model without it.

Clips are sampled one by one, as they are in deployment: a cache decides by the whole batch. Prompts and noise are those
of the un-accelerated output. At some of the prompts the plain model is timed right after the accelerated one, in the
same process; the speed-up is the median of these ratios, so that a machine that becomes busy does not count.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binom

from reelign.evaluate.battery import BatteryConfig, Task, generate_batch, judge_clip
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.evaluate.gsb import OVERALL, compare
from reelign.evaluate.statistics import TAIL, Interval
from reelign.inference.acceleration import Acceleration, accelerate, calibrated
from reelign.miniature.judgement import AXES
from reelign.models.base import VideoModel
from reelign.sampling.sample import SampleConfig

PAIRS = 12
"""Prompts at which the plain model is timed beside the accelerated one."""
LOOK = 16
"""Clips after which a hopeless acceleration is given up."""
SAME_PSNR = 100.0
"""dB that stand for equal clips."""
Progress = Callable[[int, int], None]


class Estimate(BaseModel):
    """A number with its 95 % interval over prompts."""

    model_config = ConfigDict(extra="forbid")
    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, found: Interval) -> Estimate:
        """Rounded to what can be read."""
        return cls(value=round(found.value, 4), low=round(found.low, 4), high=round(found.high, 4), n=found.n)

    @property
    def text(self) -> str:
        """For tables."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Trial(BaseModel):
    """An acceleration, measured on a part of the prompts.

    Attributes:
        seconds: of a clip, median; from prompt to frames.
        plain_seconds: the same without acceleration.
        speedup: median ratio of the two where they were timed side by side.
        gsb: against the plain model, by axis and overall; `n` is the number of clips.
        psnr: dB to the plain model's frames, mean; `SAME_PSNR` for equal clips.
        motion: dynamic degree, mean.
        plain_motion: the same without acceleration.
        warm_up: seconds that compiling took before the first clip.
        evaluations: of the network, for a clip.
    """

    model_config = ConfigDict(extra="forbid")
    seconds: float
    plain_seconds: float
    speedup: Estimate
    gsb: dict[str, Estimate]
    psnr: float
    motion: float
    plain_motion: float
    warm_up: float
    evaluations: float

    @property
    def overall(self) -> Estimate:
        """GSB of the mean of all axes."""
        return self.gsb[OVERALL]


@dataclass(frozen=True)
class _Clip:
    """A sampled and judged clip."""

    item: Item
    frames: np.ndarray
    seconds: float
    evaluations: int


@dataclass
class _Seen:
    """What was measured of an acceleration so far; seconds, and ratios of seconds without and with it."""

    clips: list[_Clip] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    warm_up: float = 0.0


class Yardstick:
    """The un-accelerated output of a model, sampled once for each part of the prompts and kept in `folder`."""

    def __init__(
        self,
        model: VideoModel,
        sampler: SampleConfig,
        battery: BatteryConfig,
        parts: Mapping[str, Sequence[Task]],
        folder: Path,
    ) -> None:
        self.model, self.sampler, self.battery, self.parts, self.folder = model, sampler, battery, parts, folder
        self._plain: dict[str, Evaluation] = {}
        self._compiling = 0.0

    def plain(self, part: str, progress: Progress) -> Evaluation:
        """The un-accelerated clips of a part, judged; sampled at the first call."""
        if part not in self._plain:
            clips, todo = [], self.parts[part]
            self._clip(todo[0], self.sampler)  # the first clip of a process is slower
            for index, task in enumerate(todo):
                clip = self._clip(task, self.sampler)
                np.save(self._place(part, index), clip.frames)
                clips.append(replace(clip, frames=clip.frames[:0]))
                progress(len(clips), len(todo))
            self._plain[part] = self._evaluation(clips)
        return self._plain[part]

    def measure(
        self, acceleration: Acceleration, part: str, progress: Progress, hopeless: Callable[[Trial], bool] | None = None
    ) -> Trial:
        """Sample a part with an acceleration, and time it.

        Args:
            acceleration: what to try.
            part: of the prompts.
            progress: told after each clip.
            hopeless: asked once, after `LOOK` clips, whether the rest can be spared; the trial is of those clips then.

        Raises:
            ReelignError: the acceleration cannot be applied.
            RuntimeError: what torch says where it fails on this device.
        """
        plain, todo = self.plain(part, progress), self.parts[part]
        faster, every = acceleration.sampler(self.sampler), max(1, len(todo) // PAIRS)
        seen = _Seen()
        applied = accelerate(self.model, acceleration, self.sampler)
        try:
            seen.warm_up = self._clip(todo[0], faster).seconds
            for index, task in enumerate(todo):
                clip = self._clip(task, faster)
                seen.psnr.append(_psnr(np.load(self._place(part, index)), clip.frames))
                seen.clips.append(replace(clip, frames=clip.frames[:0]))
                if index % every == 0:
                    applied.close()
                    seen.plain_seconds.append(self._clip(task, self.sampler).seconds)
                    seen.ratios.append(seen.plain_seconds[-1] / clip.seconds)
                    applied = accelerate(self.model, acceleration, self.sampler)
                progress(len(seen.clips), len(todo))
                if hopeless is not None and index + 1 == LOOK < len(todo):
                    so_far = self._trial(acceleration, plain, seen)
                    if hopeless(so_far):
                        progress(len(todo), len(todo))
                        return so_far
        finally:
            applied.close()
        return self._trial(acceleration, plain, seen)

    def _trial(self, acceleration: Acceleration, plain: Evaluation, seen: _Seen) -> Trial:
        found = self._evaluation(seen.clips)
        plain = replace(plain, items=plain.items[: len(found.items)])
        seconds = statistics.median(clip.seconds for clip in seen.clips)
        if acceleration.compile:  # what was compiled before, in other company, is not compiled again
            self._compiling = max(self._compiling, seen.warm_up - seconds)
        return Trial(
            seconds=round(seconds, 5),
            plain_seconds=round(statistics.median(seen.plain_seconds), 5),
            speedup=Estimate.of(_median(seen.ratios)),
            gsb={axis: Estimate.of(interval) for axis, interval in compare(plain, found).items()},
            psnr=round(statistics.fmean(seen.psnr), 2),
            motion=_motion(found),
            plain_motion=_motion(plain),
            warm_up=round(self._compiling, 1) if acceleration.compile else 0.0,
            evaluations=statistics.fmean(clip.evaluations for clip in seen.clips),
        )

    def calibrated(self, acceleration: Acceleration, part: str) -> Acceleration:
        """With what must be known of the model before its cache can be tried; the first prompt tells."""
        faster = acceleration.sampler(self.sampler)
        return calibrated(acceleration, self.model, lambda: self._clip(self.parts[part][0], faster))

    def _clip(self, task: Task, sampler: SampleConfig) -> _Clip:
        started = time.perf_counter()
        videos, evaluations = generate_batch(
            self.model, [(task.prompt, task.id)], self.battery, sampler, self.battery.seed
        )
        seconds = time.perf_counter() - started
        return _Clip(judge_clip(task, videos[0], self.battery, None, True), videos[0], seconds, evaluations)

    def _evaluation(self, clips: list[_Clip]) -> Evaluation:
        axes = AXES if self.battery.judge == "miniature" else tuple(clips[0].item.scores)
        return Evaluation(self.battery.model_dump(mode="json"), axes, tuple(clip.item for clip in clips))

    def _place(self, part: str, index: int) -> Path:
        return self.folder / f"{part}-{index}.npy"


def _motion(found: Evaluation) -> float:
    return round(statistics.fmean(item.measures["dynamic_degree"] for item in found.items), 4)


def _psnr(plain: np.ndarray, found: np.ndarray) -> float:
    error = float(np.mean((plain.astype(np.float32) - found) ** 2))
    return SAME_PSNR if error == 0 else min(SAME_PSNR, 10 * math.log10(255**2 / error))


def _median(ratios: list[float]) -> Interval:
    """The median, and the order statistics that enclose it with at least 95 %, or the range of fewer than six."""
    ordered, n = sorted(ratios), len(ratios)
    cut = max(0, int(binom.ppf(TAIL, n, 0.5)) - 1)
    return Interval(statistics.median(ordered), ordered[cut], ordered[n - 1 - cut], n)
