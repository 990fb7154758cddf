"""Quality against cost: what a model gives for its network evaluations, beside cheaper ways of running its teacher.

A distilled model must be better than the teacher run with as few evaluations; every table shows both.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from reelign.evaluate.battery import BatteryConfig, generate_batch, tasks
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare
from reelign.models.base import VideoModel
from reelign.models.kv_cache import KVCache, TextCache
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, clip_evaluations, next_block

ROUNDS = 3


@dataclass(frozen=True)
class Offer:
    """A way to make clips.

    Attributes:
        name: what people call it.
        model: makes them.
        sampler: how.
    """

    name: str
    model: VideoModel
    sampler: SampleConfig


@dataclass(frozen=True)
class Price:
    """What a clip costs.

    Attributes:
        nfe: network evaluations of whole clips; the blocks of a causal model count as parts of one.
        seconds: of one clip, sampled alone and decoded; median.
        seconds_in_batch: of one clip of a batch.
        first_frame: seconds until the first frame of a clip, sampled alone, is decoded.
    """

    nfe: float
    seconds: float
    seconds_in_batch: float
    first_frame: float


def cheaper_teachers(teacher: VideoModel, deployed: SampleConfig, nfe: float) -> list[Offer]:
    """The teacher as it is, with about so many network evaluations a clip, rounded up in its favour: guided, and
    unguided with more steps."""
    steps = math.ceil(nfe)
    guided = deployed.model_copy(update={"steps": max(1, steps // 2)})
    plain = deployed.model_copy(update={"steps": steps, "guidance_scale": 1.0})
    return [
        Offer(f"teacher, {guided.steps} guided steps", teacher, guided),
        Offer(f"teacher, {plain.steps} steps without guidance", teacher, plain),
    ]


def prices(offers: list[Offer], size: BatteryConfig) -> dict[str, Price]:
    """The price of each, by name: measured in turns, so that what slows the machine slows all of them."""
    prompts = [task.prompt for task in tasks(size, "validation")[: size.batch_size]]
    found: dict[str, list[tuple[float, float, float]]] = {offer.name: [] for offer in offers}
    for turn in range(ROUNDS + 1):
        for offer in offers:
            together = _timed(offer, prompts, size)
            _timed(offer, prompts[:1], size)  # a batch leaves nothing of one clip in the caches
            row = (_timed(offer, prompts[:1], size), together, _first_frame(offer, prompts[0], size))
            if turn:  # the first turn only warms up
                found[offer.name].append(row)
    result = {}
    for offer in offers:
        alone, together, first = (statistics.median(column) for column in zip(*found[offer.name], strict=True))
        result[offer.name] = Price(evaluations(offer.model, offer.sampler, size), alone, together / len(prompts), first)
    return result


def bargains(
    teacher: Evaluation, found: Mapping[str, Evaluation], price: Mapping[str, Price], student: str
) -> list[dict[str, Any]]:
    """A row for each offer: its price, its scores, GSB against the teacher, and GSB of the student against it."""
    return [
        {
            "name": name,
            **asdict(price[name]),
            "scores": evaluation.means(),
            "gsb": {axis: asdict(interval) for axis, interval in compare(teacher, evaluation).items()},
            "student": {axis: asdict(interval) for axis, interval in compare(evaluation, found[student]).items()},
        }
        for name, evaluation in found.items()
    ]


def _timed(offer: Offer, prompts: list[str], size: BatteryConfig) -> float:
    """Seconds from prompts to frames."""
    named = [(prompt, f"price {number}") for number, prompt in enumerate(prompts)]
    return _seconds(offer.model, lambda: generate_batch(offer.model, named, size, offer.sampler, seed=0))


def _first_frame(offer: Offer, prompt: str, size: BatteryConfig) -> float:
    model = offer.model
    if model.causal is None:
        return _timed(offer, [prompt], size)
    block = model.causal.config.block

    def first() -> None:
        shape = model.latent_shape(size.frames, size.height, size.width)
        noise = initial_noise([(0, "price 0", 0)], shape)[:, :, :block].to(model.device)
        conditions = model.encode_text([prompt])
        found = next_block(model, conditions, noise, offer.sampler, KVCache(), TextCache(), last=True)
        model.decode(found.latents)

    return _seconds(model, first)


def evaluations(model: VideoModel, sampler: SampleConfig, size: BatteryConfig) -> float:
    """Network evaluations of a clip, in whole clips."""
    frames = model.latent_shape(size.frames, size.height, size.width)[1]
    return clip_evaluations(sampler, model.causal.config if model.causal is not None else None, frames)


def _seconds(model: VideoModel, work: Callable[[], object]) -> float:
    _wait(model)
    started = time.perf_counter()
    work()
    _wait(model)
    return time.perf_counter() - started


def _wait(model: VideoModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
