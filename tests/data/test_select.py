"""Gates, near-duplicates and percentiles, on rows written by hand."""

from dataclasses import asdict

import pytest

from reelign.data.measure import ShotMeasures
from reelign.data.select import SelectConfig, blurriest, find_duplicates, gate_shot, motion_cells

RULES = SelectConfig()
MEASURES = asdict(ShotMeasures(0.5, 0.01, 1.0, 0.4, 0.2, 0.0, 0.0, 0.0, 0.5))
PROBE = {"height": 480, "width": 832, "fps": 24.0, "duplicate_frames": 0.0}


def shot(**changes) -> dict:
    row = {"source": "a.mp4", "start": 0.0, "end": 3.0, "frames": 72, "measures": MEASURES}
    row |= {"pixels": 100, "bytes_per_second": 1.0, "hashes": ["0" * 16], "mirrored": ["0" * 16]}
    return row | changes


def test_a_good_shot_passes():
    assert gate_shot(shot(), PROBE, RULES) is None


@pytest.mark.parametrize(
    ("changed_shot", "changed_probe", "changed_measures", "rule", "value", "threshold"),
    [
        ({"end": 0.9}, {}, {}, "too short", "0.90 s, 72 frames", "1 s, 9 frames"),
        ({"frames": 8}, {}, {}, "too short", "3.00 s, 8 frames", "1 s, 9 frames"),
        ({}, {"width": 47}, {}, "too small", "47", "48"),
        ({}, {"fps": 3.9}, {}, "frame rate", "3.9", "4"),
        ({}, {"duplicate_frames": 0.81}, {}, "repeated frames", "0.81", "0.8"),
        ({}, {}, {"exposure": 0.29}, "exposure", "0.29", "0.3"),
        ({}, {}, {"black_bars": 0.36}, "black bars", "0.36", "0.35"),
        ({}, {}, {"text": 0.51}, "burnt-in text", "0.51", "0.5"),
        ({}, {}, {"noise": 0.121}, "noise", "0.121", "0.12"),
        ({"measures": None}, {}, {}, "not measured", "0", "1"),
    ],
)
def test_each_gate_says_its_value_and_its_threshold(
    changed_shot, changed_probe, changed_measures, rule, value, threshold
):
    drop = gate_shot(shot(measures=MEASURES | changed_measures) | changed_shot, PROBE | changed_probe, RULES)
    assert drop is not None
    assert (drop.rule, drop.value, drop.threshold) == (rule, value, threshold)
    assert drop.reason


def test_a_shot_at_the_threshold_passes():
    exact = MEASURES | {"exposure": 0.3, "black_bars": 0.35, "text": 0.5, "noise": 0.12}
    probe = {"height": 48, "width": 48, "fps": 4.0, "duplicate_frames": 0.8}
    assert gate_shot(shot(end=1.0, frames=9, measures=exact), probe, RULES) is None


@pytest.mark.parametrize(
    "better", [{"pixels": 101}, {"frames": 73}, {"bytes_per_second": 1.1}, {"source": "A.mp4"}, {"start": -1.0}]
)
def test_of_two_copies_the_better_is_kept_in_any_order(better):
    assert find_duplicates([shot(), shot(**better)], 10) == {0: 1}
    assert find_duplicates([shot(**better), shot()], 10) == {1: 0}


def test_copies_may_differ_by_as_many_bits_as_the_rule_says():
    near, far = f"{0b111:016x}", f"{0b1111:016x}"
    assert find_duplicates([shot(), shot(hashes=[near], mirrored=["f" * 16])], 3) == {1: 0}
    assert find_duplicates([shot(), shot(hashes=[far], mirrored=["f" * 16])], 3) == {}


def test_a_mirrored_copy_is_a_copy():
    assert find_duplicates([shot(), shot(hashes=["f" * 16], mirrored=["0" * 16])], 10) == {1: 0}


def test_one_alike_frame_makes_no_copy():
    unlike = shot(hashes=["0" * 16, "f" * 16, "f" * 16], mirrored=["f" * 16] * 3)
    assert find_duplicates([shot(), unlike], 10) == {}


def test_shots_without_hashes_are_nobodys_copies():
    assert find_duplicates([shot(hashes=[], mirrored=[]), shot(hashes=[], mirrored=[])], 64) == {}


def test_motion_cells_are_thirds():
    assert motion_cells([0.9, 0.1, 0.5, 0.2, 0.6, 0.8]) == ["high", "low", "medium", "low", "medium", "high"]
    assert motion_cells([]) == []


def test_the_least_sharp_of_each_large_cell_go_whatever_other_cells_look_like():
    cells = ["low"] * 10 + ["high"] * 10 + ["medium"] * 7
    sharpness = [0.8 + 0.01 * i for i in range(10)] + [0.2 + 0.01 * i for i in range(10)] + [0.1] * 7
    found = blurriest(sharpness, cells, RULES)
    assert sorted(found) == [0, 10]
    assert found[10].reason == "among the least sharp of its motion cell (high)"
    assert float(found[10].value) < float(found[10].threshold)
