"""What the judges promise, as `reelign miniature check` measures it, on as many other clips."""

import numpy as np
import pytest

from reelign.miniature.check_judges import JUDGES, due_axis, judge_report, wrong
from reelign.miniature.outlines import ZOOM, _median, trace
from reelign.miniature.render import MOTION_DEFECTS, VISUAL_DEFECTS, coverage, defective, render
from reelign.miniature.training_judge import training_judge
from reelign.miniature.world import ATTRIBUTES, BACKGROUNDS, COLOURS, FRAMES, RADII, SIDE, Scene, scenes, track


@pytest.fixture(scope="module")
def report():
    return judge_report(n=60, seed=1)


def test_every_promise_of_the_judges_is_kept(report):
    assert not [sentence for kept, sentence in report.requirements if not kept]
    assert len(report.requirements) == 2 * (1 + len(ATTRIBUTES) + len(VISUAL_DEFECTS) + len(MOTION_DEFECTS)) + 4 + 1


def test_the_tables_show_every_defect_for_both_judges(report):
    assert [title for title, *_ in report.tables] == ["Evaluation judge", "Training judge"]
    for _, header, rows in report.tables:
        assert all(len(row) == len(header) for row in rows)
        assert {row[0] for row in rows} >= {"clean", "wrong motion", *VISUAL_DEFECTS, *MOTION_DEFECTS}


@pytest.mark.parametrize("see", JUDGES.values(), ids=JUDGES)
class TestBoth:
    def test_a_stronger_defect_scores_lower(self, see):
        scene = next(s for s in scenes(True) if s.motion == "left" and s.size == "large")
        for defect in (*VISUAL_DEFECTS, *MOTION_DEFECTS):
            axis = due_axis(defect)
            means = [
                np.mean(
                    [
                        see(defective(scene, np.random.default_rng(i), defect, strength), scene).scores[axis]
                        for i in range(8)
                    ]
                )
                for strength in (0.0, 0.5, 1.2)
            ]
            assert means[0] > means[1] > means[2], defect

    def test_an_empty_picture_and_pure_noise_score_low_and_finite(self, see):
        scene = scenes(True)[0]
        noise = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3)).astype(np.uint8)
        for frames in (np.zeros_like(noise), np.full_like(noise, 118), noise):
            verdict = see(frames, scene)
            assert all(0 <= score <= 1 for score in verdict.scores.values())
            assert verdict.visual * verdict.motion < 0.5
            assert verdict.text < 0.7

    def test_only_what_is_stated_is_judged(self, see):
        scene = next(s for s in scenes(True) if s.motion == "up")
        frames = render(wrong(scene, "size", np.random.default_rng(0)), np.random.default_rng(1))
        assert see(frames, scene, ("colour", "motion")).attributes == {"colour": True, "motion": True}
        assert see(frames, scene, ("size",)).text == 0.0

    def test_the_speed_of_a_still_object_is_never_judged(self, see):
        scene = next(s for s in scenes(True) if s.motion == "still")
        assert "speed" not in see(render(scene, np.random.default_rng(0)), scene).attributes


@pytest.mark.parametrize("change", ["larger", "smaller", "gaudier", "paler", "whiter", "blacker"])
def test_the_training_judge_pays_for_no_excess(change):
    """A policy drew larger and gaudier objects on whiter grounds while the reward had no best value in the middle."""
    background = {"whiter": "white", "blacker": "black"}.get(change, "grey")
    scene = Scene("red", "circle", "small", "right", "slow", background)
    centres = track(scene, np.random.default_rng(0))
    ground, colour = np.asarray(BACKGROUNDS[background], float), np.asarray(COLOURS["red"], float)
    clean = coverage("circle", np.full(FRAMES, RADII["small"]), centres)
    radius = RADII["small"] * {"larger": 1.2, "smaller": 0.8}.get(change, 1.0)
    gain = {"gaudier": 1.25, "paler": 0.75}.get(change, 1.0)
    shown = np.full(3, {"whiter": 255.0, "blacker": 0.0}.get(change, np.nan))
    shown = np.where(np.isnan(shown), ground, shown)

    def looks(alpha: np.ndarray, behind: np.ndarray, strength: float) -> float:
        frames = behind + alpha[..., None] * strength * (colour - ground)
        return training_judge(np.clip(np.rint(frames), 0, 255).astype(np.uint8), scene).visual

    changed = coverage("circle", np.full(FRAMES, radius), centres)
    assert looks(changed, shown, gain) < looks(clean, ground, 1.0) - 0.02


@pytest.mark.parametrize("picture", ["blank", "speckle", "noise"])
def test_a_ruined_clip_has_a_score_of_both_judges(picture):
    """A policy that is ruined draws anything; a score that is no number would end the run that should say so."""
    scene = scenes(held_out=False)[0]
    frames = np.full((FRAMES, SIDE, SIDE, 3), 118, np.uint8)
    if picture == "speckle":
        frames[:, ::7, ::5] = 122
        frames[3:9, 10:12, 10:12] = 0
    elif picture == "noise":
        frames = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    for judged in JUDGES.values():
        assert all(0 <= score <= 1 for score in judged(frames, scene).scores.values())


@pytest.mark.parametrize("count", [1, 2, 5, 17, 18])
def test_the_median_of_the_outlines_is_numpys_to_the_bit(count):
    values = np.random.default_rng(count).normal(size=(count, 4, 3)).astype(np.float32)
    before = values.copy()
    assert np.array_equal(_median(values), np.median(values, axis=0))
    assert np.array_equal(values, before)


@pytest.mark.parametrize("defect", ["none", *VISUAL_DEFECTS, *MOTION_DEFECTS, "noise everywhere"])
def test_the_typical_outline_is_the_same_where_the_whole_picture_is_looked_at(defect, monkeypatch):
    generator = np.random.default_rng(0)
    clips = [
        render(scene, generator) if defect in ("none", "noise everywhere") else defective(scene, generator, defect, 1.5)
        for scene in generator.permutation(np.array(scenes(True), dtype=object))[:12]
    ]
    if defect == "noise everywhere":
        clips = [np.clip(clip + generator.normal(0, 40, clip.shape), 0, 255).astype(np.uint8) for clip in clips]
    found = [trace(clip).typical for clip in clips]
    monkeypatch.setattr("reelign.miniature.outlines._reach", lambda profiles, shifts: (0, SIDE * ZOOM))
    whole = [trace(clip).typical for clip in clips]
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-3)  # rounding moves a pixel whose height is one half
    assert np.ptp(found, axis=0).max() > 0.1
