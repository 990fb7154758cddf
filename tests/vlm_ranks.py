"""A vision-language model that is fitted to votes, on one rank (`update`) or several processes (`update_on_ranks`)."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forks import call_on_ranks
from reelign.data.clip import Clip
from reelign.flow.ties import tie_nll
from reelign.rewards.vlm_network import VlmLora, VlmNetwork, VlmNetworkConfig
from reelign.train.optim import OptimConfig, Optimizer
from reelign.train.parallel import World, full, leave

PAIRS = ((0, 1), (2, 3))


def update(base: Path) -> dict[str, Tensor]:
    """The weights that learn after three updates on two pairs of clips, shared out over the ranks."""
    world = World.start()
    try:
        small = VlmLora(rank=4, alpha=8, targets=["q_proj", "down_proj"])
        config = VlmNetworkConfig(kind="vlm", base=base, spread=True, lora=small, least_pixels=1, dtype="float32")
        network = VlmNetwork(config, ("visual", "text"), device="cpu").train()
        draw = np.random.default_rng(0)
        clips = [Clip(draw.integers(0, 256, (8, 64, 64, 3), np.uint8), 4.0, "fox " * n, str(n)) for n in range(4)]
        seen = network.read(clips)
        world.shard(network)
        optimizer = Optimizer(network.named_parameters(), OptimConfig(lr=1e-3, eps=1e-3), total_steps=3)
        for _ in range(3):
            mine = PAIRS[world.rank :: world.size]
            means = network([seen[side] for pair in mine for side in pair])[..., 0]
            difference = means[0::2] - means[1::2]
            tie_nll(difference, torch.ones_like(difference), 5.0).mean().backward()
            optimizer.step()
        return {name: full(value.detach()) for name, value in network.named_parameters() if value.requires_grad}
    finally:
        world.stop()


def update_on_ranks(ranks: int, base: Path, out: Path) -> list[dict[str, Tensor]]:
    """What each of several real processes is left with."""
    call_on_ranks(ranks, _rank, base, out)
    return [torch.load(out / f"rank-{rank}.pt") for rank in range(ranks)]


def _rank(base: Path, out: Path) -> None:
    torch.save(update(base), out / f"rank-{os.environ['RANK']}.pt")
    leave(0)
