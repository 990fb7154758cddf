"""A batch on a CPU, as slices of rows side by side.

The operations of a small network are too short for the cores to share each of them. On two cores the slices of 16
clips of the miniature take 0.79 of the time that the whole batch takes (`benchmarks/slices.py`). A clip does not depend
on its batch, and the slices do not depend on the number of cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

ROWS = 8
"""Clips that the network is given at once at least, if there are as many."""
Made = TypeVar("Made")


def side_by_side(rows: int, clips: float, work: Callable[[slice], Made]) -> list[Made]:
    """What `work` makes of each slice of so many rows, in their order, without gradients.

    The calling thread's share of the cores (`torch.get_num_threads`) is divided among the slices that run at once.

    Args:
        clips: of a row that the network is given at once, in the mean: more than one where a group branches, a block's
            share of a clip where the model is causal.
    """
    size = math.ceil(ROWS / clips)
    slices = [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
    cores = torch.get_num_threads()
    at_once = min(cores, len(slices))
    if at_once == 1:
        return [work(part) for part in slices]

    @torch.no_grad()
    def on_own_cores(part: slice) -> Made:
        torch.set_num_threads(cores // at_once)
        return work(part)

    try:
        with ThreadPoolExecutor(at_once, "slice") as threads:
            return list(threads.map(on_own_cores, slices))
    finally:
        torch.set_num_threads(cores)  # MKL knows one number for all threads
