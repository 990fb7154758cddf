"""The checks of a recipe in the order in which a run would meet the problems.

Each check gives one finding: a sentence that says what was found or what to do. The doctor changes nothing on disk and
trains nothing that lasts; it loads the model and looks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from reelign.data.curate import VIDEO_SUFFIXES
from reelign.data.prompts import read_prompts
from reelign.doctor.distill import examine_distill
from reelign.doctor.enhance import examine_enhance
from reelign.doctor.feedback import examine_feedback
from reelign.doctor.finding import Finding, look, of_all_ranks
from reelign.doctor.memory import disk, latent, parameters, planned_ranks
from reelign.doctor.rlhf import examine_rlhf
from reelign.doctor.sft import examine_sft
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.pipeline import FOOTAGE
from reelign.recipe import Recipe
from reelign.rewards.vlm_network import VlmNetworkConfig
from reelign.train.parallel import World


def examine(recipe: Recipe) -> list[Finding]:
    """Every finding of a recipe. Under torchrun all ranks look, and the first one has what all of them found."""
    world = _world()
    try:
        return of_all_ranks(list(_findings(recipe, world)), world)
    finally:
        world.stop()


def _world() -> World:
    """The ranks that were launched; a WORLD_SIZE without ranks is a plan, which one rank examines."""
    if "RANK" in os.environ:
        return World.start()
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), None)


def _findings(recipe: Recipe, world: World) -> Iterator[Finding]:
    yield look("device", lambda: _device(recipe))
    model: VideoModel | None = None
    try:
        model = load_model(recipe.model, dtype=recipe.dtype, device="cpu")
        yield Finding("model", True, f"{recipe.model} loads: {parameters(model) / 1e6:.1f} M weights.")
    except ReelignError as error:
        yield Finding("model", False, str(error))
    if recipe.curate is not None:
        footage = FOOTAGE if str(recipe.curate.footage) == "miniature" else recipe.curate.footage
        yield look("footage", lambda: _footage(footage))
    if model is not None:
        yield from _with_model(recipe, model, world)
    yield look("disk", lambda: disk(recipe, model))


def _with_model(recipe: Recipe, model: VideoModel, world: World) -> Iterator[Finding]:
    battery = recipe.battery
    size = look("battery size", lambda: f"{latent(battery, model)}.")
    yield size
    if battery.prompts is not None:
        yield look("prompts", lambda path=battery.prompts: f"{len(read_prompts(path))} prompts in {path}.")
    yield look("sampler", lambda: _sampler(recipe, model))
    if recipe.sft is not None:
        yield from examine_sft(recipe, recipe.sft, model)
    if any(stage is not None for stage in (recipe.sft, recipe.dpo, recipe.rlhf, recipe.distill)):
        yield look("shards", lambda: _shards(model))
    if not size.passed:
        yield Finding("rehearsal", True, "left out until the size of a clip passes.")
        return
    if recipe.votes is not None:
        yield from examine_feedback(recipe, model, world)
    if recipe.rlhf is not None:
        yield from examine_rlhf(recipe, recipe.rlhf, model, world)
    if recipe.enhance is not None:
        yield from examine_enhance(recipe, recipe.enhance, model, world)
    if recipe.distill is not None:
        yield from examine_distill(recipe, recipe.distill, model, world)


def _device(recipe: Recipe) -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, bf16 supported."
    dtypes = {"dtype": recipe.dtype, "enhance.dtype": recipe.enhance.dtype if recipe.enhance is not None else ""}
    if recipe.reward is not None and isinstance(network := recipe.reward.network, VlmNetworkConfig):
        dtypes["reward.network.dtype"] = network.dtype
    if coarse := [f"{key}=float32" for key, dtype in dtypes.items() if dtype == "bfloat16"]:
        raise ReelignError(
            f"there is no CUDA device, and bfloat16 training on a CPU is slow and coarse; set {' '.join(coarse)}."
        )
    return f"no CUDA device; {os.cpu_count()} CPU cores."


def _footage(folder: Path) -> str:
    if not folder.is_dir():
        raise ReelignError(f"curate.footage: there is no folder {folder}.")
    files = [p for p in folder.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise ReelignError(f"curate.footage: {folder} holds no video file.")
    return f"{len(files)} video files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MiB."


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


def _shards(model: VideoModel) -> str:
    ranks = planned_ranks()
    blocks = sum(len(network.blocks) for network in model.denoisers().values())
    if ranks > 1 and not blocks:
        raise ReelignError("no transformer block was found to shard: every rank would hold the whole model.")
    return f"{blocks} blocks over {ranks} rank{'s' if ranks > 1 else ''}."
