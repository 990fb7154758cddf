"""Checks of supervised fine-tuning: its data, its batch, what learns, and the memory that this takes."""

from __future__ import annotations

from collections.abc import Iterator

from reelign.data.buckets import Bucket, plan_buckets
from reelign.data.manifest import read_manifest, verify_clips
from reelign.doctor.finding import Finding, look
from reelign.doctor.memory import adapted, planned_ranks, sft_memory
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.recipe import Recipe
from reelign.stages.sft import SftConfig
from reelign.stages.sources import DatasetSource, MiniatureSource
from reelign.stages.trainee import TraineeConfig


def examine_sft(recipe: Recipe, config: SftConfig, model: VideoModel) -> Iterator[Finding]:
    """The findings of a recipe's `sft:`."""
    for index, source in enumerate(config.data):
        if isinstance(source, DatasetSource):
            yield look(f"sft.data.{index}", lambda s=source, i=index: _dataset(recipe, model, s, i))
        elif isinstance(source, MiniatureSource):
            yield Finding(f"sft.data.{index}", True, f"{source.count} clean pairs of the miniature, made in memory.")
    yield look("batch", lambda: _batch(config))
    if config.method == "lora":
        coverage = look("LoRA coverage", lambda: lora_coverage(model, config))
        yield coverage
        if not coverage.passed:
            return
    yield look("memory", lambda: sft_memory(recipe, config, model))


def lora_coverage(model: VideoModel, config: TraineeConfig) -> str:
    """Which modules a stage's adapters cover."""
    with adapted(model, config) as coverage:
        return coverage.sentence


def _dataset(recipe: Recipe, model: VideoModel, source: DatasetSource, index: int) -> str:
    bucket = Bucket(frames=recipe.battery.frames, height=recipe.battery.height, width=recipe.battery.width)
    buckets = source.buckets or [bucket]
    for chosen in buckets:
        model.latent_shape(chosen.frames, chosen.height, chosen.width)
    if source.path is None:
        if recipe.curate is None:
            raise ReelignError(
                f"sft.data.{index}.path is not given and the recipe has no `curate:` stage to make a dataset."
            )
        return "the dataset that this run curates; every bucket fits the autoencoder."
    rows = read_manifest(source.path)
    missing = verify_clips(source.path, rows)
    if missing:
        raise ReelignError(
            f"{source.path}: {len(missing)} clips are gone or changed, first {missing[0]}; curate again."
        )
    plan = plan_buckets(rows, buckets, source.fps or recipe.battery.fps, source.windows)
    if not plan.windows:
        raise ReelignError(f"{source.path}: none of its {len(rows)} clips fits a bucket. {plan}")
    without = sum(not row.get("caption") for row in rows)
    caption = f"{without} of them without a caption" if without else "all captioned"
    return f"{len(rows)} clips, {caption}; {len(plan.windows)} training clips in buckets that fit the autoencoder."


def _batch(config: SftConfig) -> str:
    ranks = planned_ranks()
    if config.batch_size % (ranks * config.accumulate):
        raise ReelignError(
            f"sft.batch_size={config.batch_size} does not divide over {ranks} ranks x "
            f"sft.accumulate={config.accumulate}."
        )
    share = config.batch_size // ranks // config.accumulate
    return f"{config.batch_size} = {ranks} ranks x {config.accumulate} passes x {share}."
