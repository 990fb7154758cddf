"""Checks of votes and of what learns from them: a reward that is fitted to them, and preference optimisation.

Votes of people are read and their clips looked at. Votes of simulated raters do not exist yet, but their prompts, axes
and number follow from the recipe, and so does what will be held out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reelign.data.clip import read_clip
from reelign.doctor.cost import CPU_RATE, not_rehearsed, operations, rounded
from reelign.doctor.dpo import at_once, rehearsed, work
from reelign.doctor.feedback_memory import dpo_memory, network_memory, votes_memory
from reelign.doctor.finding import Finding, any_failed, look, obtain
from reelign.doctor.memory import planned_ranks
from reelign.doctor.prompts import counted, unread
from reelign.doctor.sft import lora_coverage
from reelign.errors import ReelignError
from reelign.evaluate.battery import tasks
from reelign.feedback.collected import collected
from reelign.feedback.vote import AXES, Axis, Vote, missing_clips
from reelign.miniature.captions import read_prompt
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.vlm_template import checked_template, default_template
from reelign.sampling.sample import SampleConfig, own_sampler
from reelign.stages.asked import build_prompts, drawn
from reelign.stages.dpo import DpoConfig
from reelign.stages.preferences import Preferences, preferences
from reelign.stages.reward import Part, RewardConfig, parts_of
from reelign.stages.sources import LEVELS
from reelign.stages.votes import PARENT, SimulatedVotes, VotesConfig, VotesOfPeople
from reelign.train.parallel import World

DECODED = 32
"""Clips of a source of votes that are decoded, evenly spread over it."""
SIMULATED_AXES: tuple[Axis, ...] = tuple(axis for axis in AXES if axis in {*MiniatureReward.dimensions, "overall"})
HARD = 0.75
"""Agreement with people that few rewards reach."""
HALF_WIDTH = 0.98
"""Of the 95 % interval of a share near one half, times the root of the votes."""


@dataclass
class Expected:
    """The votes that a run will have, as far as it can be known.

    Attributes:
        plain: how many votes there are that count, by axis and prompt.
        given: those that exist; the others are still to be simulated.
        sizes: of the decoded clips, (frames, height, width).
        simulated: whether there are others.
    """

    plain: Counter[tuple[Axis, str]] = field(default_factory=Counter)
    given: list[Vote] = field(default_factory=list)
    sizes: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    simulated: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Those with votes, in the order of the literature."""
        there = {axis for axis, _ in self.plain}
        return tuple(axis for axis in AXES if axis in there)

    @property
    def prompts(self) -> set[str]:
        """Those with votes."""
        return {prompt for _, prompt in self.plain}


def examine_feedback(recipe: Recipe, model: VideoModel, world: World) -> Iterator[Finding]:
    """The findings of a recipe's `votes:`, `reward:` and `dpo:`; every rank looks."""
    assert recipe.votes is not None
    expected, read = Expected(), list[Finding]()
    for number, source in enumerate(recipe.votes.sources):
        key = f"votes.sources.{number}"
        if isinstance(source, VotesOfPeople):
            read.append(look(key, lambda s=source, k=key: _people(s, k, expected)))
        else:
            read.append(look(key, lambda s=source, k=key: _simulated(recipe, s, k, model, expected)))
    yield from read
    learners = [name for name in ("reward", "dpo") if getattr(recipe, name) is not None]
    if any_failed(read, world):
        yield from (Finding(name, True, "left out until the lines above pass.") for name in learners)
        return
    yield look("votes.prompts", lambda: _prompts(recipe, expected))
    if recipe.reward is not None:
        yield from _reward(recipe, recipe.reward, expected)
    if recipe.dpo is not None:
        yield from _dpo(recipe, recipe.dpo, model, expected, world)


def expected_axes(recipe: Recipe) -> tuple[Axis, ...]:
    """The axes that the votes of a run are on; none where its files cannot be read, which other lines say."""
    found = Expected()
    for source in (recipe.votes or VotesConfig.model_construct(sources=[])).sources:
        if isinstance(source, SimulatedVotes):
            found.plain.update((axis, "") for axis in SIMULATED_AXES)
            continue
        votes, _ = obtain("votes", lambda s=source: (collected(s.path), ""))
        found.plain.update((vote.axis, "") for vote in votes or [] if vote.kind == "plain")
    return found.axes


def _people(source: VotesOfPeople, key: str, expected: Expected) -> str:
    """Whether the votes can be read and their clips are there."""
    votes = collected(source.path)
    if missing := missing_clips(votes):
        raise ReelignError(
            f"{key}.path: {source.path} names {len(missing)} clips that are not there, first {missing[0]}. Put them "
            "back, or leave their votes out."
        )
    clips = list(dict.fromkeys(side.clip for vote in votes for side in (vote.a, vote.b)))
    some = clips[:: max(1, -(-len(clips) // DECODED))]
    for clip in some:
        expected.sizes[read_clip(Path(clip)).frames.shape[:3]] += 1
    expected.given += votes
    expected.plain.update((vote.axis, vote.prompt) for vote in votes if vote.kind == "plain")
    kinds, sources = Counter(vote.kind for vote in votes), Counter(vote.source for vote in votes)
    whose = {"person": "people", "simulated": "simulated raters", "model": "models"}
    said = [f"{count:,} votes of {whose[name]}" for name, count in sources.items()]
    said.append(f"{len({vote.rater for vote in votes})} raters")
    said.append(f"all {len(clips)} clips are there, {len(some)} of them decoded")
    ties = sum(vote.verdict == "same" for vote in votes) / len(votes)
    said.append(f"{ties:.0%} are ties, {kinds['gold'] / len(votes):.0%} gold and {kinds['repeat'] / len(votes):.0%}")
    return f"{source.path}: {', '.join(said)} repeats, which nothing learns from."


def _simulated(recipe: Recipe, source: SimulatedVotes, key: str, model: VideoModel, expected: Expected) -> str:
    """Whether simulated raters can judge what is asked for, and what their clips cost."""
    kept, said = counted(source.prompts)
    if strange := [text for text in kept if read_prompt(text) is None]:
        raise ReelignError(
            f"{key}.prompts: {len(strange)} of {len(kept)} say something that is not in the miniature's words, first "
            f"{strange[0]!r}. Simulated raters know the miniature's world alone: ask for that, or ask people."
        )
    for name in dict.fromkeys(name for name in source.models if name not in (PARENT, recipe.model)):
        try:
            load_model(name, dtype=recipe.dtype, device="cpu")
        except ReelignError as error:
            raise ReelignError(f"{key}.models: {error}") from error
    votes_memory(recipe, source, key, model)
    asked = Counter(prompt.text for prompt in drawn(build_prompts(source.prompts), range(source.pairs), recipe.seed))
    expected.simulated = True
    for axis in SIMULATED_AXES:
        for text, pairs in asked.items():
            expected.plain[axis, text] += source.raters * pairs
    samplers = source.samplers or [own_sampler(model) or recipe.sampler]
    evaluations = round(2 * source.pairs * sum(sampler.evaluations for sampler in samplers) / len(samplers))
    hours = evaluations * operations(recipe.battery, model) / CPU_RATE / 3600
    said += unread(kept, model)
    if source.pairs < len(kept):
        said.append(f"{len(kept) - len(asked)} of them are never asked")
    votes = source.raters * source.pairs * len(SIMULATED_AXES)
    return (
        f"{'; '.join(said)}. {source.pairs:,} pairs and {votes:,} simulated votes on {', '.join(SIMULATED_AXES)}; "
        f"their clips take {rounded(evaluations)} network evaluations, {_steps(samplers)} each "
        f"(two CPU cores: about {hours:.1g} hours)."
    )


def _steps(samplers: Sequence[SampleConfig]) -> str:
    return " or ".join(dict.fromkeys(f"{sampler.steps} {sampler.solver} steps" for sampler in samplers))


def _prompts(recipe: Recipe, expected: Expected) -> str:
    """How many prompts the votes are on, and how many of them judge the run."""
    battery = {task.prompt for split in ("validation", "test") for task in tasks(recipe.battery, split)}
    prompts, shared = expected.prompts, expected.prompts & battery
    if not shared:
        return f"votes on {len(prompts)} prompts, none of which the battery asks."
    consequences = {"dpo": "`dpo` leaves their pairs out", "reward": "`reward` learns from them, ahead of its judge"}
    said = [words for name, words in consequences.items() if getattr(recipe, name) is not None]
    return f"votes on {len(prompts)} prompts; the battery asks {len(shared)} of them too: {', and '.join(said)}."


def _reward(recipe: Recipe, config: RewardConfig, expected: Expected) -> Iterator[Finding]:
    yield look("reward.votes", lambda: _fitted(config, expected))
    yield look("reward.network", lambda: _network(recipe, config, expected))
    yield look("reward.budget", lambda: _divided("reward.batch_size", config.batch_size, config.micro_batch, "votes"))


def _fitted(config: RewardConfig, expected: Expected) -> str:
    """What is learned from and what is held out, and how good a reward must be to be told from chance."""
    _there("reward.axes", config.axes or (), expected)
    axes = config.axes or expected.axes
    part = parts_of((prompt for axis, prompt in expected.plain if axis in axes), config.held_out)
    votes: dict[Part, Counter[Axis]] = {"training": Counter(), "validation": Counter(), "test": Counter()}
    for (axis, prompt), count in expected.plain.items():
        if axis in axes:
            votes[part[prompt]][axis] += count
    test, worst = votes["test"], min(axes, key=lambda axis: votes["test"][axis])
    needed = 0.5 + HALF_WIDTH / math.sqrt(test[worst] * (1 - _ties(expected, worst)) or 1e-9)
    held = f"{', '.join(f'{test[axis]} on {axis}' for axis in axes)}, of {_many(part, 'test')}, test it"
    if needed >= 1:
        raise ReelignError(
            f"{held}: too few on {worst!r} to tell any reward from chance. Collect more votes, or raise "
            "reward.held_out."
        )
    often = config.updates * config.batch_size / max(votes["training"].values())
    return (
        f"{sum(votes['training'].values()):,} votes on {_many(part, 'training')} teach it, each {often:.2g} times; "
        f"{_many(part, 'validation')} say when to stop; {held}. To be told from chance it must agree with at least "
        f"{needed:.0%} of those on {worst}{'' if needed < HARD else ', which few rewards do: collect more votes'}."
    )


def _network(recipe: Recipe, config: RewardConfig, expected: Expected) -> str:
    """What is fitted, and whether it is there and fits into memory."""
    network = config.network
    axes = config.axes or expected.axes
    if network.kind == "miniature":
        odd = [size for size in expected.sizes if size[0] != 17 or min(size[1:]) != 32]
        small = f"; it sees clips of {'x'.join(map(str, odd[0]))} as 17x32x32" if odd else ""
        return f"the miniature's eye and a head for {', '.join(axes)}{small}."
    if network.template is not None:
        checked_template(network.template, axes)
    else:
        default_template(axes)
    return network_memory(recipe, config, network, axes)


def _dpo(recipe: Recipe, config: DpoConfig, model: VideoModel, expected: Expected, world: World) -> Iterator[Finding]:
    chosen, votes = obtain("dpo.votes", lambda: _preferences(recipe, config, expected))
    read = [votes]
    if expected.sizes:
        read.append(look("dpo.clips", lambda: _sizes(recipe, expected)))
    read.append(
        look("dpo.budget", lambda: _divided("dpo.pairs_per_update", config.pairs_per_update, config.micro_batch))
    )
    if config.method == "lora":
        read.append(look("dpo.lora", lambda: lora_coverage(model, config)))
    yield from read
    if any_failed(read, world) or chosen is None:
        yield Finding("dpo.rehearsal", True, "left out until the lines above pass.")
        return
    pairs = len({(axis, text) for axis, text in expected.plain if axis in config.axes})
    memory = look("dpo.memory", lambda: dpo_memory(recipe, config, model, pairs))
    yield memory
    needed = 0.0
    if world.device.type == "cpu":
        small = config.model_copy(update={"pairs_per_update": at_once(config)})
        updates = 2 if config.method == "lora" else 1
        needed = updates * work(small) * operations(recipe.battery, model) / CPU_RATE
    if why := not_rehearsed(memory, needed, world):
        yield Finding("dpo.rehearsal", True, f"left out: {why}. Loss and gradients are not looked at.")
        yield Finding("dpo.cost", True, _dpo_cost(recipe, config, expected))
        return
    try:
        yield from rehearsed(recipe, config, chosen, world, lambda unit: _dpo_cost(recipe, config, expected, unit))
    except ReelignError as error:
        yield Finding("dpo.rehearsal", False, str(error))


def _preferences(recipe: Recipe, config: DpoConfig, expected: Expected) -> tuple[Preferences | set[str], str]:
    """Pairs with a winner, by the stage's own rule where all votes exist; else the prompts that will be voted on."""
    _there("dpo.axes", config.axes, expected)
    if expected.simulated:
        said = f"pairs are decided by {', '.join(config.axes)}, once simulated raters have voted."
        return {prompt for axis, prompt in expected.plain if axis in config.axes}, said
    found = preferences(expected.given, config.axes, recipe.battery, config.held_out)
    said = [f"{len(found.training)} pairs to learn from, {found.ties} of them ties", f"{len(found.held_out)} held out"]
    if found.of_battery:
        said.append(f"{found.of_battery} left out because the battery asks their prompt")
    return found, f"{'; '.join(said)}."


def _sizes(recipe: Recipe, expected: Expected) -> str:
    """Whether clips are as the model is deployed."""
    size = recipe.battery
    wanted = (size.frames, size.height, size.width)
    if odd := [found for found in expected.sizes if found != wanted]:
        raise ReelignError(
            f"{sum(expected.sizes[found] for found in odd)} of {expected.sizes.total()} decoded clips have "
            f"{'x'.join(map(str, odd[0]))} (frames x height x width), and the battery {'x'.join(map(str, wanted))}: "
            "set battery.frames, .height and .width to those of the clips; training and judgement are at one size."
        )
    return f"{expected.sizes.total()} clips have the battery's size, {'x'.join(map(str, wanted))}."


def _divided(key: str, count: int, at_once: int, what: str = "pairs") -> str:
    """How an update is divided over ranks and micro-batches."""
    ranks = planned_ranks()
    if count % ranks:
        raise ReelignError(f"{key}={count} does not divide over {ranks} ranks: use {max(1, count // ranks) * ranks}.")
    share = count // ranks
    return f"an update is {count} {what}: {ranks} ranks x {-(-share // at_once)} passes x {min(share, at_once)}."


def _dpo_cost(recipe: Recipe, config: DpoConfig, expected: Expected, unit: float | None = None) -> str:
    """Network evaluations of the stage: two clips under the model and under its parent for each pair; and its hours,
    where the seconds of one forward pass of one clip are known."""
    learned = 4 * config.pairs_per_update * config.updates
    validations = 1 + -(-config.updates // config.validate_every)
    clips = validations * recipe.battery.validation_count + recipe.battery.count
    apart = round(config.held_out * len(expected.prompts))
    judged = clips * recipe.sampler.evaluations + validations * 4 * len(LEVELS) * apart
    time = ""
    if unit is not None:
        hours = (config.updates * work(config) / planned_ranks() + judged) * unit / 3600
        time = f" ({hours:.2g} hours here in all)"
    return (
        f"about {rounded(learned)} network evaluations to learn, half of them with a backward pass, and "
        f"{rounded(judged)} for validations and the battery{time}."
    )


def _there(key: str, axes: Iterable[Axis], expected: Expected) -> None:
    if missing := [axis for axis in axes if axis not in expected.axes]:
        there = ", ".join(expected.axes) or "nothing"
        raise ReelignError(f"{key}: no vote is on {missing[0]!r}; there are votes on {there}.")


def _ties(expected: Expected, axis: str) -> float:
    """Share of ties on an axis, of the votes that exist."""
    own = [vote.verdict == "same" for vote in expected.given if vote.axis == axis]
    return sum(own) / len(own) if own else 0.0


def _many(part: Mapping[str, str], name: Part) -> str:
    count = sum(found == name for found in part.values())
    return f"{count} prompt{'' if count == 1 else 's'}"
