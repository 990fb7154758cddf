"""Sampling a batch on a CPU: in slices, a core to each, against all rows at once on all cores, in one process.

    python benchmarks/slices.py --out benchmarks/results/slices.json

The miniature samples as it is deployed: guided, 20 steps. Each round times both, in alternating order; the ratio of a
round is slices over whole, and the median over the rounds is what counts. Whether the clips are the same to the bit is
written down too: it hangs on the machine's matrix product.
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

from reelign.models.load import load_model
from reelign.sampling import sample as module
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample


def main() -> None:
    """Time both ways at each batch size and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None, help="JSON to write.")
    arguments = parser.parse_args()
    config = SampleConfig(steps=arguments.steps, shift=3.0, solver="unipc", guidance_scale=2.0)
    rows = [compared(batch, config, arguments.rounds) for batch in arguments.batches]
    result = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows}
    print(json.dumps(result, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def compared(batch: int, config: SampleConfig, rounds: int) -> dict[str, object]:
    """Median seconds of both ways for a batch, and the ratio."""
    model = load_model("miniature", device="cpu")
    noise = initial_noise([(0, f"clip {row}", 0) for row in range(batch)], model.latent_shape(17, 32, 32))
    said = model.encode_text(["a large red circle moving left fast on a white background"] * batch)
    away = model.encode_text([""] * batch)

    def slices() -> Tensor:
        return sample(model, said, noise, config, away).latents

    def whole() -> Tensor:
        with mock.patch.object(module, "side_by_side", lambda rows, branches, work: [work(slice(0, rows))]):
            return slices()

    same = bool(torch.equal(slices(), whole()))  # and both are warm
    timed: list[tuple[float, float]] = []
    for number in range(rounds):
        order = (slices, whole) if number % 2 else (whole, slices)
        found = {way: seconds(way) for way in order}
        timed.append((found[slices], found[whole]))
    return {
        "batch": batch,
        "slices_seconds": statistics.median(own for own, _ in timed),
        "whole_seconds": statistics.median(other for _, other in timed),
        "ratio": statistics.median(own / other for own, other in timed),
        "same_to_the_bit": same,
    }


def seconds(way: Callable[[], Tensor]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
