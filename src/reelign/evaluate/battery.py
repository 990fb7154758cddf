"""The battery: fixed prompts and seeds, sampled with the deployment sampler, judged clip by clip.

Two artifacts that ran the same battery can be compared item by item. The miniature's battery is made of held-out scenes
only, and its validation and test halves share no scene; a battery of a user's own prompts is measured without weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from reelign.data.clip import Clip, write_clip
from reelign.data.metrics import ClipMetrics
from reelign.data.prompts import read_prompts
from reelign.enhancer.enhancer import Enhancer
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.miniature.captions import full_prompt, user_prompt
from reelign.miniature.judge import judge
from reelign.miniature.judgement import AXES
from reelign.miniature.world import FPS, FRAMES, SIDE, Scene, scenes
from reelign.models.base import VideoModel
from reelign.sampling.noise import NoiseKey, initial_noise
from reelign.sampling.sample import SampleConfig, sample

Split = Literal["validation", "test"]
Progress = Callable[[int, int], None]
"""Called with (clips done, clips in all)."""


class BatteryConfig(BaseModel):
    """Which prompts and seeds are judged, and by whom."""

    model_config = ConfigDict(extra="forbid")
    judge: Literal["miniature", "pixels"] = Field(
        default="miniature", description="'miniature' scores against the scene; 'pixels' measures without weights."
    )
    prompts: Path | None = Field(default=None, description="Prompt list of a 'pixels' battery.")
    style: Literal["full", "user"] = Field(default="full", description="Full captions or the short ones users type.")
    count: int = Field(default=96, ge=2, le=160, description="Prompts of the test half.")
    validation_count: int = Field(default=32, ge=2, le=60, description="Prompts of the validation half.")
    seed: int = Field(default=0, ge=0, description="Seed of the battery's own noise; never the seed of the training.")
    frames: int = Field(default=FRAMES, ge=1, description="Frames a clip, 4n + 1.")
    height: int = Field(default=SIDE, ge=8, description="Height of a clip in pixels.")
    width: int = Field(default=SIDE, ge=8, description="Width of a clip in pixels.")
    fps: float = Field(default=FPS, gt=0, description="Frames a second.")
    batch_size: int = Field(default=16, ge=1, description="Clips sampled at once.")
    keep_clips: int = Field(default=12, ge=0, description="Clips of the test half that are kept for the report.")

    @model_validator(mode="after")
    def _prompts_belong_to_pixels(self) -> BatteryConfig:
        if (self.judge == "pixels") != (self.prompts is not None):
            raise ValueError("a 'pixels' battery needs `prompts`, and the 'miniature' battery brings its own")
        return self


@dataclass(frozen=True)
class Task:
    """One clip of the battery; `scene` and `stated` are known for the miniature."""

    id: str
    prompt: str
    scene: Scene | None = None
    stated: tuple[str, ...] = ()


def tasks(config: BatteryConfig, split: Split = "test") -> list[Task]:
    """The battery's clips in their fixed order."""
    if config.prompts is not None:
        listed = read_prompts(config.prompts)
        chosen = listed[: config.count] if split == "test" else listed[-config.validation_count :]
        return [Task(prompt.id, prompt.text) for prompt in chosen]
    order = np.random.default_rng(20_260_428).permutation(len(pool := scenes(held_out=True)))
    start, count = (0, config.validation_count) if split == "validation" else (60, config.count)
    found = []
    for position, index in enumerate(order[start : start + count]):
        generator = np.random.default_rng((7, start + position))
        scene = pool[int(index)]
        prompt = full_prompt(scene) if config.style == "full" else user_prompt(scene, generator)
        found.append(Task(scene.id, prompt.text, scene, prompt.stated))
    return found


def run_battery(
    model: VideoModel,
    config: BatteryConfig,
    sampler: SampleConfig,
    split: Split = "test",
    folder: Path | None = None,
    progress: Progress | None = None,
    measured: bool = False,
    enhancer: Enhancer | None = None,
) -> Evaluation:
    """Sample and judge every clip of the battery.

    Args:
        model: what is judged.
        config: the battery.
        sampler: the deployment sampler.
        split: "validation" while training, "test" for what is reported.
        folder: where the first `keep_clips` clips are written as `samples/ID.mp4`.
        progress: told after each batch.
        measured: whether each clip is measured without weights too, whatever the judge.
        enhancer: rewrites the prompts for the model; the clips are judged by the prompts as they were.

    Returns:
        Scores per clip and axis; `Evaluation.nfe` and `.clips` are what it cost.
    """
    todo = tasks(config, split)
    rewrites = enhancer([task.prompt for task in todo]) if enhancer is not None else []
    said = {rewrite.prompt: rewrite.text for rewrite in rewrites}
    items: list[Item] = []
    nfe = 0
    for batch in _batches(todo, config.batch_size):
        frames, evaluations = generate_batch(
            model, [(said.get(task.prompt, task.prompt), task.id) for task in batch], config, sampler, config.seed
        )
        nfe += evaluations
        for task, video in zip(batch, frames, strict=True):
            place = None
            if folder is not None and len(items) < config.keep_clips:
                place = f"samples/{task.id}.mp4"
                write_clip(folder / place, video, config.fps)
            items.append(judge_clip(task, video, config, place, measured))
        if progress is not None:
            progress(len(items), len(todo))
    for place, rewrite in enumerate(rewrites):
        items[place] = replace(items[place], rewrite=rewrite.text, outcome=rewrite.label)
    axes = AXES if config.judge == "miniature" else tuple(items[0].scores)
    return Evaluation(
        battery={**config.model_dump(mode="json"), "split": split}, axes=axes, items=tuple(items), nfe=nfe
    )


def generate_batch(
    model: VideoModel,
    prompts: Sequence[tuple[str, str]],
    size: BatteryConfig,
    sampler: SampleConfig,
    seed: int,
) -> tuple[np.ndarray, int]:
    """Sample clips for (prompt, id) pairs.

    Returns:
        frames uint8 (B, T, H, W, 3), and the network evaluations spent.
    """
    keys: list[NoiseKey] = [(seed, name, 0) for _, name in prompts]
    return generate_keyed(model, [text for text, _ in prompts], keys, size, sampler)


def generate_keyed(
    model: VideoModel, texts: Sequence[str], keys: Sequence[NoiseKey], size: BatteryConfig, sampler: SampleConfig
) -> tuple[np.ndarray, int]:
    """The same for prompts whose noise has keys of the caller's."""
    noise = initial_noise(keys, model.latent_shape(size.frames, size.height, size.width))
    conditions = model.encode_text(texts)
    negative = model.encode_text([sampler.negative_prompt] * len(texts))
    sampled = sample(model, conditions, noise.to(model.device), sampler, negative=negative)
    return model.decode(sampled.latents).cpu().numpy(), sampled.nfe


def judge_clip(task: Task, video: np.ndarray, config: BatteryConfig, place: str | None, measured: bool) -> Item:
    """Judge a clip (T, H, W, 3) of the battery; `place` is its file, if it was kept."""
    found = ClipMetrics(Clip(video, config.fps, task.prompt, task.id))
    measures = found.measures if measured else {}
    if task.scene is not None:
        verdict = judge(video, task.scene, task.stated)
        return Item(task.id, task.prompt, config.seed, verdict.scores, verdict.attributes, place, measures)
    return Item(task.id, task.prompt, config.seed, found.scores(), {}, place, measures)


def _batches(todo: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    for start in range(0, len(todo), size):
        yield todo[start : start + size]
