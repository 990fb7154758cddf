"""The stage as a user runs it (killed, two ranks, full and LoRA, failing rewards), and one update from inside."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints import newest_weights
from command import DEMO, TINY, on_ranks, reelign
from forks import Fork
from miniatures import thin_miniature
from reelign.evaluate.battery import BatteryConfig
from reelign.flow.grid import sigma_grid
from reelign.models.load import load_model
from reelign.rewards.recipe import build_rewards
from reelign.sampling.sample import SampleConfig
from reelign.stages.algorithm import Algorithm
from reelign.stages.context import StageContext
from reelign.stages.objectives import forward_process_loss
from reelign.stages.rlhf import RlhfConfig, Trainer, training_sampler
from reelign.stages.rollout import roll_out, steps_of
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

SMALL = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "rewards": [{"kind": "miniature"}],
    "updates": 6,
    "prompts_per_update": 2,
    "group_size": 4,
    "micro_batch": 4,
    "validate_every": 3,
    "save_every": 1,
    "patience": None,
    "optim": {"lr": 1e-3},
}


def arguments(folder: Path, *more: str) -> list[str | Path]:
    return ["rlhf", DEMO, *TINY, "sft=null", f"rlhf={json.dumps(SMALL)}", f"runs={folder}", "name=r", *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return newest_weights(folder / "r" / "rlhf")


def updates(folder: Path) -> dict[int, dict[str, float]]:
    """Rows of the log by update, without the seconds."""
    lines = (folder / "r" / "rlhf" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "reward" in row]
    return {row["step"]: {k: v for k, v in row.items() if not k.startswith("seconds/")} for row in rows}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The uninterrupted run on one rank."""
    folder = tmp_path_factory.mktemp("one")
    done = reelign(*arguments(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_stage_trains_logs_and_signs(one_rank):
    found = updates(one_rank)
    assert sorted(found) == list(range(1, 7))
    for row in found.values():
        assert row["ratio_drift"] < 1e-5
        assert row["grad_norm"] > 0
        assert 0 <= row["reward/miniature.visual"] <= 1
        assert row["spread/miniature.visual"] > 0
    before = load_model(thin_miniature(), device="cpu").pipeline.transformer.state_dict()
    after = {name.removeprefix("transformer."): value for name, value in weights(one_rank).items()}
    assert all(not torch.equal(before[name], value) for name, value in after.items())
    card = json.loads((one_rank / "r" / "rlhf" / "model" / "card.json").read_text())
    assert (card["stage"], card["parent"]) == ("rlhf", "base")
    summary = json.loads((one_rank / "r" / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "rlhf"]
    assert summary["stages"][1]["gsb"].keys() == {"text", "visual", "motion", "overall"}


def test_o_a_run_that_is_killed_twice_ends_in_the_same_bits(one_rank, tmp_path):
    log = tmp_path / "r" / "rlhf" / "metrics.jsonl"
    for row in ('{"step": 1, "loss"', '{"step": 4, "loss"'):
        Fork(tmp_path, *arguments(tmp_path)).kill_when(lambda row=row: log.exists() and row in log.read_text())
    again = reelign(*arguments(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert again.returncode == 0, again.stderr
    wanted, found = weights(one_rank), weights(tmp_path)
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert updates(tmp_path) == updates(one_rank)


@pytest.mark.parametrize("more", [(), ("rlhf.method=lora", "rlhf.lora.rank=4")], ids=["full", "lora"])
def test_n_two_ranks_learn_what_one_rank_learns(tmp_path, more):
    """With a reward that follows the pixels smoothly: where a judge counts checks, the last bit of a sum over ranks
    may tip one, and the runs part as two machines would."""
    (tmp_path / "smooth.py").write_text(
        "def reward(clips):\n"
        "    return {'light': [clip.frames.mean() / 255 for clip in clips],\n"
        "            'warmth': [(clip.frames[..., 0].mean() - clip.frames[..., 2].mean()) / 255 for clip in clips]}\n"
    )
    own = "{kind: function, path: smooth.reward, dimensions: {light: [0, 1], warmth: [-1, 1]}, "
    own += "weights: {light: 1, warmth: 1}}"
    extra = {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    changes = [f"rlhf.rewards=[{own}]", "rlhf.save_every=6", *more]
    done = reelign(*arguments(tmp_path / "alone", *changes), **extra)
    assert done.returncode == 0, done.stderr
    done = on_ranks(2, *arguments(tmp_path / "together", *changes), **extra)
    assert done.returncode == 0, done.stderr
    wanted, found = updates(tmp_path / "alone"), updates(tmp_path / "together")
    assert wanted.keys() == found.keys()
    for update, row in wanted.items():
        for name in ("reward", "grad_norm", "learned", "nfe", "diversity"):
            assert found[update][name] == pytest.approx(row[name], rel=2e-3, abs=1e-6), (update, name)
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "together")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3)


def test_a_reward_that_fails_stops_the_run_names_the_clips_and_loses_nothing(one_rank, tmp_path):
    """The function scores three updates, then answers nan; mended, the same command goes on to the same bits."""
    (tmp_path / "moody.py").write_text(
        "import os, pathlib\n"
        "from reelign.rewards.miniature import MiniatureReward\n"
        "judge, calls = MiniatureReward(), []\n"
        "def reward(clips):\n"
        "    calls.append(1)\n"
        "    found = {k: list(v) for k, v in judge.score(clips).items()}\n"
        "    if len(calls) > 6 and not pathlib.Path(os.environ['MENDED']).exists():\n"
        "        found['visual'][1] = float('nan')\n"
        "    return found\n"
    )
    own = "{kind: function, path: moody.reward, dimensions: {text: [0, 1], visual: [0, 1], motion: [0, 1]}, "
    own += "weights: {text: 1, visual: 1, motion: 1}}"
    extra = {"PYTHONPATH": str(tmp_path), "MENDED": str(tmp_path / "mended"), "CUDA_VISIBLE_DEVICES": ""}
    failed = reelign(*arguments(tmp_path, f"rlhf.rewards=[{own}]"), **extra)
    assert failed.returncode == 1
    said = " ".join(failed.stderr.split())
    assert "the reward 'moody.reward' has no score for" in said
    assert "visual is nan" in said
    assert "Traceback" not in said
    (tmp_path / "mended").touch()
    again = reelign(*arguments(tmp_path, f"rlhf.rewards=[{own}]"), **extra)
    assert again.returncode == 0, again.stderr
    assert all(torch.equal(weights(tmp_path)[name], value) for name, value in weights(one_rank).items())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rlhf.group_size=1", "group_size"),
        ("rlhf.select=3", "must be even"),
        (
            "rlhf.rewards=[{kind: function, path: no.such, dimensions: {a: [0, 1]}, weights: {a: 1}}]",
            "cannot be imported",
        ),
        ("rlhf.rewards=[{kind: pixels, weights: {beauty: 1}}]", "no dimension 'beauty'"),
        ("rlhf.prompts=[{kind: list, path: none.txt}]", "none.txt"),
        ("rlhf.algorithm.prest=flow-grpo", "did you mean"),
    ],
)
def test_bad_input_ends_in_one_message(tmp_path, override, said):
    done = reelign(*arguments(tmp_path, override), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def trainer(folder: Path, **changes) -> Trainer:
    config = RlhfConfig.model_validate(SMALL | changes)
    context = StageContext(
        folder=folder,
        parent=str(thin_miniature()),
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SampleConfig(steps=4, guidance_scale=2.0),
        battery=BatteryConfig(count=2, validation_count=2),
        world=World(0, 1, torch.device("cpu"), None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )
    model = load_model(thin_miniature(), device="cpu")
    return Trainer(model, build_rewards(config.rewards), ThreadPoolExecutor(1), context, config)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize(
    "algorithm",
    [
        {},
        {"guidance": "none"},
        {"guidance": "rollout"},
        {"weight": "guard", "first": 0.3},
        {"kl": 0.1},
        {"preset": "flash-grpo", "iso_temporal": False},
        {"preset": "flow-grpo"},
        {"preset": "mix-grpo", "denominator": "max_group"},
        {"preset": "dance-grpo", "denominator": "batch"},
        {"preset": "diffusion-nft"},
        {"preset": "reelign-nft"},
    ],
    ids=lambda values: "-".join(map(str, values.values())) or "reelign",
)
def test_g_the_first_replay_of_every_variant_has_ratio_one_and_every_weight_a_gradient(tmp_path, method, algorithm):
    taught = trainer(tmp_path, method=method, algorithm=algorithm, optim={"lr": 1e-3, "max_grad_norm": 1e9})
    before = {name: value.detach().clone() for name, value in taught.trainee.parameters.items()}
    first = taught.one_update()
    assert first["ratio_drift"] < 1e-5
    assert first["grad_norm"] > 0
    changed = {name for name, value in taught.trainee.parameters.items() if not torch.equal(before[name], value)}
    still = {name for name in before.keys() - changed if "lora_A" not in name}
    assert not still, sorted(still)[:4]
    taught.update += 1
    assert taught.one_update()["ratio_drift"] < 1e-5


def test_an_update_of_ours_costs_a_fraction_of_one_over_all_steps(tmp_path):
    ours = trainer(tmp_path / "a", group_size=8, micro_batch=16).one_update()["nfe"]
    flow = trainer(tmp_path / "b", group_size=8, micro_batch=16, algorithm={"preset": "flow-grpo"}).one_update()["nfe"]
    assert flow == 2 * 2 * 8 * (4 + 3)
    assert ours < flow / 2


def test_groups_that_branch_early_are_sampled_first_and_each_keeps_its_own_scores(tmp_path):
    taught = trainer(tmp_path, prompts_per_update=8, group_size=2, micro_batch=4)
    rows = [row for chunk in taught.chunks() for row in chunk]
    steps = steps_of(rows, taught.algorithm, taught.sampler, 0, 0).int().argmax(1).tolist()
    assert steps == sorted(steps)
    assert len(set(steps)) > 1
    assert sorted(place.position for place, _ in rows) == list(range(8))
    assert [place.position for place, _ in rows] != list(range(8))
    judged, lesson, learned = taught.rewards, taught.learn, {}

    def rewards(clips):
        """The second clip of each group is the better one, by more the later its prompt comes."""
        places = [tuple(map(int, clip.id.split("#")[1].split("."))) for clip in clips]
        return dict.fromkeys(judged.weights, np.array([float(clip * (1 + position)) for position, clip in places]))

    def learn(rollouts, advantages):
        learned["latents"] = torch.cat([found.latents for found in rollouts])
        learned["advantages"] = advantages.unflatten(0, (-1, 2))
        for row, own in zip(rows, learned["latents"].unflatten(0, (-1, 2)), strict=True):
            alone = roll_out(taught.model, [row], 2, taught.algorithm, taught.sampler, taught.context.battery, 0, 0)
            assert torch.allclose(alone.latents, own, atol=1e-3)
        return lesson(rollouts, advantages)

    rewards.weights = judged.weights
    taught.rewards, taught.learn = rewards, learn
    taught.algorithm = taught.algorithm.model_copy(update={"denominator": "batch", "advantage_bound": 100.0})
    taught.one_update()
    better = learned["advantages"][:, 1] - learned["advantages"][:, 0]
    due = torch.tensor([1.0 + place.position for place, _ in rows])
    assert torch.allclose(better.float() / due, (better[0] / due[0]).float().expand(8), rtol=1e-3)


def test_only_the_best_and_worst_are_learned_from(tmp_path):
    numbers = trainer(tmp_path, select=2, algorithm={"preset": "flash-grpo"}).one_update()
    assert numbers["learned"] == 2 * 2


def test_training_and_deployment_share_their_grid():
    for solver in ("unipc", "euler"):
        deployed = SampleConfig(steps=20, shift=3.0, solver=solver)
        found = training_sampler(deployed, RlhfConfig.model_validate(SMALL).algorithm)
        assert found.solver == "euler"
        assert torch.equal(found.grid, deployed.grid)
        assert torch.equal(found.grid, sigma_grid(20, 3.0, solver))
        assert training_sampler(deployed, Algorithm.model_validate({"preset": "diffusion-nft"})).solver == solver


@pytest.mark.parametrize("together", [True, False])
def test_an_iso_temporal_group_is_learned_from_at_the_same_levels_and_noise(tmp_path, monkeypatch, together):
    seen = []

    def recorded(model, rollout, advantages, levels, noise, algorithm, told):
        seen.append((levels, noise))
        return forward_process_loss(model, rollout, advantages, levels, noise, algorithm, told)

    monkeypatch.setattr("reelign.stages.rlhf.forward_process_loss", recorded)
    changes = {"preset": "reelign-nft", "iso_temporal": together, "nft_levels": 3}
    taught = trainer(tmp_path, algorithm=changes)
    numbers = taught.one_update()
    clips = taught.config.prompts_per_update * taught.config.group_size
    assert numbers["nfe_trained"] == 3 * clips
    levels, noise = (
        torch.cat(parts).unflatten(0, (3, -1, taught.config.group_size)) for parts in zip(*seen, strict=True)
    )
    assert bool((levels == levels[:, :, :1]).all() and (noise == noise[:, :, :1]).all()) is together
    assert all(len(set(of_a_clip)) == 3 for of_a_clip in levels.flatten(1).T.tolist())
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_what_only_does_harm_ends_as_its_parent(tmp_path):
    """The whole miniature: of its first block alone chance can make something better."""
    done = reelign(*arguments(tmp_path, "model=miniature", "rlhf.optim.lr=0.1"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    model = tmp_path / "r" / "rlhf" / "model"
    kept, parent = (load_model(name, device="cpu").pipeline.transformer.state_dict() for name in (model, "miniature"))
    assert all(torch.equal(parent[name], value) for name, value in kept.items())


def test_it_stops_when_nothing_gets_better(tmp_path):
    done = reelign(
        *arguments(tmp_path, "rlhf.patience=1", "rlhf.validate_every=1", "rlhf.optim.lr=1e-12"), CUDA_VISIBLE_DEVICES=""
    )
    assert done.returncode == 0, done.stderr
    assert len(updates(tmp_path)) < 6
