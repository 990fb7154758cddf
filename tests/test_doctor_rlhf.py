"""What the doctor finds in a recipe with `rlhf:`, by a rehearsal of real groups on the miniature."""

import ast
import json
import math
import sys

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from command import DEMO, on_ranks, reelign
from diagnosis import complaints, diagnosis, ranks_that_differ
from forks import call_on_ranks
from reelign.data.clip import Clip
from reelign.doctor import Finding, examine
from reelign.doctor.cost import count
from reelign.doctor.rehearsal import rehearsal, replayed, sample_groups
from reelign.doctor.spread import Spread, alternatives, dithered, overall, spreads
from reelign.doctor.update import first_ratio
from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.models.load import MINIATURE, load_model
from reelign.recipe import Recipe, load_recipe
from reelign.stages.algorithm import Algorithm
from reelign.stages.objectives import Told
from reelign.train.parallel import World

SMALL = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "rewards": [{"kind": "miniature"}],
    "updates": 5,
    "prompts_per_update": 2,
    "group_size": 4,
    "micro_batch": 8,
    "validate_every": 2,
    "optim": {"lr": 1e-3},
}
REHEARSED = ["rehearsal", "rewards", "reward spread", "ratio", "gradient", "ranks", "cost"]
ALONE = World(0, 1, torch.device("cpu"), None)


def overrides(*more: str) -> list[str]:
    small = ["curate=null", "sft=null", "votes=null", "reward=null", "enhance=null", "distill=null", "sampler.steps=4"]
    return [*small, "battery.count=2", f"rlhf={json.dumps(SMALL)}", *more]


def recipe(*more: str) -> Recipe:
    return load_recipe(DEMO, overrides(*more))


def findings(*more: str) -> dict[str, Finding]:
    return diagnosis(recipe(*more))


def failed(*more: str) -> dict[str, str]:
    return complaints(recipe(*more))


@pytest.fixture
def own_reward(tmp_path, monkeypatch):
    """A user's function, and the override that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, body: str) -> str:
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test of this process may have used the name
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\ncalls = []\ndef reward(clips):\n{body}")
        return f"rlhf.rewards=[{{kind: function, path: {name}.reward, dimensions: {{a: [0, 1]}}, weights: {{a: 1}}}}]"

    return write


def test_a_sound_recipe_passes_every_finding_and_nothing_is_written(tmp_path):
    found = findings(f"runs={tmp_path}/runs")
    assert [finding for finding in found.values() if not finding.passed] == []
    read = ["rlhf.prompts", "rlhf.algorithm", "rlhf.budget", "rlhf.memory"]
    assert list(found) == ["device", "model", "battery size", "sampler", "shards", *read, *REHEARSED, "disk"]
    said = {check: finding.sentence for check, finding in found.items()}
    assert said["rlhf.prompts"] == "6 prompts."
    assert "reelign makes stochastic: one step a group, drawn from steps 1 to 2 of 4" in said["rlhf.algorithm"]
    assert "the noise law is flow at level 0.7" in said["rlhf.algorithm"]
    assert said["rlhf.budget"].startswith("an update is 8 clips: 1 ranks x 2 groups of 4")
    assert "to sample and decode 8 clips or" in said["rlhf.memory"]
    assert said["rehearsal"] == "2 groups of 4 clips, sampled, judged and learned from by miniature."
    assert "means of 8 clips: miniature.motion 0." in said["rewards"]
    assert "miniature.visual 0." in said["reward spread"]
    assert said["gradient"].startswith("reaches all ")
    assert "under torchrun" in said["ranks"]
    assert "network evaluations and " in said["cost"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["miniature-rlhf", "miniature-feedback", "miniature-users", "hacked"])
def test_the_recipes_of_the_miniature_pass_every_finding(name):
    found = examine(load_recipe(DEMO.with_name(f"{name}.yaml"), ["model=miniature", "sampler.steps=6"]))
    assert [finding for finding in found if not finding.passed] == []


def test_adapters_are_covered_and_those_whose_gradient_comes_second_are_told_apart():
    found = findings("rlhf.method=lora", "rlhf.lora.targets=[to_q, ffn.net.2]", "sft.data=[{kind: miniature}]")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert found["rlhf.lora"].sentence == "12 modules carry an adapter: to_q 8, ffn.net.2 4."
    said = "reaches all 24 trained tensors, the 12 lora_A after the first step, because lora_B starts at 0."
    assert found["gradient"].sentence == said
    assert "its parent in the run, the fine-tuned model, does not exist yet" in found["rehearsal"].sentence
    assert "supervised fine-tuning left out" in found["cost"].sentence


def test_adapters_that_match_nothing_are_found_before_anything_is_sampled():
    found = findings("rlhf.method=lora", "rlhf.lora.targets=[to_qq]")
    assert [check for check, finding in found.items() if not finding.passed] == ["rlhf.lora"]
    assert found["rehearsal"].sentence == "left out until the lines above pass."


def test_diffusion_nft_passes_without_a_ratio():
    found = findings("rlhf.algorithm.preset=diffusion-nft")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert "ratio" not in found


def test_what_becomes_of_odd_prompts_is_counted(tmp_path):
    long = " ".join(["word"] * 2000)
    lines = ["a red circle", "", "a  red circle", "🎈 über 日本", long, "  ", "a red circle", f"{long} too"]
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    lists = f"rlhf.prompts=[{{kind: list, path: {tmp_path / 'p.txt'}}}]"
    found = findings(lists, "rlhf.rewards=[{kind: pixels, weights: {exposure: 1}}]", "rlhf.prompts_per_update=5")
    said = found["rlhf.prompts"].sentence
    assert "4 prompts; of 8 that are listed 2 are empty and 2 repeats" in said
    assert "2 are longer than the 20 tokens that the text encoder reads" in said
    assert "fewer than rlhf.prompts_per_update=5" in said
    assert all(found[check].passed for check in ("rlhf.prompts", "rehearsal", "rewards", "gradient"))


def test_a_missing_prompt_list_is_found_before_anything_is_sampled(tmp_path):
    found = findings(f"rlhf.prompts=[{{kind: list, path: {tmp_path / 'none.txt'}}}]")
    assert "cannot read the prompt list" in found["rlhf.prompts"].sentence
    assert not found["rlhf.prompts"].passed
    assert found["rehearsal"].sentence == "left out until the lines above pass."
    assert "rewards" not in found


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("shape", "    return {'a': [0.5]}", "a has the shape (1,); one number a clip is (8,)"),
        ("order", "    return {'b': [0.5] * len(clips)}", "it promised a and gave b"),
    ],
)
def test_a_reward_that_breaks_its_contract_is_a_finding_and_the_rest_is_still_looked_at(own_reward, name, body, reason):
    found = findings(own_reward(name, body))
    assert [check for check, finding in found.items() if not finding.passed] == ["rewards"]
    assert f"the reward '{name}.reward' has no score for " in found["rewards"].sentence
    assert reason in found["rewards"].sentence
    assert found["ratio"].passed
    assert found["gradient"].passed


def test_a_reward_that_is_constant_teaches_nothing(own_reward):
    said = failed(own_reward("constant", "    return {'a': [0.5] * len(clips)}"))
    assert list(said) == ["reward spread"]
    assert "constant.reward.a 0; 100% of the groups have none at all. Nothing can be learned" in said["reward spread"]
    assert "rlhf.algorithm.shared_noise=false gives 0.0 x" in said["reward spread"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("moody", "    return {'a': 0.5 + 1e-3 * np.random.default_rng(len(calls)).random(len(clips))}"),
        ("brittle", "    return {'a': [0.5 + (int(clip.frames.sum()) % 97) / 1000 for clip in clips]}"),
    ],
    ids=["another answer each time", "another answer to what no viewer can see"],
)
def test_a_spread_that_is_the_judges_own_noise_is_found(own_reward, name, body):
    said = failed(own_reward(name, f"    calls.append(1)\n{body}"))
    assert list(said) == ["reward spread"]
    assert "what the judges waver by themselves; 3 x is needed" in said["reward spread"]
    assert "take other ones, or mend them" in said["reward spread"]


def test_a_setting_that_leaves_no_spread_is_answered_with_one_that_does(own_reward):
    """Shared noise and hardly any of it at the stochastic step: the clips of a group are all but equal."""
    body = "    return {'a': [clip.frames.mean() / 255 for clip in clips]}"
    said = failed(own_reward("light", body), "rlhf.algorithm.noise_level=0.0001")
    assert list(said) == ["reward spread"]
    assert "rlhf.algorithm.shared_noise=false gives " in said["reward spread"]
    assert "rlhf.algorithm.noise_level=0.7 gives " in said["reward spread"]
    assert " Set rlhf.algorithm." in said["reward spread"]


def test_a_clip_range_below_the_drift_is_found():
    """Replay and rollout are one function: the ratio leaves 1 when the weights change between them."""
    planned = recipe()
    assert planned.rlhf is not None
    with rehearsal(planned, planned.rlhf, ALONE) as trainer:
        groups = sample_groups(trainer, trainer.algorithm)
        with torch.no_grad():
            next(iter(trainer.trainee.parameters.values())).add_(1e-3)
        told, _ = replayed(trainer, groups.rollouts)
    assert 0 < told.ratio_drift < 1
    assert f"up to {told.ratio_drift:.1e}; " in first_ratio(told, Algorithm(clip_range=2 * told.ratio_drift))
    with pytest.raises(ReelignError, match=r"beyond rlhf\.algorithm\.clip_range=.* Raise it"):
        first_ratio(told, Algorithm(clip_range=told.ratio_drift / 2))
    with pytest.raises(ReelignError, match="nan away from 1"):
        first_ratio(Told(ratio_drift=math.nan), Algorithm())


def test_weights_that_the_network_does_not_use_are_named(tmp_path):
    """A network with an image's embedding, which text to video never feeds."""
    model = load_model(MINIATURE, device="cpu")
    old = model.pipeline.transformer
    new = WanTransformer3DModel.from_config({**old.config, "image_dim": 8})
    new.load_state_dict(old.state_dict(), strict=False)
    model.pipeline.register_modules(transformer=new)
    model.save(tmp_path / "model")
    said = failed(f"model={tmp_path / 'model'}")
    assert list(said) == ["gradient"]
    assert "no gradient reaches 8 of 131 trained tensors" in said["gradient"]
    assert "transformer.condition_embedder.image_embedder" in said["gradient"]


def test_prompts_that_do_not_divide_over_the_ranks_are_found(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = findings("rlhf.prompts_per_update=6")
    assert not found["rlhf.budget"].passed
    said = "rlhf.prompts_per_update=6 does not divide over 4 ranks: use 4."
    assert found["rlhf.budget"].sentence == said
    assert found["rehearsal"].sentence == "left out until the lines above pass."


def test_a_group_larger_than_a_micro_batch_is_said():
    assert (
        "a group that branches is held whole, beyond rlhf.micro_batch=2"
        in findings("rlhf.micro_batch=2")["rlhf.budget"].sentence
    )


def test_a_grid_of_one_step_is_refused_and_of_two_has_one_step_to_train():
    said = failed("sampler.steps=1")
    assert list(said) == ["rlhf.algorithm"]
    assert "a grid of 1 has none. Raise sampler.steps" in said["rlhf.algorithm"]
    found = findings("sampler.steps=2")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert "drawn from step 1 of 2" in found["rlhf.algorithm"].sentence


def test_what_does_not_fit_is_not_rehearsed_but_counted():
    found = findings("rlhf.micro_batch=16000", "rlhf.prompts_per_update=4000")
    assert not found["rlhf.memory"].passed
    assert "Lower rlhf.micro_batch, turn on rlhf.gradient_checkpointing" in found["rlhf.memory"].sentence
    assert "left out: it would not fit" in found["rehearsal"].sentence


def test_a_model_that_keeps_a_cpu_busy_for_hours_is_only_counted(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = findings("battery.height=256", "battery.width=512", "sampler.steps=1000")
    assert "left out: a CPU would need about " in found["rehearsal"].sentence
    assert "rewards" not in found
    assert "hours" not in found["cost"].sentence


def test_evaluations_are_counted_as_they_are_spent():
    """Presets, with and without guidance, in part of the grid, and learning from some clips only."""
    presets = ("reelign", "mix-grpo", "flow-grpo", "diffusion-nft", "reelign-nft")
    changes = [(f"rlhf.algorithm.preset={preset}",) for preset in presets]
    changes += [
        ("rlhf.algorithm.guidance=rollout",),
        ("rlhf.algorithm.guidance=rollout", "rlhf.algorithm.iso_temporal=false", "rlhf.micro_batch=3"),
        ("sampler.guidance_interval=[0.0, 0.8]", "rlhf.algorithm.steps=all", "rlhf.algorithm.guidance=none"),
        ("rlhf.algorithm.preset=flash-grpo", "rlhf.select=2"),
    ]
    for change in changes:
        planned = recipe(*change)
        assert planned.rlhf is not None
        cost = count(planned, planned.rlhf.model_copy(update={"updates": 1}), 1)
        with rehearsal(planned, planned.rlhf, ALONE) as trainer:
            assert trainer.one_update()["nfe"] == cost.rollout + cost.replay, change


def test_validations_and_batteries_are_counted_as_they_are_spent():
    planned = recipe("sampler.guidance_interval=[0.0, 0.8]", "battery.validation_count=3")
    assert planned.rlhf is not None
    model, judged = load_model(MINIATURE, device="cpu"), count(planned, planned.rlhf, 1).judged
    once = {split: run_battery(model, planned.battery, planned.sampler, split).nfe for split in ("validation", "test")}
    assert judged == 4 * once["validation"] + 2 * once["test"]  # before, after updates 2, 4 and 5; the parent and it


def test_a_long_run_is_counted_by_its_beginning():
    planned = recipe("rlhf.algorithm.preset=flow-grpo", "rlhf.updates=100000")
    assert planned.rlhf is not None
    cost = count(planned, planned.rlhf, 1)
    assert (cost.rollout, cost.replay) == (100_000 * 8 * 4 * 2, 100_000 * 8 * 3 * 2)


def test_spread_and_noise_are_deviations_inside_groups():
    """Scores that all rise alike lose nothing: only what changes the order inside a group is noise."""
    scores = {"a": torch.tensor([[0.0, 2.0], [5.0, 7.0]]), "b": torch.ones(2, 2), "c": torch.rand(2, 2)}
    risen = {name: values + 3 for name, values in scores.items()}
    wavered = {**risen, "a": torch.tensor([[1.0, 2.0], [6.0, 7.0]])}
    weights = {"a": 2.0, "b": 1.0, "c": 0.0}
    alike = spreads(scores, [risen], weights)
    assert alike.keys() == {"a", "b"} and alike["b"] == Spread(0.0, 0.0)
    assert (alike["a"].value, alike["a"].noise) == (pytest.approx(math.sqrt(2)), 0.0)
    found = spreads(scores, [risen, wavered], weights)
    assert found["a"].noise == pytest.approx(0.5)  # differences of 1 and 0: deviation 1 / sqrt 2, over sqrt 2
    assert overall(found, weights) == pytest.approx(2 * math.sqrt(2))
    pair = {"a": Spread(4.0, 1.0), "b": Spread(1.0, 1.0)}
    assert overall(pair, {"a": 1.0, "b": 1.0}) == pytest.approx(math.sqrt(2 / (1 + 1 / 16)))
    assert overall({"b": Spread(0.0, 0.0)}, {"b": 1.0}) == 0


def test_dither_moves_each_grey_level_by_one_at_most():
    clip = Clip(np.array([0, 255, 128], np.uint8).reshape(1, 1, 1, 3).repeat(40, 1), 8.0, "p", "id")
    (moved,) = dithered([clip], 0)
    change = moved.frames.astype(int) - clip.frames
    assert set(change.ravel().tolist()) == {-1, 0, 1}
    assert np.array_equal(moved.frames, dithered([clip], 0)[0].frames)


def test_alternatives_follow_from_what_the_algorithm_leaves_alike():
    assert list(alternatives(Algorithm())) == ["rlhf.algorithm.shared_noise=false", "rlhf.algorithm.noise_level=1.05"]
    flash = Algorithm.model_validate({"preset": "flash-grpo"})
    assert list(alternatives(flash)) == ["rlhf.algorithm.law=flow", "rlhf.algorithm.last=0.25"]
    assert alternatives(Algorithm.model_validate({"preset": "diffusion-nft"})) == {}
    assert not alternatives(Algorithm())["rlhf.algorithm.shared_noise=false"].branches


def test_the_command_prints_each_line_once_on_two_ranks(tmp_path):
    done = on_ranks(2, "doctor", DEMO, *overrides("name=two", f"runs={tmp_path / 'runs'}"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert said.count("pass cost:") == 1
    assert "rehearsal: 4 groups of 4 clips" in said
    assert "means of 16 clips" in said
    assert "2 ranks hold equal weights after one update, in all " in said
    assert not (tmp_path / "runs").exists()


def test_ranks_agree_on_what_failed_and_name_weights_that_differ(tmp_path):
    call_on_ranks(2, ranks_that_differ, tmp_path)
    elsewhere = "it failed on another rank; the line of that rank says why."
    first = [("rewards", False, elsewhere), ("seed", True, "0."), ("rewards (rank 1)", False, "a is nan.")]
    said = [ast.literal_eval((tmp_path / f"rank-{rank}").read_text()) for rank in range(2)]
    assert said == [(["apart"], first), (["apart"], [])]


def test_the_command_refuses_a_group_of_one_and_names_the_clips_of_a_reward_that_answers_nan(tmp_path):
    done = reelign("doctor", DEMO, *overrides("rlhf.group_size=1"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "rlhf.group_size: Input should be greater than or equal to 2 (given: 1)" in " ".join(done.stderr.split())
    (tmp_path / "holes.py").write_text("def reward(clips):\n    return {'a': [0.5] * 5 + [float('nan')] * 3}\n")
    own = "rlhf.rewards=[{kind: function, path: holes.reward, dimensions: {a: [0, 1]}, weights: {a: 1}}]"
    done = reelign("doctor", DEMO, *overrides(own), PYTHONPATH=str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert "FAIL rewards: the reward 'holes.reward' has no score for " in said
    assert "a is nan, outside [0, 1]" in said
    assert "each FAIL above says what to do" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
