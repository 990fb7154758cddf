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

from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import compare
from reelign.models.base import VideoModel
from reelign.models.causal import KVCache, TextCache
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, next_block, sample

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


def cheaper_teachers(teacher: VideoModel, deployed: SampleConfig, evaluations: int) -> list[Offer]:
    """The teacher as it is, with about so many network evaluations a clip: guided, and unguided with more steps."""
    guided = deployed.model_copy(update={"steps": max(1, evaluations // 2)})
    plain = deployed.model_copy(update={"steps": evaluations, "guidance_scale": 1.0})
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
            row = (
                _timed(offer, prompts[:1], size),
                _timed(offer, prompts, size),
                _first_frame(offer, prompts[0], size),
            )
            if turn:  # the first turn only warms up
                found[offer.name].append(row)
    result = {}
    for offer in offers:
        alone, together, first = (statistics.median(column) for column in zip(*found[offer.name], strict=True))
        result[offer.name] = Price(_evaluations(offer, size), alone, together / len(prompts), first)
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
    model = offer.model

    def clips() -> None:
        noise = _noise(model, len(prompts), size)
        negative = model.encode_text([offer.sampler.negative_prompt] * len(prompts))
        found = sample(model, model.encode_text(prompts), noise, offer.sampler, negative)
        model.decode(found.latents)

    return _seconds(model, clips)


def _first_frame(offer: Offer, prompt: str, size: BatteryConfig) -> float:
    model = offer.model
    if model.causal is None:
        return _timed(offer, [prompt], size)
    block = model.causal.config.block

    def first() -> None:
        noise = _noise(model, 1, size)[:, :, :block]
        conditions = model.encode_text([prompt])
        found = next_block(model, conditions, noise, offer.sampler, KVCache(), TextCache(), last=True)
        model.decode(found.latents)

    return _seconds(model, first)


def _noise(model: VideoModel, count: int, size: BatteryConfig) -> torch.Tensor:
    shape = model.latent_shape(size.frames, size.height, size.width)
    return initial_noise([(0, "price", index) for index in range(count)], shape).to(model.device)


def _evaluations(offer: Offer, size: BatteryConfig) -> float:
    """Network evaluations of a clip, in whole clips."""
    sampler, model = offer.sampler, offer.model
    if model.causal is not None:
        frames = model.latent_shape(size.frames, size.height, size.width)[1]
        blocks = len(model.causal.config.blocks(frames))
        return sampler.steps + (blocks - 1) / blocks  # all but the last block are remembered
    low, high = sampler.guidance_interval
    guided = sum(low <= float(sigma) <= high for sigma in sampler.grid[:-1]) if sampler.guidance_scale != 1 else 0
    return float(sampler.steps + guided)


def _seconds(model: VideoModel, work: Callable[[], None]) -> float:
    _wait(model)
    started = time.perf_counter()
    work()
    _wait(model)
    return time.perf_counter() - started


def _wait(model: VideoModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def as_many(price: Price) -> int:
    """Evaluations that a teacher may take to cost as much: whole ones, rounded up in its favour."""
    return math.ceil(price.nfe)
