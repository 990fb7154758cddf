"""The command line as a user runs it: a process of its own, and what it printed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from forks import environment, run, run_ranks
from miniatures import thin_miniature

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "recipes" / "demo.yaml"
TINY = (
    f"model={thin_miniature()}",
    "curate=null",
    "battery.count=4",
    "battery.validation_count=2",
    "sampler.steps=3",
    "sft.data=[{kind: miniature, count: 12}]",
    "sft.batch_size=4",
    "sft.steps=12",
    "sft.validate_every=6",
    "sft.save_every=2",
    "votes=null",
    "reward=null",
    "rlhf=null",
    "enhance=null",
    "distill=null",
)
"""A run of the demo's recipe in seconds."""


def command(*arguments: str | Path) -> list[str]:
    """The command line of `reelign ARGUMENTS`."""
    return [sys.executable, "-m", "reelign.cli", *map(str, arguments)]


def reelign(*arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `reelign ARGUMENTS` to its end, in a fork that has imported everything."""
    return run(arguments, **extra)


def on_ranks(ranks: int, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `reelign ARGUMENTS` on several ranks of this machine, in forks that have imported everything."""
    return run_ranks(ranks, arguments, **{"CUDA_VISIBLE_DEVICES": ""} | extra)


def torchrun(ranks: int, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """The same as a user starts it: torchrun, and processes that import all."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*launch, "-m", "reelign.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(**{"CUDA_VISIBLE_DEVICES": ""} | extra),
        timeout=300,
        check=False,
    )
