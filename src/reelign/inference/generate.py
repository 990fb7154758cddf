"""One clip from one prompt: `reelign generate`."""

from __future__ import annotations

import time
from pathlib import Path

from reelign.data.clip import write_clip
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample


def generate_clip(
    model: VideoModel | str,
    prompt: str,
    out: Path,
    sampler: SampleConfig,
    seed: int = 0,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> str:
    """Sample one clip and write it as MP4; the same seed gives the same clip.

    Returns:
        A sentence with size, network evaluations and seconds.
    """
    video_model = load_model(model) if isinstance(model, str) else model
    size = video_model.native_size
    frames, height, width = frames or size.frames, height or size.height, width or size.width
    started = time.perf_counter()
    noise = initial_noise([(seed, prompt, 0)], video_model.latent_shape(frames, height, width))
    sampled = sample(
        video_model,
        video_model.encode_text([prompt]),
        noise.to(video_model.device),
        sampler,
        negative=video_model.encode_text([sampler.negative_prompt]),
    )
    video = video_model.decode(sampled.latents)[0].cpu().numpy()
    write_clip(out, video, size.fps)
    seconds = time.perf_counter() - started
    return (
        f"{frames} frames of {width} x {height} at {size.fps:g} fps, {sampled.nfe} network evaluations, {seconds:.1f} s"
    )
