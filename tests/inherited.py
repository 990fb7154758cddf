"""What every fork of `forks.SERVER` begins with: all imports, and what the miniature's judges compute once and keep."""

import cv2
import numpy as np
import trl.trainer.grpo_trainer
import trl.trainer.sft_trainer  # noqa: F401

import reelign.pipeline  # noqa: F401
from reelign.miniature.judge import judge
from reelign.miniature.render import render
from reelign.miniature.signals import read
from reelign.miniature.training_judge import training_judge
from reelign.miniature.world import RADII, scenes

cv2.setNumThreads(0)  # a thread that OpenCV started would be missing in every fork
for size in RADII:
    scene = next(scene for scene in scenes(held_out=False) if scene.size == size)
    clip = render(scene, np.random.default_rng(0))
    judge(clip, scene)
    training_judge(clip, scene)
    read(clip)
cv2.setNumThreads(-1)
