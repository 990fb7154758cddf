"""How good a score can be: clean data, and clean data after the autoencoder, on the battery's own scenes."""

from __future__ import annotations

import numpy as np
import torch

from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.miniature.judge import judge
from reelign.miniature.judgement import AXES
from reelign.miniature.render import render
from reelign.models.base import VideoModel


def miniature_ceilings(model: VideoModel, config: BatteryConfig) -> dict[str, dict[str, float]]:
    """Mean score per axis of clean renderings ("clean") and of their reconstructions ("codec")."""
    todo = [task for task in tasks(config) if task.scene is not None]
    generator = np.random.default_rng(config.seed)
    clean = np.stack([render(task.scene, generator) for task in todo if task.scene is not None])
    with torch.no_grad():
        decoded = [
            model.decode(model.encode_video(torch.from_numpy(clean[start : start + 16]).to(model.device))).cpu().numpy()
            for start in range(0, len(clean), 16)
        ]
    return {"clean": _means(clean, todo), "codec": _means(np.concatenate(decoded), todo)}


def _means(videos: np.ndarray, todo: list) -> dict[str, float]:
    scores = [judge(video, task.scene, task.stated).scores for video, task in zip(videos, todo, strict=True)]
    return {axis: float(np.mean([score[axis] for score in scores])) for axis in AXES}
