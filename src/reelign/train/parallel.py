"""The ranks that train together. One rank needs no special case: every method is valid alone.

`torchrun` launches; parameters are sharded by FSDP2 (`fully_shard`) over a one-dimensional `DeviceMesh`.
"""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks.

    Attributes:
        rank, size: of all processes.
        device: where this rank computes.
        mesh: the data-parallel mesh; None when alone.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None

    @classmethod
    def start(cls) -> World:
        """Join the ranks that torchrun launched (nccl on CUDA, gloo on CPUs); alone when there are none."""
        cuda = torch.cuda.is_available()
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls(0, 1, torch.device("cuda" if cuda else "cpu"), None)
        device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if cuda else "gloo")
        mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("data",))
        return cls(dist.get_rank(), size, device, mesh)

    def stop(self) -> None:
        """Leave the ranks."""
        if self.mesh is not None:
            dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files that exist once."""
        return self.rank == 0

    def shard(self, module: nn.Module) -> None:
        """Shard each transformer block and then the rest over the ranks; gradients are reduced in float32.

        A module of lower precision is sharded in float32 and gathered in its own type: the shards are the master
        weights. Its inputs are left as they are, because a timestep would lose its digits in bfloat16.
        """
        if self.mesh is None:
            return
        own = {parameter.dtype for parameter in module.parameters()} - {torch.float32}
        policy = MixedPrecisionPolicy(
            param_dtype=own.pop() if own else None, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        module.float()
        for block in blocks(module):
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        # By default the outermost module keeps its gathered weights after a forward pass. After a validation, whose
        # averaged weights are swapped out again, the next training step would then see weights of the average.
        fully_shard(module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)

    def mean(self, value: Tensor) -> Tensor:
        """Mean over all ranks."""
        return self.sum(value) / self.size

    def sum(self, value: Tensor) -> Tensor:
        """Sum over all ranks."""
        if self.mesh is None:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Tensor) -> Tensor:
        """The values of all ranks, one after the other along the first dimension; equal shapes on all ranks."""
        if self.mesh is None:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.mesh is not None:
            dist.barrier()


def leave(code: int) -> NoReturn:
    """End this process, one of several ranks, without the interpreter's own end.

    A thread of gloo may still hold the tensors of the last collective. If it lets go of them while Python ends, Python
    ends that thread, which C++ takes for a crash: one finished run in fifty would report failure.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the classes that its `_no_split_modules` names."""
    names = set(getattr(module, "_no_split_modules", None) or ())
    return [child for child in module.modules() if type(child).__name__ in names]


def full(value: Tensor) -> Tensor:
    """A sharded tensor as a whole one; every rank must call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value
