"""What a plan is made of when the command line asks for one: sampler, prompts, judge and size of the clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reelign.data.prompts import read_prompts
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.inference.plan import PlanConfig
from reelign.inference.plan_file import Target
from reelign.miniature.world import FRAMES, SIDE
from reelign.models.base import VideoModel
from reelign.sampling.sample import SampleConfig, own_sampler

MOST = (60, 160)
"""Prompts of the two halves, at most."""
LEAST_PSNR = 20.0
"""dB to the plain frames that a plan keeps where only pixels are measured: they do not see what a prompt asks for."""


def plan_request(
    model: VideoModel,
    target: Target,
    prompts: Path | None = None,
    count: int = MOST[0],
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
    kinds: Sequence[str] = (),
) -> PlanConfig:
    """Fill in what was not said.

    Args:
        model: gives its own sampler and size where nothing else is asked for.
        target: what is asked of the plan.
        prompts: a list; without one the model must be of the miniature's world, which brings prompts and judge.
        count: prompts of each half, at most.
        seed: of the clips' noise.
        steps, guidance: of the sampler without acceleration.
        size: frames, height and width.
        kinds: of accelerations; all if empty.

    Raises:
        ReelignError: there is no judge, too few prompts, or the sampler is impossible.
    """
    native = model.native_size
    frames, height, width = (
        asked or own for asked, own in zip(size, (native.frames, native.height, native.width), strict=True)
    )
    model.latent_shape(frames, height, width)  # says which sizes fit
    clip = {"frames": frames, "height": height, "width": width, "fps": native.fps, "seed": seed}
    first, second = min(count, MOST[0]), min(count, MOST[1])
    if prompts is None:
        if (frames, height, width) != (FRAMES, SIDE, SIDE):
            raise ReelignError(
                f"{model.name} makes clips of {frames} frames and {width} x {height}, which the miniature's judge does "
                "not know: give prompts with --prompts LIST."
            )
        battery = BatteryConfig(validation_count=first, count=second, **clip)
    else:
        listed = len(read_prompts(prompts))
        if listed < 4:
            raise ReelignError(f"{prompts} has {listed} prompts; a plan needs four: two to choose by and two to check.")
        first = min(first, listed // 2)
        second = min(second, listed - first)
        battery = BatteryConfig(judge="pixels", prompts=prompts, validation_count=first, count=second, **clip)
        if target.min_psnr is None:
            target = target.model_copy(update={"min_psnr": LEAST_PSNR})
    return PlanConfig(target=target, sampler=plain_sampler(model, steps, guidance), battery=battery, kinds=list(kinds))


def plain_sampler(model: VideoModel, steps: int | None = None, guidance: float | None = None) -> SampleConfig:
    """The sampler of a model that is told nothing else: its own, or Wan's with the model's shift and guidance."""
    scale = 1.0 if model.causal is not None else model.native_size.guidance_scale
    plain = own_sampler(model) or SampleConfig(shift=model.scheduler_shift, guidance_scale=scale)
    changes = {"steps": steps, "guidance_scale": guidance}
    return plain.model_copy(update={name: value for name, value in changes.items() if value is not None})
