"""What the doctor finds in a recipe with `votes:`, `reward:`, `dpo:` and learned rewards, on the miniature's clips."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diagnosis import diagnosis
from reelign.data.clip import write_clip
from reelign.doctor import feedback_memory
from reelign.doctor.feedback import examine_feedback
from reelign.doctor.finding import Finding
from reelign.doctor.learned import examine_learned, rehearsed_rewards
from reelign.evaluate.battery import BatteryConfig, tasks
from reelign.feedback.vote import AXES, Vote, write_votes
from reelign.models.load import load_model
from reelign.recipe import Recipe
from reelign.rewards.preference import RewardCard
from reelign.stages import dpo as dpo_stage
from reelign.stages.asked import MiniaturePrompts, build_prompts
from reelign.train.parallel import World
from tiny_qwen import tiny_whole
from voting import vote

ALONE = World(0, 1, torch.device("cpu"), None)
SIMULATED = {"kind": "simulated", "prompts": [{"kind": "miniature", "count": 40}], "pairs": 60}
REWARD = {"network": {"kind": "miniature"}, "updates": 20, "batch_size": 16}
DPO = {"updates": 4, "pairs_per_update": 4, "validate_every": 2}
RLHF = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "rewards": [{"kind": "learned", "weights": {"text": 1.0, "motion": 0.5}}],
    "updates": 5,
    "prompts_per_update": 2,
    "group_size": 4,
    "micro_batch": 8,
}
PROMPTS = [prompt.text for prompt in build_prompts([MiniaturePrompts(kind="miniature", count=30)])]


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> tuple[str, str]:
    """Two clips of the battery's size."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for side in "ab":
        write_clip(folder / f"{side}.mp4", random.integers(0, 256, (17, 32, 32, 3), np.uint8), 8.0)
    return str(folder / "a.mp4"), str(folder / "b.mp4")


@pytest.fixture
def people(tmp_path, clips):
    """Votes of two people on both clips for each of 30 prompts: on visual quality and overall, every third a tie."""
    votes = [
        replace(vote(f"pair {n}", prompt, clips, "same" if n % 3 == 0 else "good", axis, rater), source="person")
        for n, prompt in enumerate(PROMPTS)
        for axis in ("visual", "overall")
        for rater in ("ada", "bob")
    ]

    def write(change=lambda votes: votes) -> Path:
        write_votes(tmp_path / "votes.jsonl", change(votes))
        return tmp_path / "votes.jsonl"

    return write


def recipe(votes: Path | dict = SIMULATED, **stages: object) -> Recipe:
    source = votes if isinstance(votes, dict) else {"kind": "file", "path": str(votes)}
    size = {"count": 2, "validation_count": 2}
    small = {"name": "x", "model": "miniature", "sampler": {"steps": 4}, "battery": size}
    return Recipe.model_validate(small | {"votes": {"sources": [source]}} | stages)


def findings(made: Recipe, model) -> dict[str, Finding]:
    found = list(examine_feedback(made, model, ALONE))
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def failed(made: Recipe, model) -> dict[str, str]:
    return {check: found.sentence for check, found in findings(made, model).items() if not found.passed}


def test_a_sound_recipe_passes_and_its_own_reward_is_rehearsed_by_a_stand_in(tmp_path):
    found = diagnosis(recipe(reward=REWARD, dpo=DPO, rlhf=RLHF, runs=str(tmp_path / "runs")))
    assert [finding for finding in found.values() if not finding.passed] == []
    said = {check: finding.sentence for check, finding in found.items()}
    assert said["votes.sources.0"].startswith("40 prompts. 60 pairs and 240 simulated votes on visual, motion, text")
    assert "their clips take 960 network evaluations, 4 unipc steps each" in said["votes.sources.0"]  # 2 x 60 x 8
    assert said["votes.prompts"] == "votes on 40 prompts, none of which the battery asks."
    assert said["reward.network"] == "the miniature's eye and a head for visual, motion, text, overall."
    assert said["dpo.votes"] == "pairs are decided by overall, once simulated raters have voted."
    assert said["dpo.cost"].startswith("about 64 network evaluations to learn, half of them with a backward pass")
    assert "fitted by this run to votes on visual, motion, text, overall" in said["rlhf.rewards.0"]
    assert "the model after preference optimisation, does not exist yet" in said["rehearsal"]
    assert "means of 8 clips: learned.motion" in said["rewards"]
    assert said["reward spread"] == "left out: what this run will fit to votes cannot be asked yet."
    assert said["gradient"].startswith("reaches all ")
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_out_says_how_good_a_reward_must_be(model):
    said = findings(recipe(reward=REWARD), model)["reward.votes"].sentence
    # 60 pairs drawn from 40 prompts, 4 prompts held out for each use: 0.5 + 0.98 / sqrt(the fewest test votes).
    for words in ("on 32 prompts teach it", "; 4 prompts say when to stop", "of 4 prompts, test it"):
        assert words in said, words
    assert ", which few rewards do: collect more votes." in said
    many = findings(recipe(SIMULATED | {"pairs": 4000}, reward=REWARD), model)["reward.votes"].sentence
    assert many.endswith("it must agree with at least 55% of those on visual.")  # 400 votes: 0.5 + 0.98 / 20


def test_too_few_prompts_or_votes_are_found_before_anything_is_fitted(model):
    two = SIMULATED | {"prompts": [{"kind": "miniature", "count": 2}]}
    assert "the votes are on 2 prompts" in failed(recipe(two, reward=REWARD), model)["reward.votes"]
    three = two | {"pairs": 3, "prompts": [{"kind": "miniature", "count": 3}]}
    assert (
        "too few on 'visual' to tell any reward from chance"
        in failed(recipe(three, reward=REWARD), model)["reward.votes"]
    )


def test_simulated_raters_know_the_miniatures_words_alone(tmp_path, model):
    (tmp_path / "p.txt").write_text("a red circle moving left\na dog on a beach\n", encoding="utf-8")
    listed = SIMULATED | {"prompts": [{"kind": "list", "path": str(tmp_path / "p.txt")}]}
    found = findings(recipe(listed, reward=REWARD, dpo=DPO), model)
    assert (
        "1 of 2 say something that is not in the miniature's words, first 'a dog on a beach'"
        in found["votes.sources.0"].sentence
    )
    assert found["reward"].sentence == found["dpo"].sentence == "left out until the lines above pass."


def test_models_that_make_clips_for_simulated_raters_must_be_there(tmp_path, model):
    others = SIMULATED | {"models": ["parent", "miniature", str(tmp_path / "gone")]}
    said = failed(recipe(others, reward=REWARD), model)["votes.sources.0"]
    assert said.startswith("votes.sources.0.models: ") and str(tmp_path / "gone") in said


def test_votes_of_people_are_counted_and_their_clips_decoded(people, model):
    def tested(votes: list[Vote]) -> list[Vote]:
        gold = [replace(found, kind="gold", expected="good") for found in votes[:12]]
        return [*gold, *(replace(found, kind="repeat") for found in votes[12:18]), *votes[18:]]

    found = findings(recipe(people(tested), reward=REWARD), model)
    said = found["votes.sources.0"].sentence
    assert "120 votes of people, 2 raters, all 2 clips are there, 2 of them decoded" in said
    assert "are ties, 10% gold and 5% repeats, which nothing learns from." in said
    assert found["reward.votes"].sentence.startswith("78 votes on 20 prompts teach")  # of 102 plain votes on 26
    assert found["reward.network"].sentence == "the miniature's eye and a head for visual, overall."


def test_clips_that_are_gone_or_damaged_are_named(people, tmp_path, clips, model):
    gone = people(lambda votes: [replace(found, a=replace(found.a, clip=str(tmp_path / "x.mp4"))) for found in votes])
    assert "names 1 clips that are not there" in failed(recipe(gone), model)["votes.sources.0"]
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    assert "cannot read the clip" in failed(recipe(gone), model)["votes.sources.0"]


def test_a_file_that_holds_no_votes_is_found(tmp_path, model):
    assert "there is no study and no file of votes" in failed(recipe(tmp_path / "none.jsonl"), model)["votes.sources.0"]
    (tmp_path / "odd.txt").write_text("hello", encoding="utf-8")
    assert "holds no votes that are known here" in failed(recipe(tmp_path / "odd.txt"), model)["votes.sources.0"]


def test_axes_without_votes_are_found(people, model):
    made = recipe(people(), reward=REWARD | {"axes": ["motion"]}, dpo=DPO | {"axes": {"text": 1.0}})
    found = failed(made, model)
    assert found["reward.votes"] == "reward.axes: no vote is on 'motion'; there are votes on visual, overall."
    assert found["dpo.votes"] == "dpo.axes: no vote is on 'text'; there are votes on visual, overall."


def test_preference_optimisation_counts_its_pairs_and_leaves_out_the_batterys(people, model):
    battery = [task.prompt for task in tasks(BatteryConfig(count=2, validation_count=2))]

    def moved(votes: list[Vote]) -> list[Vote]:
        return [replace(found, prompt=battery[0]) if found.prompt == PROMPTS[1] else found for found in votes]

    found = findings(recipe(people(moved), dpo=DPO, reward=REWARD), model)
    assert all(finding.passed for finding in found.values())
    said = found["votes.prompts"].sentence
    assert said.startswith("votes on 30 prompts; the battery asks 1 of them too: `dpo` leaves their pairs out, and")
    assert found["dpo.votes"].sentence.endswith("1 left out because the battery asks their prompt.")
    assert found["dpo.clips"].sentence == "2 clips have the battery's size, 17x32x32."
    assert found["dpo.budget"].sentence == "an update is 4 pairs: 1 ranks x 1 passes x 4."


@pytest.mark.parametrize("method", [{}, {"method": "lora", "lora": {"rank": 2}}], ids=["full", "lora"])
def test_preference_optimisation_is_rehearsed_on_the_first_pairs_of_the_run(people, tmp_path, model, method):
    decided = people(lambda votes: [replace(found, verdict="good") for found in votes])
    made = recipe(decided, dpo=DPO | method, runs=str(tmp_path / "runs"))
    before = sorted(tmp_path.rglob("*"))
    said = {
        check.removeprefix("dpo."): found.sentence for check, found in findings(made, model).items() if found.passed
    }
    assert said["rehearsal"] == "one update on 4 pairs, read and encoded, from the weights of miniature."
    assert said["start"] == (
        f"the first loss is {math.log(2):.4f}, log 2, as no pair is a tie: the model begins as its reference."
    )
    assert said["update"].startswith("one update of 4 pairs in ")
    count = 40 * 2 if method else sum(1 for _ in model.pipeline.transformer.parameters())
    learned = count // 2 if method else count  # lora_B alone in the first update
    assert f" changes {learned} of {count} trained tensors: loss 0.693, grad norm " in said["update"]
    late = f", the {count // 2} lora_A after the second update, because lora_B starts at 0" if method else ""
    assert said["gradient"] == f"reaches all {count} trained tensors of the model{late}."
    assert "under torchrun" in said["ranks"]
    assert " hours here in all)" in said["cost"]
    assert sorted(tmp_path.rglob("*")) == before


def test_before_anybody_voted_preference_optimisation_is_rehearsed_on_noise(model):
    found = findings(recipe(dpo=DPO), model)
    assert all(finding.passed for finding in found.values())
    assert found["dpo.rehearsal"].sentence.startswith("one update on 4 pairs of noise, as nobody has voted yet")
    assert f"the first loss is {math.log(2):.4f}" in found["dpo.start"].sentence
    assert found["dpo.gradient"].sentence.startswith("reaches all ")


def test_with_ties_the_first_loss_follows_from_their_share(people, model):
    """20 of 30 pairs are decided before some are held out: k is near 2, P(better) near 1/3 and P(tie) near 1/3."""
    said = findings(recipe(people(), dpo=DPO | {"held_out": 0.0}), model)["dpo.start"].sentence
    assert said.startswith(f"the first loss is {math.log(3):.4f}, what the share of ties alone gives")


def test_a_model_that_is_not_its_reference_at_the_start_is_found(people, model, monkeypatch):
    error = dpo_stage.flow_error

    def apart(model, *arguments):
        return error(model, *arguments) * (1.0 if torch.is_grad_enabled() else torch.linspace(0.5, 1.5, 8))

    monkeypatch.setattr(dpo_stage, "flow_error", apart)
    said = failed(recipe(people(), dpo=DPO), model)
    assert "before the first update model and reference are the same network" in said["dpo.start"]


def test_a_preference_loss_that_is_not_finite_is_found(people, tmp_path, model):
    broken = load_model("miniature", device="cpu")
    with torch.no_grad():
        broken.pipeline.transformer.proj_out.bias[0] = math.nan
    broken.save(tmp_path / "model")
    said = failed(recipe(people(), dpo=DPO, model=str(tmp_path / "model")), model)
    assert list(said) == ["dpo.update"]
    assert "nan" in said["dpo.update"]


def test_votes_that_decide_nothing_are_found(people, model):
    ties = people(lambda votes: [replace(found, verdict="same") for found in votes])
    assert "there are 0 decided pairs to learn from" in failed(recipe(ties, dpo=DPO), model)["dpo.votes"]


def test_clips_of_another_size_cannot_teach_the_model(people, model):
    made = recipe(people(), dpo=DPO, battery={"count": 2, "validation_count": 2, "frames": 13})
    said = failed(made, model)["dpo.clips"]
    assert "2 of 2 decoded clips have 17x32x32 (frames x height x width), and the battery 13x32x32" in said


def test_updates_divide_over_the_ranks(people, model, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    found = failed(recipe(people(), dpo=DPO, reward=REWARD), model)
    assert found["reward.budget"] == "reward.batch_size=16 does not divide over 3 ranks: use 15."
    assert found["dpo.budget"] == "dpo.pairs_per_update=4 does not divide over 3 ranks: use 3."


def test_adapters_that_match_nothing_are_found(people, model):
    made = recipe(people(), dpo=DPO | {"method": "lora", "lora": {"targets": ["to_qq"]}})
    assert "to_qq" in failed(made, model)["dpo.lora"]


def test_what_does_not_fit_into_memory_is_found_with_what_to_lower(people, model, monkeypatch):
    monkeypatch.setattr(feedback_memory, "free_memory", lambda: 2**10)
    assert "Lower votes.sources.0.batch_size." in failed(recipe(), model)["votes.sources.0"]
    found = findings(recipe(people(), dpo=DPO), model)
    assert found["dpo.rehearsal"].sentence.startswith("left out: it would not fit.")
    said = found["dpo.memory"].sentence
    assert "weights of model and parent" in said and "Lower dpo.micro_batch" in said


def test_the_base_of_a_vision_language_reward_is_looked_at(people, tmp_path, model):
    def network(**changes: object) -> dict:
        return REWARD | {"network": {"kind": "vlm", "base": str(tmp_path / "qwen"), "dtype": "float32", **changes}}

    path = people()
    absent = failed(recipe(path, reward=network()), model)["reward.network"]
    assert "Give the local folder of a vision-language" in absent
    tiny_whole(tmp_path / "qwen", "qwen3_vl")
    found = findings(recipe(path, reward=network()), model)["reward.network"]
    assert found.passed and found.sentence.startswith("a qwen3_vl in ")
    assert "with adapters and a score for visual, overall: about " in found.sentence
    odd = failed(recipe(path, reward=network(template="{prompt}")), model)["reward.network"]
    assert "holds <|VQ_reward|> 0 times" in odd
    facts = json.loads((tmp_path / "qwen" / "config.json").read_text())
    (tmp_path / "qwen" / "config.json").write_text(json.dumps(facts | {"model_type": "llava"}))
    assert "describes a 'llava'" in failed(recipe(path, reward=network()), model)["reward.network"]


@pytest.fixture
def artifact(tmp_path):
    """A fitted reward of two axes; on one of them it cannot be told from chance."""
    network = recipe(reward=REWARD).reward.network.build(("text", "motion"), "miniature", 0, "cpu")
    folder = tmp_path / "model"
    folder.mkdir()
    network.save(folder)
    accuracy = {"text": {"value": 0.8, "low": 0.7, "high": 0.9, "n": 90}, "motion": {"value": 0.5, "low": 0.4}}
    accuracy["motion"] |= {"high": 0.6, "n": 90}
    RewardCard(
        network=network.kind,
        facts=network.facts(),
        axes=("text", "motion"),
        spread=False,
        centre={"text": 0.0, "motion": 0.0},
        scale={"text": 1.0, "motion": 1.0},
        accuracy=accuracy,
        usable={"text": True, "motion": False},
        source={"simulated": 90},
        k=2.0,
    ).save(folder)
    return folder


def judged(**entry: object) -> Finding:
    """What is said of a learned reward."""
    made = recipe(reward=entry.pop("reward", None), rlhf=RLHF | {"rewards": [{"kind": "learned", **entry}]})
    [found] = examine_learned(made, made.rlhf.rewards, AXES)
    assert found.check == "rlhf.rewards.0"
    return found


def test_a_reward_on_disk_says_whose_votes_it_was_tested_on_and_how_well(artifact):
    found = judged(path=str(artifact), weights={"text": 1.0})
    assert found.passed
    assert found.sentence == f"{artifact} agrees with votes of simulated raters in text 80%."


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"weights": {"motion": 1.0}}, "cannot be told from chance"),
        ({"weights": {"text": 1.0}, "pessimism": 1.0}, "does not say how sure it is"),
        ({"weights": {"visual": 1.0}}, "has no dimension 'visual'"),
    ],
)
def test_a_reward_on_disk_that_cannot_serve_is_found(artifact, entry, reason):
    found = judged(path=str(artifact), **entry)
    assert not found.passed and reason in found.sentence


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({}, "the recipe has no `reward:` stage"),
        ({"reward": REWARD, "pessimism": 1.0}, "set reward.network.spread=true"),
        ({"reward": REWARD | {"axes": ["text"]}}, "will not judge 'visual'; it is fitted to votes on text"),
    ],
)
def test_a_reward_that_this_run_cannot_fit_is_found(entry, reason):
    found = judged(**entry)
    assert not found.passed and reason in found.sentence


def test_the_stand_in_judges_the_axes_that_are_weighed_beside_the_other_rewards():
    entries = [{"kind": "learned", "weights": {"motion": 1.0}}, {"kind": "pixels", "weights": {"dynamics": 2.0}}]
    made = recipe(reward=REWARD, rlhf=RLHF | {"rewards": entries})
    rewards = rehearsed_rewards(made, made.rlhf.rewards, torch.device("cpu"))
    assert rewards.weights == {"learned.motion": 1.0, "pixels.dynamics": 2.0}
