"""What automatic judges say of the clips of votes, so that they can be compared with people."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from miniatures import rendered
from reelign.data.clip import read_clip, write_clip
from reelign.data.manifest import read_manifest
from reelign.errors import ReelignError
from reelign.feedback.automatic import automatic_scores
from reelign.feedback.judges import judge_agreement
from reelign.feedback.vote import Shown, Vote
from reelign.miniature.captions import read_prompt
from reelign.miniature.judge import judge
from reelign.rewards.miniature import MiniatureReward
from reelign.rewards.pixels import Pixels
from studies import moving

TRAINING, EVALUATION = "miniature, training judge", "miniature, evaluation judge"
PIXELS = "pixels (sharpness, steadiness)"


def silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


@pytest.fixture(scope="module")
def votes(tmp_path_factory) -> list[Vote]:
    """Clean clips are better than blurred ones."""
    root = tmp_path_factory.mktemp("clips")
    sides = [rendered(root / "blurred", 3, "blur"), rendered(root / "clean", 3)]
    rows = zip(*map(read_manifest, sides), strict=True)
    return [
        vote(row["caption"], str(sides[0] / row["path"]), str(sides[1] / other["path"]), number)
        for number, (row, other) in enumerate(rows)
    ]


def vote(prompt: str, a: str, b: str, number: int = 0) -> Vote:
    shown = Shown("blurred", a), Shown("clean", b)
    return Vote(f"pair {number}", prompt, *shown, "visual", "bad", "ann", 4.0, "a", "plain", "person")


def test_each_judge_scores_each_clip_as_it_does_by_itself(votes):
    told = []
    found = automatic_scores(votes, [], lambda *said: told.append(said))
    assert list(found) == [TRAINING, EVALUATION, PIXELS]
    assert told[-1][1:] == (6, 6)
    file, prompt = votes[2].b.clip, votes[2].prompt
    clip = read_clip(Path(file), prompt)
    reward = {name: values[0] for name, values in MiniatureReward()([clip]).items()}
    assert found[TRAINING][file] == reward | {"overall": pytest.approx(fmean(reward.values()))}
    asked = read_prompt(prompt)
    assert asked is not None
    said = judge(clip.frames, asked.scene, asked.stated).scores
    assert found[EVALUATION][file] == said | {"overall": pytest.approx(fmean(said.values()))}
    pixels = Pixels()([clip])
    assert found[PIXELS][file] == {"visual": pixels["sharpness"][0], "motion": pixels["steadiness"][0]}


def test_judges_that_see_agree_with_raters_who_see(votes):
    for scores in automatic_scores(votes, [], silent).values():
        agreement = judge_agreement(votes, "visual", scores)
        assert agreement is not None and agreement.without_ties is not None
        assert (agreement.without_ties.value, agreement.unscored) == (1.0, 0)


def test_both_judges_are_handed_clips_at_the_miniatures_own_rate(votes, tmp_path):
    """The same frames without loss at twice the rate, each shown twice."""
    frames, found = read_clip(Path(votes[0].b.clip)).frames, []
    for times in (1, 2):
        write_clip(tmp_path / f"{times}.mp4", frames.repeat(times, axis=0), 8 * times, crf=0)
        asked = replace(votes[0], b=Shown("clean", str(tmp_path / f"{times}.mp4")))
        scores = automatic_scores([asked], [], silent)
        found.append([scores[name][asked.b.clip] for name in (TRAINING, EVALUATION)])
    assert found[0] == found[1]


def test_outside_the_miniatures_world_only_the_pixels_are_asked(tmp_path):
    for side in "ab":
        write_clip(tmp_path / f"{side}.mp4", moving(ord(side)), 8)
    found = automatic_scores([vote("a dog", *(str(tmp_path / f"{side}.mp4") for side in "ab"))], [], silent)
    assert list(found) == [PIXELS]


def test_only_clips_of_plain_votes_of_raters_are_looked_at(votes):
    others = [replace(votes[1], kind="gold"), replace(votes[2], source="model")]
    [first, *_] = votes
    found = automatic_scores([first, *others], [], silent)
    assert set(found[PIXELS]) == {first.a.clip, first.b.clip}


def test_missing_clips_are_counted_and_named_with_the_way_out(votes):
    gone = [replace(votes[0], a=Shown("x", f"gone-{n}.mp4"), pair=f"{n}") for n in range(5)]
    with pytest.raises(ReelignError, match=r"5 of the clips, .*: gone-0\.mp4, gone-1\.mp4, gone-2\.mp4 and 2 more\."):
        automatic_scores([*votes, *gone], [], silent)
    with pytest.raises(ReelignError, match=r"1 of the clips, .*: gone-0\.mp4\. .*--no-judges"):
        automatic_scores([*votes, gone[0]], [], silent)


def test_a_clip_of_two_prompts_cannot_be_judged(votes):
    with pytest.raises(ReelignError, match=r"stands in votes with two prompts, .* and 'other words'"):
        automatic_scores([votes[0], replace(votes[0], prompt="other words")], [], silent)


def test_a_folder_that_is_no_fitted_reward_is_named(votes, tmp_path):
    with pytest.raises(ReelignError, match="Give the artifact of a `reward` stage"):
        automatic_scores(votes, [tmp_path], silent)
