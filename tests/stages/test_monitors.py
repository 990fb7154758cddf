"""Each drift raises its own alarm, in a sentence with the numbers, and only while the training reward does not fall."""

import numpy as np
import pytest

from reelign.evaluate.evaluation import Evaluation, Item
from reelign.stages.monitors import alarms, rise

RISING = [0.50 + 0.01 * k + 0.002 * (k % 3) for k in range(20)]
STEADY = [0.4] * 20


def validation(**changes) -> Evaluation:
    """32 held-out clips; a change is added to a score or a measure of every clip, `failing` attributes fail."""
    random = np.random.default_rng(0)
    items = []
    for index in range(32):
        scores = {axis: float(0.6 + 0.1 * random.standard_normal()) for axis in ("text", "motion")}
        measures = {"dynamic_degree": 0.2, "exposure": 0.9, "foreground": 0.3}
        measures = {name: value + 0.01 * random.standard_normal() for name, value in measures.items()}
        for name in scores:
            scores[name] += changes.get(name, 0.0) + 0.005 * random.standard_normal()
        for name in measures:
            measures[name] += changes.get(name, 0.0)
        if index < changes.get("still", 0):
            measures["dynamic_degree"] = 0.0
        ok = {"shape": index >= changes.get("failing", 0)}
        items.append(Item(f"clip{index}", f"prompt {index}", 0, scores, ok, None, measures))
    return Evaluation({"judge": "miniature"}, ("text", "motion"), tuple(items))


PARENT = validation()


def names(**changes) -> list[str]:
    diversity = changes.pop("diversity", STEADY)
    return [alarm.name for alarm in alarms(PARENT, validation(**changes), RISING, diversity)]


def test_what_is_as_it_was_or_better_raises_nothing():
    assert names() == []
    assert names(text=0.1, motion=0.2, exposure=0.05) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"text": -0.08}, "held-out text"),
        ({"motion": -0.05}, "held-out motion"),
        ({"still": 9}, "stillness"),
        ({"dynamic_degree": -0.05}, "slowness"),
        ({"exposure": -0.2}, "exposure"),
        ({"foreground": -0.15}, "foreground"),
        ({"foreground": 0.2}, "foreground"),
        ({"failing": 8}, "retention of shape"),
        ({"diversity": [0.4] * 10 + [0.1] * 10}, "diversity"),
    ],
)
def test_each_drift_raises_its_own_alarm(changes, name):
    assert names(**changes) == [name]


@pytest.mark.parametrize(
    "changes", [{"text": -0.02}, {"still": 1}, {"dynamic_degree": -0.01}, {"exposure": -0.02}, {"failing": 2}]
)
def test_small_drifts_raise_nothing(changes):
    assert names(**changes) == []


def test_the_sentence_names_the_numbers():
    (alarm,) = alarms(PARENT, validation(failing=8), RISING, STEADY)
    assert alarm.sentence.startswith("While the training reward rose by 0.1")
    assert "only 75% of the 32 checks of shape that passed still pass." in alarm.sentence
    (alarm,) = alarms(PARENT, validation(still=16), RISING, STEADY)
    assert "the share of still videos grew from 0% to 50%." in alarm.sentence


def test_harm_without_a_gain_is_said_as_well():
    """Rewards of other prompts at each update hide a rise: the noise here is as large as in a run of the demo."""
    noisy = (np.asarray(RISING) + np.random.default_rng(0).normal(0, 0.3, 20)).tolist()
    assert rise(noisy) == 0.0
    (alarm,) = alarms(PARENT, validation(text=-0.1), noisy, STEADY)
    assert alarm.sentence.startswith("Without a certain gain in reward, text of the held-out judge fell from")


@pytest.mark.parametrize("rewards", [RISING[::-1], RISING[:4], []])
def test_where_the_reward_falls_or_is_not_known_it_is_no_hacking(rewards):
    assert alarms(PARENT, validation(text=-0.3, still=20), rewards, STEADY) == ()


def test_a_rise_is_more_than_chance():
    noise = np.random.default_rng(1).normal(0.5, 0.05, 40).tolist()
    assert rise(noise) == 0.0
    assert rise(RISING) == pytest.approx(0.19, abs=0.005)
    assert rise((np.asarray(noise) + np.linspace(0, 0.1, 40)).tolist()) == pytest.approx(0.1, abs=0.05)
    assert rise(RISING[::-1]) == pytest.approx(-0.19, abs=0.005)
    assert rise([0.1] * 5) is None
    assert rise([0.1] * 6) == 0.0
