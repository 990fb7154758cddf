"""What can be known to be wrong before the hours are spent: `reelign doctor RECIPE`.

Each check gives one finding: a sentence that says what was found or what to do. The doctor changes nothing and trains
nothing; it loads the model on the CPU and looks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from reelign.data.buckets import Bucket, plan_buckets
from reelign.data.curate import VIDEO_SUFFIXES
from reelign.data.manifest import read_manifest, verify_clips
from reelign.data.prompts import read_prompts
from reelign.errors import ReelignError
from reelign.models.adapter import attach_lora
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.pipeline import FOOTAGE
from reelign.recipe import Recipe
from reelign.stages.sft import SftConfig
from reelign.stages.sources import DatasetSource, MiniatureSource

GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    check: str
    passed: bool
    sentence: str


def examine(recipe: Recipe) -> list[Finding]:
    """Every finding of a recipe, in the order in which a run would meet the problems."""
    findings = [_finding("device", lambda: _device(recipe))]
    model: VideoModel | None = None
    try:
        model = load_model(recipe.model, dtype=recipe.dtype, device="cpu")
        findings.append(Finding("model", True, f"{recipe.model} loads: {_parameters(model) / 1e6:.1f} M weights."))
    except ReelignError as error:
        findings.append(Finding("model", False, str(error)))
    if recipe.curate is not None:
        footage = FOOTAGE if str(recipe.curate.footage) == "miniature" else recipe.curate.footage
        findings.append(_finding("footage", lambda: _footage(footage)))
    if model is not None:
        findings += _with_model(recipe, model)
    findings.append(_finding("disk", lambda: _disk(recipe, model)))
    return findings


def _with_model(recipe: Recipe, model: VideoModel) -> Iterator[Finding]:
    battery = recipe.battery
    yield _finding("battery size", lambda: _shape(model, battery.frames, battery.height, battery.width))
    if battery.prompts is not None:
        yield _finding("prompts", lambda path=battery.prompts: f"{len(read_prompts(path))} prompts in {path}.")
    yield _finding("sampler", lambda: _sampler(recipe, model))
    if recipe.sft is None:
        return
    sft = recipe.sft
    for index, source in enumerate(sft.data):
        if isinstance(source, DatasetSource):
            yield _finding(f"sft.data.{index}", lambda s=source, i=index: _dataset(recipe, model, s, i))
        elif isinstance(source, MiniatureSource):
            yield Finding(f"sft.data.{index}", True, f"{source.count} clean pairs of the miniature, made in memory.")
    yield _finding("batch", lambda: _batch(sft))
    if sft.method == "lora":
        yield _finding("LoRA coverage", lambda: attach_lora(model, sft.lora).sentence)
    yield _finding("memory", lambda: _memory(recipe, sft, model))
    yield _finding("shards", lambda: _shards(model))


def _finding(check: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(check, True, look())
    except ReelignError as error:
        return Finding(check, False, str(error))


def _device(recipe: Recipe) -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, bf16 supported."
    if recipe.dtype == "bfloat16":
        raise ReelignError(
            "there is no CUDA device, and bfloat16 training on a CPU is slow and coarse; set dtype=float32."
        )
    return f"no CUDA device; {os.cpu_count()} CPU cores."


def _footage(folder: Path) -> str:
    if not folder.is_dir():
        raise ReelignError(f"curate.footage: there is no folder {folder}.")
    files = [p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise ReelignError(f"curate.footage: {folder} holds no video file.")
    return f"{len(files)} video files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MiB."


def _shape(model: VideoModel, frames: int, height: int, width: int) -> str:
    shape = model.latent_shape(frames, height, width)
    return f"{frames} x {height} x {width} is a latent of {' x '.join(map(str, shape))}."


def _sampler(recipe: Recipe, model: VideoModel) -> str:
    sampler = recipe.sampler
    shipped = model.scheduler_shift
    if sampler.shift != shipped:
        return (
            f"validation, evaluation and samples share one grid: {sampler.steps} {sampler.solver} steps, shift "
            f"{sampler.shift:g}. The checkpoint ships shift {shipped:g}: make sure that the difference is meant."
        )
    return (
        f"validation, evaluation and samples share one grid: {sampler.steps} {sampler.solver} steps, shift {shipped:g}."
    )


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
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if config.batch_size % (ranks * config.accumulate):
        raise ReelignError(
            f"sft.batch_size={config.batch_size} does not divide over {ranks} ranks x "
            f"sft.accumulate={config.accumulate}."
        )
    share = config.batch_size // ranks // config.accumulate
    return f"{config.batch_size} = {ranks} ranks x {config.accumulate} passes x {share}."


def _memory(recipe: Recipe, config: SftConfig, model: VideoModel) -> str:
    """Weights, gradients, fp32 masters, two moments and the average; activations by a rule of thumb per token."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    every = _parameters(model)
    trained = _trained_parameters(model, config)
    width = 2 if recipe.dtype == "bfloat16" else 4
    states = trained * (4 + 4 + 4 + 4 + (4 if width == 2 else 0))
    tokens = _tokens(recipe, model) * config.batch_size // (ranks * config.accumulate)
    activations = tokens * _activation_bytes(model, width, config.gradient_checkpointing)
    need = (every * width + states) / ranks + activations
    have = _free_memory()
    sentence = (
        f"about {need / GIB:.1f} GiB a rank: {every * width / ranks / GIB:.1f} weights, {states / ranks / GIB:.1f} "
        f"training state, {activations / GIB:.1f} activations; {have / GIB:.1f} GiB free."
    )
    if need > have:
        raise ReelignError(
            f"{sentence} Lower sft.batch_size or raise sft.accumulate, turn on sft.gradient_checkpointing, use "
            "sft.method=lora or more ranks."
        )
    return sentence


def _trained_parameters(model: VideoModel, config: SftConfig) -> int:
    networks = model.denoisers().values()
    if config.method == "full":
        return sum(p.numel() for network in networks for p in network.parameters())
    return sum(p.numel() for network in networks for name, p in network.named_parameters() if "lora" in name)


def _parameters(model: VideoModel) -> int:
    return sum(p.numel() for network in model.denoisers().values() for p in network.parameters())


def _tokens(recipe: Recipe, model: VideoModel) -> int:
    battery = recipe.battery
    _, frames, height, width = model.latent_shape(battery.frames, battery.height, battery.width)
    return frames * height * width // 4


def _activation_bytes(model: VideoModel, width: int, checkpointing: bool) -> float:
    """Bytes a token keeps for the backward pass: about 34 values of the width a block, one with checkpointing."""
    network = next(iter(model.denoisers().values()))
    values = network.config.num_attention_heads * network.config.attention_head_dim
    blocks = network.config.num_layers
    return float(values * width * (blocks + 34 if checkpointing else 34 * blocks))


def _free_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _shards(model: VideoModel) -> str:
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    blocks = sum(len(network.blocks) for network in model.denoisers().values())
    if ranks > 1 and not blocks:
        raise ReelignError("no transformer block was found to shard: every rank would hold the whole model.")
    return f"{blocks} blocks over {ranks} rank{'s' if ranks > 1 else ''}."


def _disk(recipe: Recipe, model: VideoModel | None) -> str:
    """Three checkpoints of the training state and one artifact."""
    place = recipe.runs
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    weights = _parameters(model) if model is not None else 0
    trained = _trained_parameters(model, recipe.sft) if model is not None and recipe.sft is not None else 0
    need = 3 * trained * 20 + weights * 4 + GIB // 4
    sentence = f"about {need / GIB:.1f} GiB needed in {place}, {free / GIB:.1f} GiB free."
    if need > free:
        raise ReelignError(f"{sentence} Free some space or set runs=/another/disk.")
    return sentence
