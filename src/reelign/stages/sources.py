"""Where a stage's training clips come from: clean pairs of the miniature, or curated datasets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from torch import Tensor

from reelign.data.buckets import Bucket, Window, plan_buckets
from reelign.data.latents import LatentCache, read_window
from reelign.data.loader import Example
from reelign.data.manifest import read_manifest
from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.flow.path import interpolate, velocity_target
from reelign.miniature.pairs import PairQuality, pairs
from reelign.miniature.render import DEFECTS, Defect
from reelign.models.base import VideoModel
from reelign.sampling.noise import generator
from reelign.stages.context import StageContext

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels at which the held-out loss is measured, always with the same noise."""


class MiniatureSource(BaseModel):
    """Captioned clips of the miniature world, made in memory; held-out scenes never occur. They are clean but for
    `defects`: what a model learns from footage whose faults no filter took out, rewards can teach it to leave."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["miniature"]
    count: int = Field(default=400, ge=1, description="Number of clips.")
    seed: int = Field(default=11, ge=0, description="Which clips; not a seed of the battery.")
    defects: float = Field(default=0.0, ge=0, le=1, description="Share of clips with a planted defect.")
    kinds: list[Defect] = Field(default=list(DEFECTS), min_length=1, description="Which defects, each as often.")
    strength: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(0.4, 1.2), description="Least and most of a defect; 1 is plainly visible."
    )


class DatasetSource(BaseModel):
    """A curated dataset."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["dataset"]
    path: Path | None = Field(default=None, description="The dataset's folder; the one this run curates if empty.")
    buckets: list[Bucket] = Field(default_factory=list, description="Sizes; the battery's size if empty.")
    fps: float | None = Field(default=None, gt=0, description="Frames a second; the battery's if empty.")
    windows: Literal["first", "all"] = Field(default="all", description="Training clips per curated clip.")
    held_out: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the source files kept for measuring the gain."
    )
    repeat: int = Field(default=1, ge=1, description="How often each clip counts in an epoch.")


Source = Annotated[MiniatureSource | DatasetSource, Field(discriminator="kind")]


@dataclass
class TrainingSet:
    """Encoded clips to train on, and clips that are held out with what the autoencoder makes of them.

    Attributes:
        training: clips to train on.
        held_out: clips that are never trained on.
        reconstruction: mean PSNR of the held-out clips through the autoencoder, in dB.
        plans: for each dataset, the printed plan.
    """

    training: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    reconstruction: float | None = None
    plans: list[str] = field(default_factory=list)


def build_training_set(
    sources: Sequence[MiniatureSource | DatasetSource], model: VideoModel, context: StageContext
) -> TrainingSet:
    """Encode all clips (from the cache where possible) and write the plan into the stage's folder."""
    found = TrainingSet()
    for index, source in enumerate(sources):
        if isinstance(source, MiniatureSource):
            found.training += _miniature(source, model)
        else:
            _dataset(found, source, index, model, context)
    if found.plans and context.world.is_main:
        write_atomically(context.folder / "plan.txt", "\n\n".join(found.plans) + "\n")
    return found


def _miniature(source: MiniatureSource, model: VideoModel) -> list[Example]:
    quality = PairQuality(defects=source.defects, kinds=tuple(source.kinds), strength=source.strength)
    made = list(pairs(source.count, quality, source.seed))
    examples = []
    for start in range(0, len(made), 32):
        part = made[start : start + 32]
        latents = model.encode_video(torch.from_numpy(np.stack([pair.frames for pair in part]))).cpu()
        conditions = model.encode_text([pair.caption for pair in part])
        for row in range(len(part)):
            own = {name: value[row].cpu() for name, value in conditions.items()}
            examples.append(Example(f"miniature-{source.seed}-{start + row}", latents[row], own))
    return examples


def _dataset(found: TrainingSet, source: DatasetSource, index: int, model: VideoModel, context: StageContext) -> None:
    dataset = source.path or context.dataset
    if dataset is None:
        raise ReelignError(f"sft.data.{index}.path is empty and this run curates no dataset; name one.")
    battery = context.battery
    buckets = source.buckets or [Bucket(frames=battery.frames, height=battery.height, width=battery.width)]
    for bucket in buckets:
        model.latent_shape(bucket.frames, bucket.height, bucket.width)
    rows = read_manifest(dataset)
    plan = plan_buckets(rows, buckets, source.fps or battery.fps, source.windows)
    found.plans.append(f"{dataset}\n{plan}")
    if not plan.windows:
        raise ReelignError(f"no clip of {dataset} fits a bucket:\n{plan}")
    held = held_out_names([str(row["source"]) for row in rows], source.held_out)
    cache = LatentCache(context.folder.parent / "cache", model)
    total = len(plan.windows)
    encoded = cache.encode(dataset, plan.windows, lambda done, _: context.progress("sft: encode", done, total, ""))
    outside: list[Window] = []
    for window, (latents, conditions) in zip(plan.windows, encoded, strict=True):
        example = Example(window.id, latents, conditions)
        if str(window.row["source"]) in held:
            found.held_out.append(example)
            outside.append(window)
        else:
            found.training += [example] * source.repeat
    if outside:
        found.reconstruction = _reconstruction(dataset, outside, found.held_out[-len(outside) :], model)


def held_out_names(given: Sequence[str], share: float) -> set[str]:
    """Some of the names (source files, prompts), chosen by their hash: shots of one film never stand on both sides."""
    names = sorted(set(given), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = round(share * len(names)) if share else 0
    if share and len(names) > 1:
        count = min(max(count, 1), len(names) - 1)
    return set(names[:count])


def _reconstruction(dataset: Path, windows: Sequence[Window], examples: Sequence[Example], model: VideoModel) -> float:
    """Mean PSNR in dB of real frames through the autoencoder."""
    found = []
    for window, example in zip(windows, examples, strict=True):
        real = read_window(dataset, window).astype(np.float64)
        decoded = model.decode(example.latents[None].to(model.device))[0].cpu().numpy()
        found.append(10 * np.log10(255**2 / max(float(np.mean((real - decoded) ** 2)), 1e-9)))
    return float(np.mean(found))


@torch.no_grad()
def held_out_loss(model: VideoModel, examples: Sequence[Example]) -> list[float]:
    """Flow-matching loss of each clip, mean over `LEVELS`, with noise that depends on the clip alone."""
    losses = []
    for example in examples:
        clean = example.latents[None].float().to(model.device)
        conditions = {name: value[None].to(model.device) for name, value in example.conditions.items()}
        total = 0.0
        for level in LEVELS:
            eps = torch.randn(clean.shape, generator=generator("held out", example.id, str(level))).to(model.device)
            sigma: Tensor = torch.full((1,), level, device=model.device)
            predicted = model.velocity(interpolate(clean, eps, sigma), sigma, conditions)
            total += float((predicted - velocity_target(clean, eps)).square().mean())
        losses.append(total / len(LEVELS))
    return losses


def write_held_out_figures(path: Path, before: Sequence[float], after: Sequence[float], psnr: float | None) -> None:
    """The gain on held-out real shots, for the report."""
    from reelign.evaluate.statistics import bootstrap_mean

    losses = {label: bootstrap_mean(list(values)) for label, values in (("before", before), ("after", after))}
    change = bootstrap_mean([100 * (b - a) / a for a, b in zip(before, after, strict=True)])
    figures = [
        _figure(f"Flow-matching loss on {found.n} held-out real clips, {label}", found.value, found.low, found.high)
        for label, found in losses.items()
    ]
    figures.append(_figure("Change of that loss, clip by clip", change.value, change.low, change.high, unit="%"))
    if psnr is not None:
        figures.append(_figure("The autoencoder on the same real frames", psnr, unit="dB", note="PSNR"))
    write_atomically(path, json.dumps({"figures": figures}, indent=1))


def _figure(
    label: str, value: float, low: float | None = None, high: float | None = None, unit: str = "", note: str = ""
) -> dict[str, Any]:
    """A number with its interval, as the report reads it."""
    return {"label": label, "value": value, "low": low, "high": high, "unit": unit, "note": note}
