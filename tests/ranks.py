"""A small network trained as `stages/sft.py` trains, on one rank (`run_alone`) or on several (`run_ranks`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from forks import call_on_ranks
from reelign.train.checkpoint import Checkpoints
from reelign.train.ema import Ema
from reelign.train.optim import OptimConfig, Optimizer
from reelign.train.parallel import World, full, leave

WIDTH = 6


@dataclass(frozen=True)
class Job:
    """What every rank does; `folder` receives `rank-R.pt` and the checkpoints."""

    folder: str
    steps: int = 6
    batch_size: int = 8
    accumulate: int = 1
    validate_every: int = 2
    dtype: str = "float32"


class Block(nn.Module):
    """A residual block: what `World.shard` shards by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(self.norm(x))))


class Network(nn.Module):
    """Blocks between two layers that belong to no block; sizes that two ranks cannot halve evenly."""

    _no_split_modules = ("Block",)

    def __init__(self) -> None:
        super().__init__()
        self.into, self.blocks, self.out = nn.Linear(3, WIDTH), nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def network(dtype: torch.dtype = torch.float32) -> Network:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().to(dtype)


def pairs(step: int, position: int) -> tuple[Tensor, Tensor]:
    """Input and target at a place of a step's global batch, whoever asks."""
    x = torch.randn(3, generator=torch.Generator().manual_seed(1000 * step + position))
    return x, torch.stack([x[0] * x[1] + torch.sin(x[2])])


def train(job: Job) -> None:
    """Resume if there is something, train, leave what this rank saw in `rank-R.pt`."""
    world = World.start()
    try:
        result = _train(job, world)
        torch.save(result, Path(job.folder) / f"rank-{world.rank}.pt")
        world.barrier()
    finally:
        world.stop()


def _train(job: Job, world: World) -> dict[str, Any]:
    dtype = getattr(torch, job.dtype)
    model = network(dtype)
    world.shard(model)
    trained = dict(model.named_parameters())
    config = OptimConfig(lr=0.02, warmup_steps=2, schedule="cosine", weight_decay=0.01, max_grad_norm=0.5)
    optimizer, ema = Optimizer(trained.items(), config, job.steps), Ema(trained.items(), 0.9)
    checkpoints = Checkpoints(Path(job.folder) / "checkpoints", keep_last=8)
    state = {"optimizer": optimizer, "ema": ema}
    step, losses, norms, validated = 0, {}, {}, {}
    if (latest := checkpoints.latest()) is not None:
        step = int(checkpoints.load(latest, state | {"step": step})["step"])
    resumed_at = step
    while step < job.steps:
        share = job.batch_size // world.size // job.accumulate
        total = torch.zeros(())
        for part in range(job.accumulate):
            first = (part * world.size + world.rank) * share
            batch = [pairs(step, position) for position in range(first, first + share)]
            x, y = (torch.stack(side) for side in zip(*batch, strict=True))
            loss = (model(x.to(dtype)).float() - y).square().mean() / job.accumulate
            loss.backward()
            total += loss.detach()
        norms[step] = optimizer.step()
        ema.update()
        losses[step] = float(world.mean(total))
        step += 1
        if step % job.validate_every == 0:
            with ema.swapped(), torch.no_grad():
                probe = torch.stack([pairs(10**6, position)[0] for position in range(4)])
                validated[step] = model(probe.to(dtype)).float()
            checkpoints.save(step, state | {"step": step}, metric=-losses[step - 1])
    weights = {name: full(p.detach()) for name, p in trained.items()}
    return {
        "resumed_at": resumed_at,
        "losses": losses,
        "norms": norms,
        "validated": validated,
        "weights": weights,
        "average": {name: full(value) for name, value in ema.average.items()},
        "units": [name for name, module in model.named_modules() if isinstance(module, FSDPModule)],
        "sharded": sum(p.to_local().numel() if world.mesh else p.numel() for p in trained.values()),  # type: ignore[operator]
    }


def run_alone(job: Job) -> dict[str, Any]:
    """Run a job on one rank, in this process."""
    train(job)
    return torch.load(Path(job.folder) / "rank-0.pt")


def run_ranks(ranks: int, job: Job) -> list[dict[str, Any]]:
    """Run a job on real processes that talk over gloo; what each rank saw."""
    call_on_ranks(ranks, _rank, job)
    return [torch.load(Path(job.folder) / f"rank-{rank}.pt") for rank in range(ranks)]


def _rank(job: Job) -> None:
    train(job)
    leave(0)
