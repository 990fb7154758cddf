"""What a rehearsed update shows: scores, spread against noise, ratio, gradients, ranks, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from reelign.doctor.cost import Evaluations
from reelign.doctor.finding import Finding, look
from reelign.doctor.learned import fitted_by_run
from reelign.doctor.rehearsal import Groups, equal_ranks, judged, replayed, sample_groups, without_gradient
from reelign.doctor.spread import LEAST_RATIO, Spread, alternatives, dithered, overall, spreads
from reelign.errors import ReelignError
from reelign.flow.policy import group_advantages
from reelign.stages.algorithm import Algorithm
from reelign.stages.objectives import Told
from reelign.stages.rlhf import RlhfConfig, Trainer


@dataclass(frozen=True)
class Seconds:
    """Of one network evaluation of the rollout, one with its backward pass, and of decoding and judging one clip."""

    forward: float
    backward: float
    clip: float

    def hours(self, cost: Evaluations, config: RlhfConfig, ranks: int) -> float:
        """Of a run that costs so many evaluations; every rank makes all of validations and batteries."""
        clips = config.updates * config.prompts_per_update * config.group_size
        shared = cost.rollout * self.forward + cost.replay * self.backward + clips * self.clip
        return (shared / ranks + cost.judged * self.forward) / 3600


def rehearsed(trainer: Trainer, config: RlhfConfig, cost: Callable[[Seconds], str]) -> Iterator[Finding]:
    """The findings of a rehearsal.

    Args:
        trainer: of `rehearsal`.
        config: the recipe's.
        cost: says what the run costs, given the measured seconds.
    """
    groups = sample_groups(trainer, trainer.algorithm)
    judging = 0.0
    try:
        scores, judging = judged(trainer, groups.clips)
        yield Finding("rewards", True, _means(scores))
        if fitted_by_run(config.rewards):
            yield Finding("reward spread", True, "left out: what this run will fit to votes cannot be asked yet.")
        else:
            yield look("reward spread", lambda: _spread(trainer, groups, scores))
    except ReelignError as error:
        yield Finding("rewards", False, str(error))
    told, replaying = replayed(trainer, groups.rollouts)
    if config.algorithm.objective == "grpo":
        yield look("ratio", lambda: first_ratio(told, config.algorithm))
    yield look("gradient", lambda: _gradient(trainer, groups))
    yield look("ranks", lambda: equal_ranks(trainer.context.world, trainer.trainee.parameters))
    clip = (groups.seconds_decoding + judging) / len(groups.clips)
    yield Finding("cost", True, cost(Seconds(groups.seconds_sampling / groups.nfe, replaying / told.nfe, clip)))


def _means(scores: dict[str, Tensor]) -> str:
    means = ", ".join(f"{name} {float(values.mean()):.3g}" for name, values in scores.items())
    return f"every score keeps its contract; means of {next(iter(scores.values())).numel()} clips: {means}."


def _spread(trainer: Trainer, groups: Groups, scores: dict[str, Tensor]) -> str:
    """Spread against noise by dimension, and what other settings would give when it is too little."""
    weights = trainer.rewards.weights
    found = _measured(trainer, groups, scores)
    ratio = overall(found, weights)
    dropped = 1 - float(group_advantages(scores, weights).kept.double().mean())
    each = ", ".join(f"{name} {_said(spread)}" for name, spread in found.items())
    sentence = f"inside a group the scores spread by {each}; {dropped:.0%} of the groups have none at all"
    if ratio >= LEAST_RATIO:
        return f"{sentence}."
    others = {}
    for override, algorithm in alternatives(trainer.algorithm).items():
        other = sample_groups(trainer, algorithm)
        others[override] = overall(_measured(trainer, other, judged(trainer, other.clips)[0]), weights)
    raise ReelignError(f"{sentence}. {_advice(ratio, others)}")


def _measured(trainer: Trainer, groups: Groups, scores: dict[str, Tensor]) -> dict[str, Spread]:
    """Judge the clips again, as they are and dithered."""
    moved = dithered(groups.clips, trainer.context.world.rank)
    again = [judged(trainer, clips)[0] for clips in (groups.clips, moved)]
    return spreads(scores, again, trainer.rewards.weights)


def _said(spread: Spread) -> str:
    if not spread.value:
        return "0"
    return f"{spread.value:.2g} ({_times(spread.ratio)} its noise)"


def _times(ratio: float) -> str:
    return "over 1000 x" if ratio > 1000 else f"{ratio:.1f} x"


def _advice(ratio: float, others: dict[str, float]) -> str:
    """What to change when rewards spread too little."""
    needed = "Nothing can be learned from that."
    if ratio:
        needed = f"Together that is {_times(ratio)} what the judges waver by themselves; {LEAST_RATIO:g} x is needed."
    tried = "; ".join(f"{override} gives {_times(other)}" for override, other in others.items())
    tried = f" Tried: {tried}." if tried else ""
    best = max(others, key=lambda override: others[override], default=None)
    if best is None or others[best] < LEAST_RATIO:
        return f"{needed}{tried} These rewards hardly tell the clips of a group apart: take other ones, or mend them."
    return f"{needed}{tried} Set {best}; a larger rlhf.group_size averages noise away, too."


def first_ratio(told: Told, algorithm: Algorithm) -> str:
    """How far the ratio of the first replay is from 1.

    Raises:
        ReelignError: so far that clips would be clipped.
    """
    if not told.ratio_drift < algorithm.clip_range:
        raise ReelignError(
            f"at the first replay the ratio is {told.ratio_drift:.1e} away from 1, beyond "
            f"rlhf.algorithm.clip_range={algorithm.clip_range:g}: clips would be clipped before anything changed. "
            "Raise it."
        )
    return (
        f"1 at the first replay, up to {told.ratio_drift:.1e}; rlhf.algorithm.clip_range={algorithm.clip_range:g} is "
        "wider."
    )


def _gradient(trainer: Trainer, groups: Groups) -> str:
    """Take the step, and look once more where the first gradient is 0 by construction."""
    names, missing = set(trainer.trainee.parameters), set(without_gradient(trainer))
    trainer.trainee.optimizer.step()
    waiting = {name for name in missing if ".lora_A." in name}
    if waiting:
        replayed(trainer, groups.rollouts)
        missing -= waiting - set(without_gradient(trainer))
    used = {_part(name) for name in names - missing}
    idle = {_part(name) for name in names} - used if used else set()
    missing = {name for name in missing if _part(name) not in idle}
    if missing:
        raise ReelignError(
            f"no gradient reaches {len(missing)} of {len(names)} trained tensors, which would stay as they are: "
            f"{', '.join(sorted(missing)[:3])}. Find out why the network does not use them, or choose what learns with "
            "rlhf.method=lora and rlhf.lora.targets."
        )
    sentence = f"reaches all {len([name for name in names if _part(name) in used])} trained tensors"
    if waiting:
        sentence += f", the {len(waiting)} lora_A after the first step, because lora_B starts at 0"
    if idle:
        sentence += f"; no rehearsed step lies at the levels of {', '.join(sorted(idle))}"
    return f"{sentence}."


def _part(name: str) -> str:
    """The denoiser of a trained tensor."""
    return name.partition(".")[0]
