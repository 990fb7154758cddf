"""What pixels alone say of a clip: each planted defect moves the measure that is named after it."""

import numpy as np
import pytest

from reelign.miniature.render import defective, render, spoiled
from reelign.miniature.signals import BOUND, CALM, NAMES, read
from reelign.miniature.world import FRAMES, SIDE, scenes

SCENES = [scene for scene in scenes(True) if scene.motion not in ("still", "bouncing")][::3]


def named(frames: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, read(frames).signals, strict=True))


@pytest.mark.parametrize(
    ("defect", "measure", "sign"),
    [
        ("flicker", "light", 1),
        ("flicker", "light step", 1),
        ("jerk", "jerk", 1),
        ("jerk", "tremor", 1),
        ("teleport", "worst jerk", 1),
        ("deformation", "growth", 1),
        ("freeze", "slowest", -1),
        ("noise", "mist", 1),
        ("blur", "blur", 1),
        ("low contrast", "contrast", -1),
    ],
)
def test_a_planted_defect_moves_its_measure_on_nearly_every_scene(defect, measure, sign):
    moved = []
    for index, scene in enumerate(SCENES):
        clean, spoiled = (
            named(make(scene, np.random.default_rng(index)))[measure]
            for make in (render, lambda scene, source: defective(scene, source, defect))
        )
        moved.append(sign * (spoiled - clean) > 0)
    assert len(moved) > 20
    assert np.mean(moved) > 0.9


def test_they_are_standardised_over_rendered_clips_and_bounded():
    found = np.stack([read(render(scene, np.random.default_rng(0))).signals for scene in scenes(False)[::40]])
    assert found.dtype == np.float32
    assert np.abs(found.mean(0)).max() < 1.5
    assert np.abs(found).max() <= BOUND


@pytest.mark.parametrize("value", [0, 255])
def test_a_clip_that_shows_nothing_is_measured_too(value):
    found = read(np.full((FRAMES, SIDE, SIDE, 3), value, np.uint8)).signals
    assert np.isfinite(found).all()


def test_the_track_is_that_of_the_rendered_object():
    for index, scene in enumerate(SCENES[:12]):
        video, centres = spoiled(scene, np.random.default_rng(index), {})
        aside = read(video).track - centres  # the middle of a triangle is not half of its height
        assert np.abs(aside - aside.mean(0)).max() < 0.35, scene.id


def test_calming_keeps_a_parabola_and_takes_half_of_a_tremor():
    time = np.linspace(-1, 1, FRAMES)
    smooth = np.stack([3 * time**2, 5 * time], axis=1)
    assert np.allclose(CALM @ smooth, smooth)
    tremor = np.random.default_rng(0).standard_normal((FRAMES, 200))
    assert 0.5 < np.std(CALM @ tremor) < 0.8
