"""The distillation rows of `benchmarks/gpu.py`: what a stream gives and what an update of a student costs.

What runs is the project, on a Wan pipeline with random weights in bfloat16: `next_block` and the model's own stream
decoder make a clip block after block, as a stream does, `sample` makes one with the bidirectional teacher, and
`Matching` makes the updates of DMD and self-forcing. The text encoder is the stand-in of `gpu_rlhf.py`.
"""

from __future__ import annotations

import logging
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.profiler import ProfilerActivity, profile

from gpu_rlhf import LORA_RANK, PROMPTS, SAMPLER, clip_size, now, peak, release, reset_peak, write_once
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.models.base import Conditions, VideoModel
from reelign.models.compiled import compile_blocks
from reelign.models.kv_cache import CausalConfig, KVCache, TextCache
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, next_block, sample
from reelign.stages.asked import build_prompts
from reelign.stages.context import StageContext
from reelign.stages.distill import Matching, student_of
from reelign.stages.distill_recipe import DistillConfig
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

BLOCK, STEPS, SHIFT, TEACHER_STEPS = 3, 4, 5.0, 50
CRITIC_UPDATES = 5
BACKEND = {"cuda": "inductor", "cpu": "aot_eager"}
"""What compiles a block; on a CPU it is the script that is tested, not the speed."""
ATTENTION = ("flash", "fmha", "sdpa", "attention")
"""What kernels of attention have in their names."""
DYNAMO = logging.getLogger("torch._dynamo.convert_frame")
TARGET_FPS = 20.0
DISTILL_SETTINGS = {
    "stream": f"blocks of {BLOCK} latent frames, {STEPS} steps, one clip after one that is not counted",
    "teacher": f"{TEACHER_STEPS} UniPC steps, guided: two evaluations each",
    "compilation": "each block of the transformer (`compile_blocks`), any length of the past",
    "target": f">= {TARGET_FPS:g} frames a second on one Hopper GPU",
    "match": f"{CRITIC_UPDATES} updates of the critic for one of the student, one clip each, gradient checkpointing; "
    "clips are left at random steps, so seconds go with the evaluations that are told beside them",
}


@dataclass
class StreamRow:
    """One way of making a clip.

    Attributes:
        first_frame: seconds from the noise to the first frames, decoded.
        denoise, decode: seconds of all blocks.
        fps: frames a second of both; `fps_denoise` leaves the decoder out.
        last_block: seconds to denoise the last block, which sees the longest past.
        attention_share: of the device's busy time while the last block is denoised.
        kv_gib: keys and values of the past that the last block saw.
        graphs: how many were compiled.
    """

    job: str
    size: str
    sampler: str
    window: int | None
    compiled: bool
    first_frame: float | None = None
    denoise: float | None = None
    decode: float | None = None
    fps: float | None = None
    fps_denoise: float | None = None
    last_block: float | None = None
    attention_share: float | None = None
    kv_gib: float | None = None
    peak_memory_gib: float | None = None
    graphs: int | None = None
    note: str = ""


@dataclass
class MatchRow:
    """Updates of a student: the mean of an update, and in it of one step of the critic and of the student's own."""

    job: str
    size: str
    part: str
    method: str
    window: int | None
    seconds: float | None = None
    critic_step: float | None = None
    student_step: float | None = None
    network_evaluations: float | None = None
    peak_memory_gib: float | None = None
    note: str = ""


def planned_streams(size: str) -> list[StreamRow]:
    """The ways of making a clip: a stream that sees all its past or a window, and the teacher's whole clip."""
    ways: tuple[tuple[str, int | None], ...] = (("causal", None), ("causal", 3 * BLOCK), ("bidirectional", None))
    return [StreamRow("stream", size, way, window, fast) for way, window in ways for fast in (False, True)]


def planned_updates(size: str) -> list[MatchRow]:
    """The updates of a size."""
    ways = (("few_step", None), ("self_forcing", None), ("self_forcing", 3 * BLOCK))
    return [MatchRow("dmd update", size, part, method, window) for method in ("full", "lora") for part, window in ways]


def measure_stream(row: StreamRow, parts: dict[str, dict[str, Any]], folder: Path, device: torch.device) -> None:
    """Fill a row; what keeps it from running becomes its note."""
    torch.compiler.reset()
    counters.clear()
    limit, model = _LimitHit(), None
    DYNAMO.addHandler(limit)
    try:
        model = _pipeline(folder, parts, device)
        if row.sampler == "causal":
            model.make_causal(CausalConfig(block=BLOCK, window=row.window))
        if row.compiled:
            compile_blocks(model, BACKEND[device.type])
        (_stream if row.sampler == "causal" else _whole)(row, model, device)
    except torch.OutOfMemoryError:
        row.note = "does not fit into memory"
    except ReelignError as error:
        row.note = str(error)
    DYNAMO.removeHandler(limit)
    if row.compiled:
        row.graphs = int(counters["stats"]["unique_graphs"])
    if limit.seen and not row.note:
        row.note = "torch.compile hit its recompile limit: most blocks ran uncompiled"
    model = None
    release(device)


def measure_match(
    row: MatchRow, parts: dict[str, dict[str, Any]], folder: Path, device: torch.device, updates: int
) -> None:
    """Fill a row with means over some updates after one that is not counted."""
    trainer = None
    try:
        write_once(folder, parts)
        trainer = make_matching(row, folder, device)
        trainer.one_update()
        trainer.update += 1
        trainer.critic_seconds, trainer.student_seconds = [], []
        reset_peak(device)
        seconds, evaluations = [], []
        for _ in range(updates):
            started = now(device)
            numbers = trainer.one_update()
            seconds.append(now(device) - started)
            evaluations.append(numbers["nfe"])
            trainer.update += 1
    except torch.OutOfMemoryError:
        row.note = "does not fit into memory"
    except ReelignError as error:
        row.note = str(error)
    else:
        row.seconds, row.network_evaluations = statistics.mean(seconds), statistics.mean(evaluations)
        row.critic_step = statistics.mean(trainer.critic_seconds)
        row.student_step = statistics.mean(trainer.student_seconds)
        row.peak_memory_gib = peak(device)
    trainer = None
    release(device)


class TimedMatching(Matching):
    """The stage's trainer, which tells the seconds of its two steps; each with the backward pass, the student's without
    the optimiser that follows it."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.critic_seconds: list[float] = []
        self.student_seconds: list[float] = []

    def critic_step(self, turn: int) -> tuple[float, int]:
        """See the base class."""
        started = now(self.context.world.device)
        found = super().critic_step(turn)
        self.critic_seconds.append(now(self.context.world.device) - started)
        return found

    def student_step(self) -> tuple[float, int]:
        """See the base class."""
        started = now(self.context.world.device)
        found = super().student_step()
        self.student_seconds.append(now(self.context.world.device) - started)
        return found


def make_matching(row: MatchRow, folder: Path, device: torch.device) -> TimedMatching:
    """The trainer of a part as a run makes it, alone on the device."""
    frames, height, width = clip_size(row.size)
    own = {
        "updates": 100,
        "batch_size": 1,
        "micro_batch": 1,
        "method": row.method,
        "lora": {"rank": LORA_RANK, "alpha": LORA_RANK},
        "optim": {"lr": 2e-6, "betas": [0.0, 0.999]},
        "critic": {"lr": 4e-7, "betas": [0.0, 0.999]},
        "critic_updates": CRITIC_UPDATES,
        "gradient_checkpointing": True,
    }
    recipe = DistillConfig.model_validate(
        {
            "prompts": [{"kind": "list", "path": PROMPTS}],
            "steps": STEPS,
            "shift": SHIFT,
            row.part: own,
            "causal": {"block": BLOCK, "window": row.window} if row.part == "self_forcing" else None,
        }
    )
    context = StageContext(
        folder=folder / "distill" / row.part,
        parent=str(folder / "model"),
        dataset=None,
        seed=0,
        dtype="bfloat16",
        sampler=SAMPLER,
        battery=BatteryConfig(judge="pixels", prompts=PROMPTS, frames=frames, height=height, width=width, fps=16),
        world=World(0, 1, device, None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )
    base = load_model(context.parent, context.dtype, device)
    student = student_of(base, base.name, recipe, causal=row.part == "self_forcing")
    return TimedMatching(student, base, base, build_prompts(recipe.prompts), context, recipe, row.part)


def _stream(row: StreamRow, model: VideoModel, device: torch.device) -> None:
    """A clip block after block, decoded as it comes; once before, so that all is compiled."""
    conditions, noise = _asked(row, model, device)
    sampler = SampleConfig(steps=STEPS, shift=SHIFT, solver="renoise", guidance_scale=1.0)
    _streamed(model, conditions, noise, sampler, device)
    reset_peak(device)
    denoise, decode, cache, text = _streamed(model, conditions, noise, sampler, device)
    row.peak_memory_gib, row.kv_gib = peak(device), cache.nbytes / 2**30
    row.first_frame, row.last_block = denoise[0] + decode[0], denoise[-1]
    row.denoise, row.decode = sum(denoise), sum(decode)
    _rates(row)
    last = noise[:, :, -BLOCK:]
    row.attention_share = attention_share(
        lambda: next_block(model, conditions, last, sampler, cache, text, last=True), device
    )


def _streamed(
    model: VideoModel, conditions: Conditions, noise: torch.Tensor, sampler: SampleConfig, device: torch.device
) -> tuple[list[float], list[float], KVCache, TextCache]:
    """Seconds to denoise each block (and to remember it) and to decode it, and what the last one saw."""
    cache, text, decoder = KVCache(), TextCache(), model.decoder()
    denoise, decode = [], []
    seen = cache
    for first in range(0, noise.shape[2], BLOCK):
        started, seen = now(device), cache
        last = first + BLOCK == noise.shape[2]
        found = next_block(model, conditions, noise[:, :, first : first + BLOCK], sampler, cache, text, last)
        made = now(device)
        decoder(found.latents).cpu()
        denoise.append(made - started)
        decode.append(now(device) - made)
        cache = found.cache
    return denoise, decode, seen, text


def _whole(row: StreamRow, model: VideoModel, device: torch.device) -> None:
    """A clip of the teacher: the first frame comes with the last. Two steps before it are not counted."""
    conditions, noise = _asked(row, model, device)
    negative = model.encode_text([""])
    sampler = SampleConfig(steps=TEACHER_STEPS, shift=SHIFT, guidance_scale=SAMPLER.guidance_scale)
    short = sampler.model_copy(update={"steps": 2})
    sample(model, conditions, noise, short, negative)
    reset_peak(device)
    started = now(device)
    found = sample(model, conditions, noise, sampler, negative)
    made = now(device)
    model.decode(found.latents).cpu()
    row.denoise, row.decode = made - started, now(device) - made
    row.first_frame, row.peak_memory_gib = row.denoise + row.decode, peak(device)
    _rates(row)
    row.attention_share = attention_share(lambda: sample(model, conditions, noise, short, negative), device)


def attention_share(job: Any, device: torch.device) -> float:
    """The share of attention in what the device is busy with."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        job()
        now(device)
    busy = attention = 0.0
    for event in found.key_averages():
        if event.is_user_annotation or (cuda and event.device_type == torch.autograd.DeviceType.CPU):
            continue  # a kernel's time would count again with what launched it
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        busy += spent
        attention += spent if any(word in event.key.lower() for word in ATTENTION) else 0.0
    return attention / busy


def _asked(row: StreamRow, model: VideoModel, device: torch.device) -> tuple[Conditions, torch.Tensor]:
    shape = model.latent_shape(*clip_size(row.size))
    prompt = PROMPTS.read_text(encoding="utf-8").splitlines()[0]
    return model.encode_text([prompt]), initial_noise([(0, "benchmark", 0)], shape).to(device)


def _rates(row: StreamRow) -> None:
    frames = clip_size(row.size)[0]
    assert row.denoise is not None
    assert row.decode is not None
    row.fps, row.fps_denoise = frames / (row.denoise + row.decode), frames / row.denoise


def _pipeline(folder: Path, parts: dict[str, dict[str, Any]], device: torch.device) -> VideoModel:
    """The random pipeline, written once, loaded afresh."""
    write_once(folder, parts)
    return load_model(folder / "model", "bfloat16", device)


class _LimitHit(logging.Handler):
    """Whether dynamo gave up compiling something anew."""

    seen = False

    def emit(self, record: logging.LogRecord) -> None:
        self.seen |= "recompile_limit" in record.getMessage()
