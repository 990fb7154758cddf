"""SFT on the miniature against a bare loop of the same model, batch and optimiser, in one process.

    python benchmarks/sft_throughput.py --rounds 7 --steps 12

Each round times the same number of steps of both, in alternating order; the ratio of a round is stage over bare loop,
and the median over the rounds is what counts (target: at most 1.10).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from reelign.evaluate.battery import BatteryConfig
from reelign.flow.path import interpolate, velocity_target
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from reelign.stages.context import StageContext
from reelign.stages.sft import SftConfig, Trainer
from reelign.stages.sources import MiniatureSource, build_training_set
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.optim import OptimConfig
from reelign.train.parallel import World

BATCH = 32


def main() -> None:
    """Time both loops and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--out", type=Path, default=None, help="JSON to write.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stage, bare = stage_step(Path(folder)), bare_step()
        for step in (stage, bare):
            seconds(step, 3)
        rounds = []
        for index in range(arguments.rounds):
            order = (stage, bare) if index % 2 else (bare, stage)
            timed = {step: seconds(step, arguments.steps) for step in order}
            rounds.append((timed[stage] / arguments.steps, timed[bare] / arguments.steps))
    ratios = [ours / theirs for ours, theirs in rounds]
    result = {
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        "stage_seconds_per_step": statistics.median(ours for ours, _ in rounds),
        "bare_seconds_per_step": statistics.median(theirs for _, theirs in rounds),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def stage_step(folder: Path) -> Callable[[], object]:
    """A step of `stages/sft.py` with everything that belongs to it: loader, noise, EMA, tracking."""
    context = StageContext(
        folder=folder / "sft",
        parent="miniature",
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SampleConfig(),
        battery=BatteryConfig(),
        world=World.start(),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )
    config = SftConfig(
        data=[MiniatureSource(kind="miniature", count=256)],
        steps=10_000,
        batch_size=BATCH,
        optim=OptimConfig(lr=1e-5),
    )
    model = load_model("miniature")
    trainer = Trainer(model, build_training_set(config.data, model, context), context, config)

    def step() -> None:
        numbers = trainer.one_step()
        trainer.step += 1
        trainer.tracker.log(trainer.step, **numbers)

    return step


def bare_step() -> Callable[[], object]:
    """The same network, batch and optimiser as one would write them in ten lines."""
    model = load_model("miniature")
    network = model.pipeline.transformer.requires_grad_(True).train()
    device = model.device
    latents = torch.randn(BATCH, *model.latent_shape(17, 32, 32), device=device)
    text = model.encode_text(["a large red circle moving left fast on a white background"] * BATCH)["text"]
    adamw = torch.optim.AdamW(network.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)

    def step() -> None:
        eps, sigma = torch.randn_like(latents), torch.rand(BATCH, device=device)
        noisy = interpolate(latents, eps, sigma)
        predicted = network(noisy, 1000 * sigma, text, return_dict=False)[0]
        loss = (predicted - velocity_target(latents, eps)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        loss.item()

    return step


def seconds(step: Callable[[], object], count: int) -> float:
    """Wall time of `count` steps."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
