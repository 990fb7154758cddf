"""Each metric sees the defect that it is named after, and a clean rendering passes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from reelign.data.clip import Clip
from reelign.data.metrics import ClipMetrics, optical_flow

FRAMES, SIDE, FPS = 17, 96, 8.0


def texture(side: int, seed: int, scale: float) -> np.ndarray:
    """Smooth random grey values in [60, 200], shape (side, side), float32."""
    noise = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), scale)
    return 130 + 70 * np.clip(smooth / (3 * smooth.std()), -1, 1)


def rendered(speed: float = 2.0, side: int = SIDE) -> Clip:
    """A textured square that moves `speed` pixels a frame to the right over a still background, anti-aliased."""
    background, patch = texture(side, 1, side / 12), texture(side // 3, 2, side / 24)
    frames = []
    for index in range(FRAMES):
        place = np.array([[1, 0, side / 8 + speed * index], [0, 1, side / 3]], np.float32)
        layer = cv2.warpAffine(patch, place, (side, side))
        mask = cv2.warpAffine(np.ones_like(patch), place, (side, side))
        grey = background * (1 - mask) + layer * mask
        frames.append(np.repeat(grey[..., None], 3, axis=2))
    return Clip(np.stack(frames).round().astype(np.uint8), FPS, id="rendered")


def changed(clip: Clip, frames: np.ndarray) -> Clip:
    return replace(clip, frames=np.clip(frames, 0, 255).round().astype(np.uint8))


CLEAN = rendered()


def test_a_clean_clip_has_no_defect() -> None:
    found = ClipMetrics(CLEAN)
    assert found.flicker < 0.002
    assert found.warp_error < 0.01
    assert found.exposure == 1.0
    assert all(0 <= score <= 1 for score in found.scores().values())


def test_flickering_light_is_flicker_and_a_steady_fade_is_not() -> None:
    light = 1 + 0.15 * (-1.0) ** np.arange(FRAMES).reshape(-1, 1, 1, 1)
    fade = np.linspace(1, 0.7, FRAMES).reshape(-1, 1, 1, 1)
    clean = ClipMetrics(CLEAN).flicker
    assert ClipMetrics(changed(CLEAN, CLEAN.frames * light)).flicker > 0.1
    assert ClipMetrics(changed(CLEAN, CLEAN.frames * fade)).flicker < clean + 0.003


def test_boiling_texture_and_teleports_are_warp_error_and_smooth_motion_is_not() -> None:
    grain = np.random.default_rng(5).normal(0, 20, CLEAN.frames.shape[:3])[..., None]
    boiling = changed(CLEAN, CLEAN.frames + grain)
    teleporting = changed(CLEAN, CLEAN.frames[np.random.default_rng(6).permutation(FRAMES)])
    clean = ClipMetrics(CLEAN).warp_error
    assert ClipMetrics(boiling).warp_error > 5 * clean
    assert ClipMetrics(teleporting).warp_error > 2 * clean


def test_the_dynamic_degree_is_the_speed_in_diagonals_a_second() -> None:
    for speed in (1.0, 2.0):
        expected = speed * FPS / (SIDE * np.sqrt(2))
        # The flow is estimated: within a quarter of the truth for a patch that fills a ninth of the picture.
        assert ClipMetrics(rendered(speed)).dynamic_degree == pytest.approx(expected, rel=0.25)


def test_a_frozen_clip_does_not_move_and_the_frame_rate_counts() -> None:
    frozen = changed(CLEAN, np.repeat(CLEAN.frames[:1], FRAMES, axis=0))
    assert ClipMetrics(frozen).dynamic_degree < 1e-3
    assert ClipMetrics(frozen).scores()["dynamics"] < 0.01
    fast = ClipMetrics(replace(CLEAN, fps=16.0)).dynamic_degree
    assert fast == pytest.approx(2 * ClipMetrics(CLEAN).dynamic_degree)


def test_blur_lowers_sharpness_and_little_else() -> None:
    soft = changed(CLEAN, np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in CLEAN.frames]))
    clean, blurred = ClipMetrics(CLEAN), ClipMetrics(soft)
    assert blurred.sharpness < 0.6 * clean.sharpness
    assert blurred.exposure == clean.exposure
    assert abs(blurred.flicker - clean.flicker) < 0.001


def test_a_clean_edge_between_black_and_white_has_full_sharpness_at_any_size() -> None:
    for side in (32, 96, 512):
        frames = np.zeros((2, side, side, 3), np.uint8)
        frames[:, np.arange(side) * 8 // side % 2 == 1] = 255
        assert ClipMetrics(Clip(frames, FPS)).sharpness > 0.7


@pytest.mark.parametrize("gain", [0.0, 4.5])
def test_crushed_and_blown_out_pictures_lose_exposure(gain: float) -> None:
    assert ClipMetrics(changed(CLEAN, CLEAN.frames * gain)).exposure < 0.3


def test_one_frame_is_a_picture_without_motion() -> None:
    found = ClipMetrics(replace(CLEAN, frames=CLEAN.frames[:1]))
    assert (found.flicker, found.warp_error, found.dynamic_degree) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 4, 600), (3, 8, 8), (2, 33, 47)])
def test_clips_of_odd_sizes_are_measured(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(7).integers(0, 256, (*shape, 3), np.uint8)
    assert all(np.isfinite(score) for score in ClipMetrics(Clip(frames, FPS)).scores().values())


def test_the_flow_points_back_to_where_things_were() -> None:
    picture = texture(64, 3, 4) / 255
    moved = np.roll(picture, 3, axis=1)
    flow = optical_flow(picture, moved)[16:-16, 16:-16]
    # A shift of whole pixels of a smooth picture: a tenth of a pixel is the method's own error.
    assert np.median(flow[..., 0]) == pytest.approx(-3, abs=0.1)
    assert np.median(flow[..., 1]) == pytest.approx(0, abs=0.1)
