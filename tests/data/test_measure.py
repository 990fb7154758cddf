"""Each measure rises with what it is named after and with nothing else."""

import cv2
import numpy as np
import pytest

from footage import SIDE, pan, texture
from reelign.data.measure import ShotMeasures, measure_frame, measure_shot, perceptual_hash


def measured(frames: np.ndarray, fps: float = 8.0) -> ShotMeasures:
    found, before = [], None
    for frame in frames:
        found.append(measure_frame(np.ascontiguousarray(frame), before, 1 / fps))
        before = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
    return measure_shot(found)


FRAMES = pan(1, 9)
CLEAN = measured(FRAMES)


def test_motion_is_in_diagonals_a_second():
    # Two pixels a frame, eight frames a second, over the diagonal; a quarter is the flow's own error.
    assert measured(FRAMES).motion == pytest.approx(2 * 8 / (SIDE * np.sqrt(2)), rel=0.25)
    assert measured(FRAMES, fps=16).motion == pytest.approx(2 * CLEAN.motion)
    assert measured(np.repeat(FRAMES[:1], 9, axis=0)).motion == pytest.approx(0, abs=1e-3)


def test_blur_lowers_sharpness():
    soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in FRAMES])
    assert measured(soft).sharpness < 0.6 * CLEAN.sharpness


def test_a_clean_edge_is_sharp():
    edge = np.zeros((2, 64, 64, 3), np.uint8)
    edge[:, :, 32:] = 255
    assert measured(edge).sharpness == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("sigma", [5, 10, 20])
def test_noise_is_measured_at_its_strength_over_a_smooth_picture(sigma):
    picture = cv2.GaussianBlur(texture(1, SIDE), (0, 0), 6).astype(float) * 0.5 + 60
    grain = np.random.default_rng(0).normal(0, sigma, (4, SIDE, SIDE, 1))
    noisy = np.clip(picture + grain, 0, 255).round().astype(np.uint8)
    assert measured(noisy).noise == pytest.approx(sigma / 255, rel=0.1)


def test_black_bars_are_measured_as_the_share_that_they_cover():
    barred = FRAMES.clip(40, 255)
    assert measured(barred).black_bars == 0
    barred[:, :12] = barred[:, -12:] = 0
    assert measured(barred).black_bars == pytest.approx(24 / SIDE)
    barred[:, :, :24] = 0
    assert measured(barred).black_bars == pytest.approx(1 - (1 - 24 / SIDE) * (1 - 24 / SIDE))


def test_crushed_and_blown_out_pixels_lower_exposure():
    half = np.full((2, 64, 64, 3), 128, np.uint8)
    half[:, :16], half[:, -16:] = 0, 255
    assert measured(half).exposure == pytest.approx(0.5)


def test_grey_has_no_colour():
    grey = np.repeat(FRAMES.mean(-1, keepdims=True).astype(np.uint8), 3, axis=-1)
    assert measured(grey).colourfulness == 0
    assert CLEAN.colourfulness > 0.2


def test_flicker_is_seen_and_a_steady_fade_is_not():
    light = 1 + 0.1 * (-1.0) ** np.arange(9).reshape(-1, 1, 1, 1)
    fade = np.linspace(1, 0.7, 9).reshape(-1, 1, 1, 1)
    assert measured((FRAMES * 0.9 * light).astype(np.uint8)).flicker > 0.05
    assert measured((FRAMES * fade).astype(np.uint8)).flicker < 0.01


def test_burnt_in_rows_of_letters_are_text_and_moving_detail_is_not():
    stamped = cv2.GaussianBlur(texture(2, 256), (0, 0), 4)[None].repeat(6, axis=0)
    for frame in stamped:
        for line in range(3):
            cv2.putText(frame, "MINIMUM WILL", (8, 120 + 40 * line), cv2.FONT_HERSHEY_SIMPLEX, 1.1, (255,) * 3, 3)
    assert measured(stamped).text > 0.1
    assert CLEAN.text == 0


def test_the_hash_survives_size_and_compression_and_tells_pictures_apart():
    def grey(image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)

    def bits(first: np.ndarray, second: np.ndarray) -> int:
        return (perceptual_hash(grey(first)) ^ perceptual_hash(grey(second))).bit_count()

    picture = texture(3)
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 15])
    assert bits(picture, cv2.resize(picture, (100, 80))) <= 4
    assert bits(picture, np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))) <= 4
    assert bits(picture, texture(4)) > 16
    mirrored = measure_frame(np.ascontiguousarray(picture[:, ::-1]), None, 0).mirrored_hash
    assert mirrored == perceptual_hash(grey(picture))


@pytest.mark.parametrize("shape", [(1, 1), (2, 300), (11, 11)])
def test_pictures_of_any_size_are_measured(shape):
    frames = np.random.default_rng(1).integers(0, 256, (3, *shape, 3), np.uint8)
    assert all(np.isfinite(value) for value in vars(measured(frames)).values())
