"""The stage on votes on real clips: killed, on two ranks, with what it says of itself; what is refused."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fitting import config, context, start, voted
from reelign.data.clip import Clip, read_clip
from reelign.errors import ReelignError
from reelign.feedback.vote import Shown, write_votes
from reelign.rewards.base import RewardSet, Weighted
from reelign.rewards.preference import LearnedReward, RewardCard
from reelign.rewards.recipe import LearnedEntry
from reelign.stages.reward import RewardTrainer, parts_of, run_reward
from reelign.train.parallel import World


@pytest.fixture(scope="module")
def votes(tmp_path_factory):
    return voted(tmp_path_factory.mktemp("clips"), 40)


@pytest.fixture(scope="module")
def one_rank(votes, tmp_path_factory):
    """The stage's folder of an uninterrupted fit."""
    folder = tmp_path_factory.mktemp("one")
    run_reward(context(folder), config(), votes)
    return folder / "reward"


def rows(stage: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_what_raters_like_and_says_how_well_it_agrees_with_held_out_votes(one_rank):
    found = json.loads((one_rank / "agreement.json").read_text())
    assert found["usable"] == {"visual": True, "motion": True, "text": False, "overall": True}
    assert found["axes"]["visual"]["agreement"]["without_ties"]["value"] == 1.0
    assert found["axes"]["text"]["agreement"]["without_ties"] is None  # all ties: there is nothing to be right about
    assert found["training_votes"] + found["test_votes"] < 160  # some votes only say when to stop
    assert [row["step"] for row in rows(one_rank) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert rows(one_rank)[0]["loss"] > [row for row in rows(one_rank) if "loss" in row][-1]["loss"]


def test_the_artifact_is_a_reward_like_any_other(one_rank, votes):
    reward = LearnedReward(one_rank / "model")
    assert set(reward.dimensions) == {"visual", "motion", "overall"}
    clips = [read_clip(Path(side.clip), votes[0].prompt) for side in (votes[0].a, votes[0].b)]
    noisy, clean = reward(clips)["visual"]
    assert clean > noisy
    many = RewardSet([Weighted(reward, {"visual": 1.0})])(clips)
    assert many["learned.visual"].tolist() == pytest.approx([noisy, clean])
    card = RewardCard.load(one_rank / "model")
    assert card.source.keys() == {"simulated"}
    assert card.accuracy["visual"]["value"] == 1.0


def test_a_batch_is_scored_as_each_clip_by_itself_and_frames_of_another_rate_are_fitted(one_rank, votes):
    reward = LearnedReward(one_rank / "model", batch=2)
    clips = [read_clip(Path(vote.a.clip), vote.prompt) for vote in votes[:20:4]]
    together, alone = reward(clips)["overall"], [reward([clip])["overall"][0] for clip in clips]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    doubled = Clip(clips[0].frames.repeat(2, 0), 16.0, clips[0].prompt, "doubled")
    assert reward([doubled])["overall"][0] == pytest.approx(alone[0], abs=0.3)


def test_an_axis_that_cannot_be_told_from_chance_is_refused_where_it_has_a_weight(one_rank):
    entry = LearnedEntry(kind="learned", path=one_rank / "model", weights={"visual": 1.0, "text": 1.0})
    with pytest.raises(ReelignError, match=r"cannot be told from chance on held-out votes \(text"):
        entry.build()
    assert LearnedEntry(kind="learned", path=one_rank / "model", weights={"visual": 1.0}).build().name == "learned"
    with pytest.raises(ReelignError, match="this run has fitted none"):
        LearnedEntry(kind="learned").build()
    with pytest.raises(ReelignError, match="does not say how sure it is"):
        LearnedReward(one_rank / "model", pessimism=1.0)


def test_no_prompt_is_both_learned_from_and_tested_on(votes, tmp_path):
    trainer = RewardTrainer(context(tmp_path), config(), votes)
    prompts = {part: {vote.prompt for vote in found} for part, found in trainer.votes.items()}
    assert all(prompts.values())
    assert not prompts["training"] & prompts["test"]
    assert not prompts["training"] & prompts["validation"]
    assert not prompts["validation"] & prompts["test"]


def test_gold_and_repeated_votes_teach_nothing(votes, tmp_path):
    others = [replace(vote, kind="gold", expected="good") for vote in votes[:8]] + [
        replace(vote, kind="repeat") for vote in votes[8:16]
    ]
    trainer = RewardTrainer(context(tmp_path), config(), [*votes, *others])
    assert sum(len(found) for found in trainer.votes.values()) == len(votes)


def test_ties_draw_scores_together_and_swapped_sides_change_nothing(votes, tmp_path):
    trainer = RewardTrainer(context(tmp_path), config(), votes)
    for _ in range(3):
        trainer.one_update()
    ballots = trainer.ballots["test"]
    turned = [replace(ballot, a=ballot.b, b=ballot.a, worths=-ballot.worths) for ballot in ballots]
    assert torch.allclose(trainer.losses(ballots), trainer.losses(turned), atol=1e-6)


def test_with_a_spread_it_says_how_sure_it_is_and_pessimism_takes_it_off(votes, tmp_path):
    run_reward(context(tmp_path), config(network={"kind": "miniature", "spread": True}), votes)
    folder = tmp_path / "reward" / "model"
    plain, wary = LearnedReward(folder), LearnedReward(folder, pessimism=2.0)
    clips = [read_clip(Path(votes[0].a.clip), votes[0].prompt)]
    assert wary(clips)["visual"][0] < plain(clips)["visual"][0]


def test_o_a_killed_fit_ends_in_the_same_bits(one_rank, votes, tmp_path):
    write_votes(tmp_path / "votes.jsonl", votes)
    for killed in (True, False):
        [process] = start(tmp_path, tmp_path / "votes.jsonl", 1)
        if killed:
            log, until = tmp_path / "reward" / "metrics.jsonl", time.monotonic() + 120
            while not (log.exists() and '"step": 4,' in log.read_text()):
                assert process.is_alive()
                assert time.monotonic() < until
                time.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
        process.join(120)
    assert process.exitcode == 0
    assert same(one_rank, tmp_path / "reward")
    assert rows(one_rank) == rows(tmp_path / "reward")


def test_n_two_ranks_learn_what_one_rank_learns(one_rank, votes, tmp_path):
    write_votes(tmp_path / "votes.jsonl", votes)
    for process in start(tmp_path, tmp_path / "votes.jsonl", 2):
        process.join(120)
        assert process.exitcode == 0
    for one, two in zip(rows(one_rank), rows(tmp_path / "reward"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-6)
    one, two = (load_file(stage / "model" / "network.safetensors") for stage in (one_rank, tmp_path / "reward"))
    assert all(torch.allclose(two[name], value, atol=1e-5) for name, value in one.items())


def same(one: Path, two: Path) -> bool:
    files = ("network.safetensors", "certainty.safetensors")
    pairs = [(load_file(one / "model" / name), load_file(two / "model" / name)) for name in files]
    return all(torch.equal(other[name], value) for mine, other in pairs for name, value in mine.items())


def test_votes_that_cannot_be_learned_from_are_refused(votes, tmp_path):
    with pytest.raises(ReelignError, match="the votes are on 2 prompts"):
        run_reward(context(tmp_path), config(), votes[:8])
    with pytest.raises(ReelignError, match="no vote is on 'motion'"):
        run_reward(context(tmp_path), config(axes=["motion"]), [vote for vote in votes if vote.axis == "visual"])
    lost = [replace(vote, a=Shown("clean", str(tmp_path / "gone.mp4"))) for vote in votes]
    with pytest.raises(ReelignError, match=r"gone\.mp4"):
        run_reward(context(tmp_path), config(), lost)
    with pytest.raises(ReelignError, match="does not divide over 3 ranks"):
        RewardTrainer(context(tmp_path, World(0, 3, torch.device("cpu"), None)), config(), votes)


def test_parts_are_a_matter_of_the_prompts_alone():
    prompts = [f"prompt {number}" for number in range(20)]
    found = parts_of(prompts, 0.4)
    assert found == parts_of(reversed(prompts), 0.4)
    assert sorted(found.values()) == ["test"] * 4 + ["training"] * 12 + ["validation"] * 4
