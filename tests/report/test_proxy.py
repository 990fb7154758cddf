"""Proxy and gold are gains in deviations between clips, and the kept checkpoint is where gold is highest."""

import json
import math
from pathlib import Path

import pytest

from reelign.errors import ReelignError
from reelign.report.proxy import proxy_of, proxy_panel

ALARMS = [{"update": 8}, {"update": 8}]
UNIT = math.sqrt(0.1**2 + 4 * 0.2**2 / 2)
"""Spread 0.1 inside groups; four prompts an update, and from update to update the reward steps by 0.2."""


def test_gains_count_from_the_start_in_deviations_between_clips(asked: Path) -> None:
    found = proxy_of(asked / "rlhf", ALARMS)
    assert found is not None
    assert found["unit"] == pytest.approx({"reward": UNIT, "held_out": 0.1})
    # The first half of eight updates has the mean 0.3; the last one is 1.4.
    assert found["start"] == pytest.approx({"reward": 0.3, "held_out": 0.5})
    assert found["gains"]["reward"][-1] == pytest.approx([8, (1.4 - 0.3) / UNIT])
    assert [gain for _, gain in found["gains"]["held_out"]] == pytest.approx([0, 1, -1])


def test_the_kept_checkpoint_is_the_best_and_what_came_after_it_is_told(asked: Path) -> None:
    found = proxy_of(asked / "rlhf", ALARMS)
    assert found is not None
    assert (found["kept"], found["alarms"]) == (4, [8])
    # The last four updates have the mean 1.1, the four up to the kept one 0.3; gold goes from 0.6 to 0.4.
    assert found["after"] == pytest.approx({"reward": 0.8 / UNIT, "held_out": -2})
    assert [(mark.kind, mark.at) for mark in proxy_panel(found).marks] == [("kept", 50), ("alarm", 100)]


def test_where_no_update_is_better_the_parent_is_kept(asked: Path) -> None:
    rewrite(asked, {0: 0.7, 4: 0.6, 8: 0.4})
    found = proxy_of(asked / "rlhf", [])
    assert found is not None and found["kept"] == 0
    assert found["after"] == pytest.approx({"reward": (0.7 - 0.3) / UNIT, "held_out": -3})


def test_nothing_came_after_the_last_checkpoint(asked: Path) -> None:
    rewrite(asked, {0: 0.5, 8: 0.9})
    found = proxy_of(asked / "rlhf", [])
    assert found is not None and found["kept"] == 8 and found["after"] is None


def test_of_equals_the_newest_is_kept_as_the_checkpoints_are(asked: Path) -> None:
    rewrite(asked, {0: 0.5, 4: 0.6, 8: 0.6})
    found = proxy_of(asked / "rlhf", [])
    assert found is not None and found["kept"] == 8


def test_there_is_no_drawing_before_there_are_two_validations(asked: Path) -> None:
    rewrite(asked, {0: 0.5})
    assert proxy_of(asked / "rlhf", []) is None
    (asked / "rlhf" / "validation-parent.json").unlink()
    assert proxy_of(asked / "rlhf", []) is None


def test_a_recipe_that_says_no_number_of_prompts_is_named(asked: Path) -> None:
    (asked / "recipe.yaml").write_text("name: x", encoding="utf-8")
    with pytest.raises(ReelignError, match=r"recipe\.yaml does not say how many prompts an update of rlhf had"):
        proxy_of(asked / "rlhf", [])


def rewrite(run: Path, gold: dict[int, float]) -> None:
    path = run / "rlhf" / "metrics.jsonl"
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if "reward" in row]
    rows += [{"step": step, "validation/mean": value} for step, value in gold.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
