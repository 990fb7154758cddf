"""A rehearsal of preference optimisation: one update on the first pairs of the run, by the stage's own trainer in a
folder that is thrown away.

Before its first update the model is its own reference: every margin is 0, and the loss follows from the share of ties
alone. It is log 2 where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed.tensor import DTensor

from reelign.doctor.finding import Finding, look, on_all_ranks
from reelign.doctor.gradient import reached
from reelign.doctor.memory import planned_ranks
from reelign.doctor.rehearsal import context_in, equal_ranks, now, within_memory
from reelign.errors import ReelignError
from reelign.flow.preference import preference_loss
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.sampling.noise import generator
from reelign.stages.asked import drawn
from reelign.stages.context import StageContext
from reelign.stages.dpo import DpoConfig, Trainer
from reelign.stages.preferences import EncodedPair, Pair, Preferences, encoded
from reelign.train.optim import Optimizer
from reelign.train.parallel import World

ALIKE = {"float32": 1e-3, "bfloat16": 0.1}
"""How far the first loss may lie from that of a model which is its own reference, nats."""
ADVICE = "Lower dpo.micro_batch, turn on dpo.gradient_checkpointing, or use dpo.method=lora or more ranks."


def rehearsed(
    recipe: Recipe,
    config: DpoConfig,
    chosen: Preferences | Collection[str],
    world: World,
    cost: Callable[[float], str],
) -> Iterator[Finding]:
    """The findings of a rehearsal.

    Args:
        recipe, config: what is rehearsed.
        chosen: the pairs of the run; where nobody has voted yet its prompts, which get two clips of noise each.
        world: all ranks rehearse.
        cost: says what the run costs, given the measured seconds of one forward pass of one clip.

    Raises:
        ReelignError: the model does not load, a clip cannot be read, or the device's memory is full.
    """
    small = config.model_copy(update={"pairs_per_update": at_once(config) * world.size, "track": []})
    with TemporaryDirectory() as folder, within_memory(ADVICE):
        context = context_in(Path(folder), recipe, world)
        trainer = on_all_ranks(world, lambda: rehearsing(chosen, context, small))
        yield Finding("dpo.rehearsal", True, _who(recipe, trainer, isinstance(chosen, Preferences)))
        found: dict[str, float] = {}

        def update() -> str:
            sentence, numbers = _updated(trainer)
            found.update(numbers)
            return sentence

        yield look("dpo.update", update)
        if not found:
            return
        yield look("dpo.start", lambda: at_rest(found["loss"], trainer))
        optimizers = {"the model": trainer.trainee.optimizer}
        yield look("dpo.gradient", lambda: reached(optimizers, world, trainer.one_update, "dpo"))
        yield look("dpo.ranks", lambda: equal_ranks(world, trainer.trainee.parameters))
        yield Finding("dpo.cost", True, cost(found["seconds"] * world.size / work(small)))


def at_once(config: DpoConfig) -> int:
    """Pairs of a rank in one micro-batch."""
    return min(config.micro_batch, max(1, config.pairs_per_update // planned_ranks()))


def work(config: DpoConfig) -> int:
    """Of an update, in forward passes of one clip: both clips of a pair under the model and its reference, and a
    backward pass, which is worth two, and three when it computes again."""
    return config.pairs_per_update * 2 * (1 + 1 + (3 if config.gradient_checkpointing else 2))


def rehearsing(chosen: Preferences | Collection[str], context: StageContext, config: DpoConfig) -> Trainer:
    """The stage's trainer on as many pairs as an update takes, the first of the run."""
    model = load_model(context.parent, dtype=context.dtype, device=context.world.device)
    if isinstance(chosen, Preferences):
        first = drawn(chosen.training, range(config.pairs_per_update), context.seed)
        pairs = encoded(list(dict.fromkeys(first)), model, context)
    else:
        prompts = sorted(chosen)[: config.pairs_per_update]
        chosen = Preferences([Pair(text, text, "", "", 1.0) for text in prompts], [], 0, {})
        pairs = stand_ins(chosen.training, model, context)
    return Trainer(model, chosen, pairs, context, config)


def stand_ins(pairs: list[Pair], model: VideoModel, context: StageContext) -> list[EncodedPair]:
    """Clips of noise in place of those that do not exist yet, each pair's own."""
    size, found = context.battery, []
    for pair in pairs:
        source = generator("doctor", context.seed, pair.id)
        frames = torch.randint(256, (2, size.frames, size.height, size.width, 3), dtype=torch.uint8, generator=source)
        winner, loser = model.encode_video(frames.to(model.device)).cpu()
        conditions = {name: value[0].cpu() for name, value in model.encode_text([pair.prompt]).items()}
        found.append(EncodedPair(pair.id, winner, loser, conditions, pair.decided))
    return found


def at_rest(loss: float, trainer: Trainer) -> str:
    """Whether the loss before the first update is that of a model which is its own reference.

    Raises:
        ReelignError: it is not.
    """
    world = trainer.context.world
    decided = torch.tensor([pair.decided for pairs, _, _ in trainer.batches() for pair in pairs], device=world.device)
    nothing = torch.zeros(len(decided), device=world.device)
    wanted = float(world.mean(preference_loss(nothing, decided, trainer.k).mean()))
    share = "log 2, as no pair is a tie" if trainer.k == 1 else "what the share of ties alone gives"
    if not abs(loss - wanted) <= ALIKE[trainer.context.dtype]:
        raise ReelignError(
            f"before the first update model and reference are the same network, and the loss must be {wanted:.4f} "
            f"({share}), but it is {loss:.4f}: the model would follow that error. Look for what differs between them "
            "(dropout, adapters that do not start at 0, kernels that are not deterministic), or lower dpo.beta."
        )
    return f"the first loss is {loss:.4f}, {share}: the model begins as its reference."


def _updated(trainer: Trainer) -> tuple[str, dict[str, float]]:
    """One update; what is said of it, and its numbers with the "seconds" that it took."""
    optimizer = trainer.trainee.optimizer
    before, began = _marks(optimizer), now()
    numbers = trainer.one_update() | {"seconds": now() - began}
    if not math.isfinite(numbers["loss"]):
        raise ReelignError(
            f"the loss of the first update is {numbers['loss']}. Lower dpo.beta, or try dtype=float32 to see whether "
            "precision is the reason."
        )
    changed = trainer.context.world.sum((before != _marks(optimizer)).any(1).double()).count_nonzero()
    if not changed:
        raise ReelignError(
            f"one update leaves all {len(before)} trained tensors as they were: dpo.optim.lr="
            f"{trainer.config.optim.lr:g} is lost in rounding. Raise it."
        )
    said = f"loss {numbers['loss']:.3g}, grad norm {numbers['grad_norm']:.3g}"
    return (
        f"one update of {trainer.config.pairs_per_update} pairs in {numbers['seconds']:.2g} seconds changes "
        f"{int(changed)} of {len(before)} trained tensors: {said}.",
        numbers,
    )


def _marks(optimizer: Optimizer) -> torch.Tensor:
    """(tensors, 2): sum and sum of squares of the masters, this rank's parts."""
    found = []
    for master in optimizer.masters.values():
        own = (master.to_local() if isinstance(master, DTensor) else master).detach().double()
        found.append(torch.stack([own.sum(), own.square().sum()]))
    return torch.stack(found)


def _who(recipe: Recipe, trainer: Trainer, voted: bool) -> str:
    count = trainer.config.pairs_per_update
    sentence = f"one update on {count} pairs, read and encoded, from the weights of {recipe.model}"
    if not voted:
        sentence = f"one update on {count} pairs of noise, as nobody has voted yet, from the weights of {recipe.model}"
    if recipe.sft is not None:
        return f"{sentence} itself: its parent in the run, the fine-tuned model, does not exist yet."
    return f"{sentence}."
