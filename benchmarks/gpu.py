"""SFT, RL, distillation and sampling on the Wan 2.1-1.3B architecture with random weights, on one CUDA device.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --only rl 33x240x416               # rows that hold all of these words
    python benchmarks/gpu.py --only rl 81x480x832 flow-grpo --prompts 1 --group 2
    python benchmarks/gpu.py --only stream

At 33 x 240 x 416 and 81 x 480 x 832:

- the SFT step (forward, backward, AdamW with fp32 master weights) and one guided sampling step: seconds (median),
  tokens a second, peak memory and MFU against the matmul rate that this device reaches, with gradient checkpointing
  and regional compilation on and off. The FLOP count holds the matrix products and attention of the network once
  forward and twice backward; recomputation is not useful work and does not count;
- an RL update of our preset and of Flow-GRPO over all steps, with guidance and without: seconds by phase, network
  evaluations, clips an hour and peak memory (`gpu_rlhf.py`). At 81 frames `flow-grpo` needs about 3,000 network
  evaluations and their backward passes for 16 clips, most of an hour on an H100 (an estimate); nothing of its cost is
  shared between clips, so fewer of them (`--prompts`, `--group`) give the same clips an hour;
- a causal student of 4 steps in blocks of 3 latent frames against the bidirectional teacher of 50: frames a second,
  time to the first frame, attention's share, memory of the past; updates of DMD and self-forcing (`gpu_distill.py`).

A setting that does not fit is recorded as such.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

from gpu_distill import (
    DISTILL_SETTINGS,
    MatchRow,
    StreamRow,
    measure_match,
    measure_stream,
    planned_streams,
    planned_updates,
)
from gpu_rlhf import SETTINGS, TEXT_TOKENS, RlRow, clip_size, measure_rl
from reelign.flow.path import interpolate, velocity_target
from reelign.train.optim import OptimConfig, Optimizer

MICRO_BATCH = {"33x240x416": 16, "81x480x832": 2, "5x32x32": 16}
"""Sizes, and how many clips of each an RL update samples or trains on at once; of a branching group all its clips."""
WAN_1_3B = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
PARTS = {"transformer": WAN_1_3B, "vae": {}}
"""Configs by component; diffusers' defaults are Wan 2.1's autoencoder."""
TINY = {
    "transformer": WAN_1_3B
    | {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "num_layers": 2, "text_dim": 64},
    "vae": {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1},
}


@dataclass
class Row:
    """One measured setting of the network alone."""

    job: str
    size: str
    checkpointing: bool
    compiled: bool
    seconds: float | None = None
    tokens_per_second: float | None = None
    tflops_per_second: float | None = None
    mfu: float | None = None
    peak_memory_gib: float | None = None
    note: str = ""


AnyRow = Row | RlRow | StreamRow | MatchRow


def main() -> None:
    """Measure every setting and write the JSON after each, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--only", nargs="+", default=[], help="measure the rows whose settings hold all these words")
    parser.add_argument("--steps", type=int, default=5, help="timed steps; the median counts")
    parser.add_argument("--updates", type=int, default=1, help="timed RL updates; the mean counts")
    parser.add_argument("--matches", type=int, default=4, help="timed updates of a student; the mean counts")
    parser.add_argument("--prompts", type=int, default=2, help="groups an RL update")
    parser.add_argument("--group", type=int, default=8, help="clips a group")
    parser.add_argument("--tiny", action="store_true", help="a tiny network on any device, to test this script")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.tiny):
        raise SystemExit("benchmarks/gpu.py needs a CUDA device; --tiny tests the script without one.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = TINY if arguments.tiny else PARTS
    rows = planned(arguments.tiny, arguments.prompts, arguments.group)
    rows = [row for row in rows if set(arguments.only) <= set(" ".join(map(str, asdict(row).values())).split())]
    if not rows:
        raise SystemExit(f"no row holds all of: {' '.join(arguments.only)}")
    peak = matmul_rate(device, 512 if arguments.tiny else 8192)
    print(f"matmul peak {peak / 1e12:.1f} TFLOP/s in bf16")
    with tempfile.TemporaryDirectory() as folder:
        for index, row in enumerate(rows):
            if isinstance(row, RlRow):
                measure_rl(row, parts, Path(folder), device, arguments.updates)
            elif isinstance(row, StreamRow):
                measure_stream(row, parts, Path(folder), device)
            elif isinstance(row, MatchRow):
                measure_match(row, parts, Path(folder), device, arguments.matches)
            else:
                measure(row, parts["transformer"], device, peak, arguments.steps)
            print(json.dumps(asdict(row)), flush=True)
            write(arguments.out, rows[: index + 1], device, peak, parts)


def planned(tiny: bool, prompts: int, group: int) -> list[AnyRow]:
    """The settings in the order in which they are measured: the quick ones first."""
    sizes = ("5x32x32",) if tiny else ("33x240x416", "81x480x832")
    compiled = (False,) if tiny else (False, True)
    rows: list[AnyRow] = []
    for size in sizes:
        rows += [Row("sft step", size, kept, fast) for kept in (True, False) for fast in compiled]
        rows += [Row("sampling step", size, False, fast) for fast in compiled]
    for size in sizes:
        rows += [
            RlRow("rl update", size, preset, guidance, prompts, group, MICRO_BATCH[size])
            for preset in ("reelign", "flow-grpo")
            for guidance in ("both", "none")
        ]
    for size in ("21x32x32",) if tiny else sizes:  # latent frames that blocks of 3 divide
        rows += planned_streams(size)
        rows += planned_updates(size)
    return rows


def measure(row: Row, config: dict, device: torch.device, peak: float, steps: int) -> None:
    """Fill a row; out of memory becomes its note."""
    torch.manual_seed(0)
    torch.compiler.reset()
    size = clip_size(row.size)
    network = job = None
    try:
        with torch.device(device):
            network = WanTransformer3DModel(**config).to(torch.bfloat16)
        if row.checkpointing:
            network.enable_gradient_checkpointing()
        if row.compiled:
            network.compile_repeated_blocks(fullgraph=True)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        job = sft_job(network, size, device) if row.job == "sft step" else sampling_job(network, size, device)
        seconds = timed(job, device, steps)
    except torch.OutOfMemoryError:
        row.note = "does not fit into memory"
    else:
        tokens, flops = token_count(size), forward_flops(config, size)
        work = 3 * flops if row.job == "sft step" else 2 * flops
        row.seconds, row.tokens_per_second = seconds, tokens / seconds
        row.tflops_per_second, row.mfu = work / seconds / 1e12, work / seconds / peak
        if device.type == "cuda":
            row.peak_memory_gib = torch.cuda.max_memory_allocated() / 2**30
    if device.type == "cuda":
        network = job = None
        gc.collect()
        torch.cuda.empty_cache()


def sft_job(network: WanTransformer3DModel, size: tuple[int, int, int], device: torch.device) -> Callable[[], None]:
    """One optimiser step of flow matching on one clip, as `stages/sft.py` does it."""
    network.train()
    optimizer = Optimizer(network.named_parameters(), OptimConfig(lr=1e-5), total_steps=10_000)
    clean, text = inputs(network, size, device)

    def step() -> None:
        eps, sigma = torch.randn_like(clean), torch.rand(1, device=device)
        noisy = interpolate(clean, eps, sigma.view(-1, 1, 1, 1, 1))
        predicted = network(
            hidden_states=noisy.to(torch.bfloat16), timestep=1000 * sigma, encoder_hidden_states=text, return_dict=False
        )[0]
        (predicted.float() - velocity_target(clean, eps)).square().mean().backward()
        optimizer.step()

    return step


def sampling_job(
    network: WanTransformer3DModel, size: tuple[int, int, int], device: torch.device
) -> Callable[[], None]:
    """One guided Euler step: two network evaluations."""
    network.eval()
    latents, text = inputs(network, size, device)
    sigma = torch.full((1,), 0.5, device=device)

    @torch.no_grad()
    def step() -> None:
        for _ in range(2):
            network(
                hidden_states=latents.to(torch.bfloat16),
                timestep=1000 * sigma,
                encoder_hidden_states=text,
                return_dict=False,
            )

    return step


def inputs(
    network: WanTransformer3DModel, size: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random latents of Wan 2.1's autoencoder and random text embeddings."""
    frames, height, width = size
    latents = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, device=device)
    return latents, torch.randn(1, TEXT_TOKENS, network.config.text_dim, device=device, dtype=torch.bfloat16)


def timed(job: Callable[[], object], device: torch.device, steps: int) -> float:
    """Median seconds of a step after two that are not counted."""
    seconds = []
    for index in range(steps + 2):
        start = time.perf_counter()
        job()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= 2:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def token_count(size: tuple[int, int, int]) -> int:
    """Tokens of a clip after the autoencoder (4 x 8 x 8) and the patches (1 x 2 x 2)."""
    frames, height, width = size
    return ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)


def forward_flops(config: dict, size: tuple[int, int, int]) -> float:
    """Floating-point operations of one forward pass: matrix products of the blocks, attention, text keys and values."""
    tokens, layers, ffn = token_count(size), config["num_layers"], config["ffn_dim"]
    width = config["num_attention_heads"] * config["attention_head_dim"]
    products = 2 * tokens * (6 * width**2 + 2 * width * ffn)
    attention = 4 * tokens**2 * width + 4 * tokens * TEXT_TOKENS * width
    text = 2 * TEXT_TOKENS * 2 * width**2
    return float(layers * (products + attention + text))


def matmul_rate(device: torch.device, side: int) -> float:
    """FLOP/s of a large bf16 matrix product on this device: the peak that MFU is measured against."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, device, 20)


def write(path: Path, rows: list[AnyRow], device: torch.device, peak: float, parts: dict) -> None:
    """Write all rows so far with hardware and versions."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    facts = {
        "hardware": name,
        "versions": {library: version(library) for library in ("torch", "diffusers")} | {"cuda": torch.version.cuda},
        "matmul_peak_tflops": peak / 1e12,
        "architecture": parts["transformer"],
        "rl": SETTINGS,
        "distill": DISTILL_SETTINGS,
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
