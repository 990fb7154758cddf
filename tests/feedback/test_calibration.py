"""Probabilities that are meant, and some that are not."""

import numpy as np
import pytest

from reelign.feedback.calibration import calibration


def drawn(probabilities: np.ndarray, seed: int = 0) -> list[int]:
    """Votes that come as they are promised."""
    draws = np.random.default_rng(seed).random(len(probabilities))
    return [1 - int(np.searchsorted(np.cumsum(row), draw)) for row, draw in zip(probabilities, draws, strict=True)]


def promised(count: int) -> np.ndarray:
    a = np.random.default_rng(3).uniform(0.05, 0.75, count)
    return np.stack([a, np.full(count, 0.2), 0.8 - a], 1)


def test_votes_that_come_as_promised_are_calibrated_and_better_foreseen_than_by_chance():
    p = promised(20_000)
    found = calibration(p, drawn(p))
    assert found.error < 0.01
    assert found.nll < found.chance - 0.1
    assert sum(part.votes for part in found.bins) == 20_000


def test_promises_that_are_too_bold_are_found():
    p = promised(20_000)
    bold = np.stack(
        [np.where(p[:, 0] > p[:, 2], 0.95, 0.03), np.full(len(p), 0.02), np.where(p[:, 0] > p[:, 2], 0.03, 0.95)], 1
    )
    assert calibration(bold, drawn(p)).error > 0.2


def test_chance_names_the_shares_of_the_verdicts():
    found = calibration(np.full((4, 3), 1 / 3), [1, 1, 0, -1])
    assert found.chance == pytest.approx(-(0.5 * np.log(0.5) + 2 * 0.25 * np.log(0.25)))
    assert found.nll == pytest.approx(np.log(3))


def test_no_vote_or_another_shape_is_refused():
    with pytest.raises(ValueError, match="calibration needs"):
        calibration(np.zeros((0, 3)), [])
    with pytest.raises(ValueError, match="calibration needs"):
        calibration(np.zeros((2, 2)), [1, -1])
