"""The RL rows of `benchmarks/gpu.py`: one update of stage 2 on random weights, by phase.

What runs is the project: a Wan pipeline is written to disk and loaded by `load_model` in bfloat16, and `Trainer` makes
the updates (LoRA, gradient checkpointing, the `pixels` reward on the CPU). Only the text encoder is a stand-in, see
`SETTINGS`. What an update costs depends on the steps at which its groups branch: the seed is one that draws typical
ones. A first update of two steps is not counted.
"""

from __future__ import annotations

import gc
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.miniature.build import build_tokenizer, make_pipeline
from reelign.models.load import load_model
from reelign.rewards.recipe import build_rewards
from reelign.sampling.sample import SampleConfig
from reelign.stages.algorithm import Algorithm
from reelign.stages.context import StageContext
from reelign.stages.rlhf import RlhfConfig, Trainer
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

PROMPTS = Path(__file__).parents[1] / "recipes" / "prompts.txt"
TEXT_TOKENS = 512
SAMPLER = SampleConfig(steps=20, shift=3.0, guidance_scale=5.0)
LORA_RANK = 32
SETTINGS = {
    "method": f"LoRA of rank {LORA_RANK}, gradient checkpointing, no compilation",
    "precision": "bfloat16; adapters, autoencoder, steps and log-probabilities float32",
    "sampler": SAMPLER.model_dump(mode="json"),
    "reward": "pixels, on the CPU; a learned reward adds its own time and memory",
    "text_encoder": "one layer of UMT5-XXL's 24 and a small vocabulary: conditions have the real size, but the real "
    "encoder holds about 10.6 GiB in bfloat16 and takes longer, once a micro-batch",
}
MEASURED = {
    "seconds": "seconds",
    "rollout": "seconds/rollout",
    "decode": "seconds/decode",
    "reward": "seconds/reward",
    "update": "seconds/update",
    "network_evaluations": "nfe",
    "ratio_drift": "ratio_drift",
}
"""Fields of a row by what the trainer calls them."""


@dataclass
class RlRow:
    """One measured setting: seconds of an update in all and by phase. Rewards are scored while the next micro-batch is
    sampled; `reward` is what sampling did not hide."""

    job: str
    size: str
    preset: str
    guidance: str
    prompts: int
    group_size: int
    micro_batch: int
    seconds: float | None = None
    rollout: float | None = None
    decode: float | None = None
    reward: float | None = None
    update: float | None = None
    network_evaluations: float | None = None
    clips_per_gpu_hour: float | None = None
    ratio_drift: float | None = None
    peak_memory_gib: float | None = None
    note: str = ""


def measure_rl(row: RlRow, parts: dict[str, dict[str, Any]], folder: Path, device: torch.device, updates: int) -> None:
    """Fill a row with means over some updates; what keeps it from running becomes its note.

    Args:
        row: the setting.
        parts: configs of "transformer" and "vae".
        folder: scratch; the random pipeline is written there once, and every row loads it afresh.
        device: where to measure.
        updates: how many are timed.
    """
    try:
        write_once(folder, parts)
        found = timed_updates(row, folder, device, updates)
    except torch.OutOfMemoryError:
        row.note = "does not fit into memory"
    except ReelignError as error:
        row.note = str(error)
    else:
        for field, name in MEASURED.items():
            setattr(row, field, statistics.mean(numbers[name] for numbers in found))
        seconds = statistics.mean(numbers["seconds"] for numbers in found)
        row.clips_per_gpu_hour = 3600 * row.prompts * row.group_size / seconds
        row.peak_memory_gib = peak(device)
        if any(numbers["groups_kept"] < 1 for numbers in found):
            row.note = "a group had no spread and was not learned from: a real update costs more"
    release(device)


def timed_updates(row: RlRow, folder: Path, device: torch.device, updates: int) -> list[dict[str, float]]:
    """What `Trainer.one_update` tells of some updates, each with its "seconds"; the same draws every time."""
    with ThreadPoolExecutor(1) as judges:
        trainer = make_trainer(row, folder, device, judges)
        whole = trainer.sampler
        trainer.sampler = trainer.replayed = whole.model_copy(update={"steps": 2})
        trainer.one_update()
        trainer.sampler = trainer.replayed = whole
        reset_peak(device)
        found = []
        for _ in range(updates):
            start = now(device)
            numbers = trainer.one_update()
            found.append(numbers | {"seconds": now(device) - start})
    return found


def make_trainer(row: RlRow, folder: Path, device: torch.device, judges: ThreadPoolExecutor) -> Trainer:
    """The trainer of stage 2 as a run makes it, alone on the device."""
    frames, height, width = clip_size(row.size)
    config = RlhfConfig.model_validate(
        {
            "prompts": [{"kind": "list", "path": PROMPTS}],
            "rewards": [{"kind": "pixels", "weights": {"dynamics": 1.0, "sharpness": 1.0}}],
            "algorithm": {"preset": row.preset, "guidance": row.guidance},
            "prompts_per_update": row.prompts,
            "group_size": row.group_size,
            "micro_batch": row.micro_batch,
            "method": "lora",
            "lora": {"rank": LORA_RANK, "alpha": LORA_RANK},
            "optim": {"lr": 1e-4},
            "gradient_checkpointing": True,
        }
    )
    context = StageContext(
        folder=folder / "rlhf",
        parent=str(folder / "model"),
        dataset=None,
        seed=typical_seed(config.algorithm, row.prompts),
        dtype="bfloat16",
        sampler=SAMPLER,
        battery=BatteryConfig(judge="pixels", prompts=PROMPTS, frames=frames, height=height, width=width, fps=16),
        world=World(0, 1, device, None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )
    model = load_model(context.parent, context.dtype, device)
    return Trainer(model, build_rewards(config.rewards), judges, context, config)


def typical_seed(algorithm: Algorithm, prompts: int) -> int:
    """The seed among 256 whose first update trains, in the mean over its prompts, the steps that a long run does."""
    keys = [(seed, position) for seed in range(256) for position in range(prompts)]
    first = algorithm.stochastic_steps(SAMPLER.steps, 0, keys).int().argmax(1).double().view(-1, prompts).mean(1)
    return int((first - first.mean()).abs().argmin())


def write_once(folder: Path, parts: dict[str, dict[str, Any]]) -> None:
    """The random pipeline as `folder / "model"`, which every row loads afresh."""
    if not (folder / "model").exists():
        write_pipeline(folder / "model", parts)


def reset_peak(device: torch.device) -> None:
    """Count the peak of memory from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float | None:
    """GiB on the device at the most; nobody knows on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def release(device: torch.device) -> None:
    """Give back what the row before held."""
    gc.collect()  # a module's cycles keep its weights on the device
    if device.type == "cuda":
        torch.cuda.empty_cache()


def write_pipeline(folder: Path, parts: dict[str, dict[str, Any]]) -> None:
    """A Wan pipeline with random weights of the given sizes, in Wan 2.1's layout on disk."""
    torch.manual_seed(0)
    denoiser, tokenizer = WanTransformer3DModel(**parts["transformer"]), build_tokenizer()
    width = denoiser.config.text_dim
    text = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=64,
        d_ff=width * 5 // 2,
        num_layers=1,
        num_heads=width // 64,
        pad_token_id=0,
        eos_token_id=1,
    )
    pipeline = make_pipeline(denoiser, UMT5EncoderModel(text), AutoencoderKLWan(**parts["vae"]))
    pipeline.tokenizer.model_max_length = TEXT_TOKENS
    pipeline.save_pretrained(folder)


def clip_size(name: str) -> tuple[int, int, int]:
    """Frames, height and width of a size such as 33x240x416."""
    frames, height, width = map(int, name.split("x"))
    return frames, height, width


def now(device: torch.device) -> float:
    """Seconds, when all that was given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
