"""Sampling a batch on a CPU: in slices, a core to each, against all rows at once on all cores, in one process.

    python benchmarks/slices.py --out benchmarks/results/slices.json

The miniature samples as it is deployed: guided, 20 steps. Each round times both, in alternating order; the ratio of a
round is slices over whole, and the median over the rounds is what counts. Whether the clips are the same to the bit is
written down too: it hangs on the machine's matrix product. Of a causal model, whose calls hold a fifth of a clip, the
slices as they are (eight clips' worth of rows) are timed against slices of eight rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from reelign.models.base import Conditions, VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling import sample as module
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from reelign.sampling.slices import side_by_side


def main() -> None:
    """Time both ways at each batch size and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="JSON to write.")
    arguments = parser.parse_args()
    rows = [of_whole(batch, arguments.steps, arguments.rounds) for batch in arguments.batches]
    blocks = [of_blocks(batch, min(arguments.steps, 4), arguments.rounds) for batch in arguments.batches]
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows, "blocks": blocks}
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def of_whole(batch: int, steps: int, rounds: int) -> dict[str, object]:
    """Slices against the whole batch."""
    model, config = load_model("miniature", device="cpu"), SampleConfig(steps=steps, solver="unipc", guidance_scale=2.0)
    noise, said, away = inputs(model, batch)

    def slices() -> Tensor:
        return sample(model, said, noise, config, away).latents

    def whole() -> Tensor:
        with mock.patch.object(module, "side_by_side", lambda rows, clips, work: [work(slice(0, rows))]):
            return slices()

    return {"batch": batch} | compared({"slices": slices, "whole": whole}, rounds)


def of_blocks(batch: int, steps: int, rounds: int) -> dict[str, object]:
    """Slices of a causal model against slices of eight rows; its weights were not made for it, which costs nothing."""
    model, config = load_model("miniature", device="cpu"), SampleConfig(steps=steps, solver="renoise", guidance_scale=1)
    model.make_causal(CausalConfig(block=1))
    noise, said, _ = inputs(model, batch)

    def slices() -> Tensor:
        return sample(model, said, noise, config).latents

    def eight() -> Tensor:
        with mock.patch.object(module, "side_by_side", lambda rows, clips, work: side_by_side(rows, 1, work)):
            return slices()

    return {"batch": batch} | compared({"slices": slices, "eight_rows": eight}, rounds)


def inputs(model: VideoModel, batch: int) -> tuple[Tensor, Conditions, Conditions]:
    """Noise, and conditions of a prompt and of the negative one."""
    noise = initial_noise([(0, f"clip {row}", 0) for row in range(batch)], model.latent_shape(17, 32, 32))
    said = model.encode_text(["a large red circle moving left fast on a white background"] * batch)
    return noise, said, model.encode_text([""] * batch)


def compared(ways: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, object]:
    """Median seconds of two ways, and the ratio of the first to the second."""
    (first, one), (second, other) = ways.items()
    same = bool(torch.equal(one(), other()))  # and both are warm
    timed: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (one, other) if number % 2 else (other, one)
        found = {way: seconds(way) for way in order}
        timed.append((found[one], found[other]))
    return {
        f"{first}_seconds": statistics.median(own for own, _ in timed),
        f"{second}_seconds": statistics.median(theirs for _, theirs in timed),
        "ratio": statistics.median(own / theirs for own, theirs in timed),
        "same_to_the_bit": same,
    }


def seconds(way: Callable[[], Tensor]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
