"""Does a stream get worse the longer it runs? A rollout of several times the trained length, judged part by part.

Only what does not depend on where a motion began is judged: the attributes of looks, and visual quality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from reelign.evaluate.battery import BatteryConfig, generate_batch, tasks
from reelign.evaluate.statistics import bootstrap_mean
from reelign.miniature.judge import judge
from reelign.models.base import VideoModel
from reelign.sampling.sample import SampleConfig

LOOKS = ("colour", "shape", "size", "background")
TIMES = 4
"""How many trained lengths a rollout takes, and how many parts are judged."""


def drift(
    model: VideoModel, config: BatteryConfig, sampler: SampleConfig, progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], np.ndarray]:
    """Judge long rollouts of the battery's test prompts.

    Returns:
        `parts`: quality (mean of looks and visual score, 0 to 1) of each part with its interval; `kept`: the last
        part's quality over the first's. And the frames of the first rollout, uint8 (T, H, W, 3).
    """
    todo = tasks(config)
    latent = model.latent_shape(config.frames, config.height, config.width)[1]
    long = config.model_copy(update={"frames": 1 + model.frame_stride * (TIMES * latent - 1)})
    scores: list[list[float]] = []
    first = np.empty(0)
    for start in range(0, len(todo), config.batch_size):
        batch = todo[start : start + config.batch_size]
        videos, _ = generate_batch(model, [(task.prompt, task.id) for task in batch], long, sampler, config.seed)
        first = videos[0] if not start else first
        for task, video in zip(batch, videos, strict=True):
            assert task.scene is not None
            found = [
                judge(part, task.scene, [name for name in LOOKS if name in task.stated]) for part in quarters(video)
            ]
            scores.append([(one.text + one.visual) / 2 for one in found])
        if progress is not None:
            progress(len(scores), len(todo))
    table, prompts = np.asarray(scores), [task.prompt for task in todo]
    parts = [asdict(bootstrap_mean(list(table[:, part]), prompts)) for part in range(TIMES)]
    return {"parts": parts, "kept": float(table[:, -1].mean() / table[:, 0].mean())}, first


def quarters(video: np.ndarray) -> list[np.ndarray]:
    """A video (T, ...) in as many parts as it has trained lengths."""
    return np.array_split(video, TIMES)
