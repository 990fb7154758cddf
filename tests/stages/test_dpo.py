"""The stage on votes on real clips: killed, on two ranks, full and LoRA; what is learned from, and what is refused."""

import json
import math
import random
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints import newest_weights
from forks import signal_when
from reelign.data.clip import write_clip
from reelign.errors import ReelignError
from reelign.evaluate.battery import tasks
from reelign.feedback.vote import AXES, read_votes, write_votes
from reelign.flow.preference import preferred
from reelign.models.load import load_model
from reelign.stages.dpo import Trainer, run_dpo
from reelign.stages.preferences import encoded, preferences
from reelign.train.parallel import World
from voting import BATTERY, config, context, made_pairs, start, vote

FULL, LORA = {"method": "full"}, {"method": "lora", "lora": {"rank": 4}}
METHODS = pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pair, prompt and two clips, for six prompts."""
    return made_pairs(tmp_path_factory.mktemp("clips"), 6)


@pytest.fixture(scope="module")
def votes(pairs):
    """The first clip is the better one of all pairs but two; of the last, nobody can tell."""
    verdicts = ["good", "good", "bad", "good", "good", "same"]
    return [vote(*pair, verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]


@pytest.fixture(scope="module")
def listed(votes, tmp_path_factory):
    """The votes as a file."""
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    write_votes(path, votes)
    return path


@pytest.fixture(scope="module")
def one_rank(votes, tmp_path_factory):
    """The uninterrupted trainings, by method."""
    folders = {}
    for method in (FULL, LORA):
        folder = folders[method["method"]] = tmp_path_factory.mktemp("one")
        run_dpo(context(folder), config(**method), votes)
    return folders


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "dpo" / "metrics.jsonl").read_text().splitlines()]


def trainer(folder: Path, votes, watched: bool = False, **changes) -> Trainer:
    """A trainer; `watched` holds the very pairs apart that it learns from."""
    recipe, place = config(**{"held_out": 0.0} | changes), context(folder)
    chosen = preferences(votes, recipe.axes, place.battery, recipe.held_out)
    if watched:
        chosen = replace(chosen, held_out=[pair for pair in chosen.training if pair.decided])
    model = load_model(place.parent, device="cpu")
    return Trainer(model, chosen, encoded([*chosen.training, *chosen.held_out], model, place), place, recipe)


@METHODS
def test_it_trains_logs_accounts_and_leaves_a_model_that_is_not_its_parent(one_rank, method):
    folder = one_rank[method["method"]]
    updates = [row for row in rows(folder) if "loss" in row]
    assert [row["step"] for row in updates] == [1, 2, 3, 4]
    for row in updates:
        assert row["grad_norm"] > 0
        assert row["nfe"] == 4 * 4
        assert row["margin"] == pytest.approx(row["reward/winner"] - row["reward/loser"], abs=1e-5)
        assert 0 <= row["accuracy"] <= 1
    validations = [row for row in rows(folder) if "validation/mean" in row]
    assert [row["step"] for row in validations] == [0, 2, 4]
    assert validations[0]["validation/accuracy"] == 0.5
    phases = {json.loads(line)["phase"] for line in (folder / "ledger.jsonl").read_text().splitlines()}
    assert phases == {"dpo/encode", "dpo/train", "dpo/validate"}
    learned = newest_weights(folder / "dpo")
    if method is FULL:
        parent = load_model("miniature", device="cpu").pipeline.transformer.state_dict()
        assert all(not torch.equal(parent[name.removeprefix("transformer.")], w) for name, w in learned.items())
    else:
        assert all(float(w.abs().max()) > 0 for w in learned.values())


@METHODS
def test_the_artifact_is_a_model_that_moves_otherwise_than_its_parent(votes, tmp_path, method):
    """Without a validation there is no better checkpoint than the last weights."""
    taught = trainer(tmp_path, votes, **method)
    taught.one_update()
    made = taught.finish()
    model, parent = (load_model(name, device="cpu") for name in (made, "miniature"))
    latents = torch.randn(1, *model.latent_shape(17, 32, 32), generator=torch.Generator().manual_seed(0))
    conditions = model.encode_text(["a large red circle moves left"])
    with torch.no_grad():
        found, was = (m.velocity(latents, torch.tensor([0.5]), conditions) for m in (model, parent))
    assert found.shape == was.shape
    assert not torch.equal(found, was)


def test_o_a_training_that_is_killed_twice_ends_in_the_same_bits(one_rank, listed, tmp_path):
    log = tmp_path / "dpo" / "metrics.jsonl"
    for update in (1, 2):
        (process,) = start(tmp_path, listed, **FULL)
        row = f'{{"step": {update}, "loss"'
        signal_when(process, lambda row=row: log.exists() and row in log.read_text(), signal.SIGKILL)
        process.join(60)
        assert not (tmp_path / "dpo" / "model").exists()
    shuffled = read_votes(listed)
    random.Random(0).shuffle(shuffled)
    run_dpo(context(tmp_path), config(**FULL), shuffled)
    wanted, found = newest_weights(one_rank["full"] / "dpo"), newest_weights(tmp_path / "dpo")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert rows(tmp_path) == rows(one_rank["full"])


@METHODS
def test_n_two_ranks_learn_what_one_rank_learns(one_rank, listed, tmp_path, method):
    processes = start(tmp_path, listed, 2, **method)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = one_rank[method["method"]]
    for wanted, found in zip(rows(alone), rows(tmp_path), strict=True):
        assert wanted.keys() == found.keys()
        for name in wanted.keys() & {"step", "loss", "grad_norm", "lr", "nfe", "accuracy", "validation/accuracy"}:
            assert found[name] == pytest.approx(wanted[name], rel=2e-3, abs=1e-6), (wanted["step"], name)
    one, two = newest_weights(alone / "dpo"), newest_weights(tmp_path / "dpo")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-3)


def test_a_training_that_is_asked_to_stop_saves_says_so_and_goes_on(one_rank, votes, tmp_path):
    place = context(tmp_path)

    def ask(what: str, done: int, total: int, note: str = "") -> None:
        place.interrupt.requested = (what, done) == ("dpo: train", 1) or place.interrupt.requested

    with pytest.raises(ReelignError, match="stopped after update 1 as asked; the same command goes on"):
        run_dpo(replace(place, progress=ask), config(**LORA), votes)
    run_dpo(context(tmp_path), config(**LORA), votes)
    wanted, found = newest_weights(one_rank["lora"] / "dpo"), newest_weights(tmp_path / "dpo")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@METHODS
def test_before_the_first_update_model_and_reference_are_one(votes, tmp_path, method):
    """To the last bit: the loss of a decided pair is log 2, and every weight that can have a gradient has one."""
    strict = [given for given in votes if given.verdict != "same"]
    taught = trainer(tmp_path, strict, **method, optim={"lr": 1e-3, "max_grad_norm": 1e9})
    before = {name: value.detach().clone() for name, value in taught.trainee.parameters.items()}
    first = taught.one_update()
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert (first["accuracy"], first["margin"], first["reward/winner"]) == (0.5, 0.0, 0.0)
    changed = {name for name, value in taught.trainee.parameters.items() if not torch.equal(before[name], value)}
    assert {name for name in before.keys() - changed if "lora_A" not in name} == set()
    taught.update += 1
    assert taught.one_update()["margin"] != 0.0


@METHODS
def test_the_implicit_reward_learns_the_pairs_it_is_shown(votes, tmp_path, method):
    changes = {"pairs_per_update": 6, "micro_batch": 6, "beta": 100.0, "optim": {"lr": 3e-4}}
    taught = trainer(tmp_path, votes, watched=True, **method | changes)
    assert float(preferred(taught.held_out_margins()).mean()) == 0.5
    for _ in range(16):
        taught.one_update()
        taught.update += 1
    margins = taught.held_out_margins()
    assert float(preferred(margins).mean()) == 1.0
    assert float(margins.mean()) > 0.1


def test_the_reference_stays_the_parent(votes, tmp_path):
    for method in (FULL, LORA):
        taught = trainer(tmp_path, votes, **method)
        _, eps, levels = next(taught.batches())
        conditions = taught.model.encode_text(["a cross"] * len(levels))

        def velocity(taught=taught, eps=eps, levels=levels, conditions=conditions) -> torch.Tensor:
            with torch.no_grad(), taught.as_reference() as reference:
                return reference.velocity(eps, levels, conditions)

        before = velocity()
        taught.one_update()
        assert torch.equal(velocity(), before)
        assert not torch.equal(taught.model.velocity(eps, levels, conditions), before)


def test_winner_and_loser_share_noise_and_level_and_no_two_places_do(votes, tmp_path):
    taught = trainer(tmp_path, votes)
    batches = list(taught.batches())
    assert [len(pairs) for pairs, _, _ in batches] == [2, 2]
    eps, levels = torch.cat([b[1] for b in batches]), torch.cat([b[2] for b in batches])
    assert len({float(level) for level in levels}) == 4
    assert len({float(noise.sum()) for noise in eps}) == 4
    again = list(taught.batches())
    assert all(torch.equal(a[1], b[1]) for a, b in zip(batches, again, strict=True))
    taught.update += 1
    assert not torch.equal(next(taught.batches())[1], batches[0][1])


def test_votes_on_a_pair_are_weighed_and_their_sign_names_the_winner(pairs):
    one, two, three, four, *_ = pairs
    given = [
        *(vote(*one, verdict, rater=rater) for rater, verdict in zip("abc", ("bad", "bad", "good"), strict=True)),
        vote(*two, "good", "visual"), vote(*two, "bad", "motion"), vote(*two, "bad", "text"),
        vote(*three, "good", rater="a"), vote(*three, "bad", rater="b"),
        vote(*four, "good"), vote(*four, "bad", kind="gold"), vote(*four, "bad", kind="repeat"),
    ]  # fmt: skip
    weights = {"overall": 1.0, "visual": 0.3, "motion": 0.1, "text": 0.2}
    found = {pair.id: pair for pair in preferences(given, weights, BATTERY, 0.0).training}
    assert (found[one[0]].winner, found[one[0]].strength) == (one[2][1], pytest.approx(1 / 3))
    assert found[two[0]].strength == 0.0  # 0.3 - 0.1 - 0.2, but for the last bit
    assert (found[three[0]].decided, found[four[0]].winner) == (False, four[2][0])
    only = preferences(given, {"visual": 1.0, "overall": 1.0}, BATTERY, 0.0)
    assert {pair.id: pair.winner for pair in only.training}[two[0]] == two[2][0]


def test_ties_are_learned_from_by_the_likelihood_of_their_share(votes, tmp_path):
    taught = trainer(tmp_path, votes, pairs_per_update=6)
    assert taught.chosen.ties == 1
    assert taught.k == pytest.approx((1 + 1 / 6) / (1 - 1 / 6))
    first = taught.one_update()["loss"]  # all six pairs once: of each, the share of its kind is the probability
    assert first == pytest.approx(-(5 * math.log(5 / 12) + math.log(1 / 6)) / 6, rel=1e-6)


def test_held_out_prompts_are_never_learned_from(votes):
    found = preferences(votes, {"overall": 1.0}, BATTERY, 0.3)
    apart = {pair.prompt for pair in found.held_out}
    assert apart
    assert not apart & {pair.prompt for pair in found.training}


def test_the_report_reads_what_was_learned_from(one_rank):
    figures = json.loads((one_rank["full"] / "dpo" / "extra.json").read_text())["figures"]
    said = {figure["label"]: figure["value"] for figure in figures}
    assert said["Votes, simulated raters"] == 6
    assert said["Pairs learned from"] == 4
    assert said["Accuracy of the implicit reward on 2 held-out pairs"] in (0.0, 0.5, 1.0)


def refused(folder: Path, given, **changes) -> str:
    with pytest.raises(ReelignError) as error:
        run_dpo(context(folder), config(**changes), given)
    assert not (folder / "dpo").exists()
    return str(error.value)


def test_a_missing_clip_is_named_before_anything_is_trained(votes, tmp_path):
    gone = replace(votes[1], b=replace(votes[1].b, clip=str(tmp_path / "gone.mp4")))
    assert "gone.mp4" in refused(tmp_path, [votes[0], gone, *votes[2:]])


def test_too_little_to_learn_from_is_refused_with_the_counts(votes, tmp_path):
    said = refused(tmp_path, votes[4:], held_out=0.0)
    assert "there are 1 decided pairs to learn from" in said
    assert "1 are ties" in said


def test_votes_on_other_axes_are_not_enough(votes, tmp_path):
    assert "plain one on motion" in refused(tmp_path, votes, axes={"motion": 1})


def test_prompts_of_the_battery_are_left_out_and_alone_are_refused(pairs, votes, tmp_path):
    asked = [task.prompt for split in ("validation", "test") for task in tasks(BATTERY, split)]
    of_battery = [vote(f"b{i}", prompt, pairs[0][2], "good") for i, prompt in enumerate(asked)]
    assert "prompts of the battery" in refused(tmp_path, of_battery)
    found = preferences([*votes, *of_battery], {"overall": 1.0}, BATTERY, 0.0)
    assert found.of_battery == len(asked)
    assert {pair.prompt for pair in found.training} == {given.prompt for given in votes}


def test_a_pair_whose_votes_name_other_clips_is_refused(votes, tmp_path):
    assert "different clips" in refused(tmp_path, [*votes, replace(votes[0], rater="b", a=votes[0].b)])


def test_a_clip_of_another_size_is_refused_by_name(votes, tmp_path):
    frames = torch.zeros(9, 32, 32, 3, dtype=torch.uint8).numpy()
    write_clip(tmp_path / "short.mp4", frames, 8)
    short = replace(votes[0], a=replace(votes[0].a, clip=str(tmp_path / "short.mp4")))
    assert "short.mp4 has 9x32x32" in refused(tmp_path, [short, *votes[1:]])


def test_pairs_that_do_not_divide_over_the_ranks_are_refused(votes, tmp_path):
    recipe, place = config(pairs_per_update=3), context(tmp_path, World(0, 2, torch.device("cpu"), None))
    chosen = preferences(votes, recipe.axes, BATTERY, 0.0)
    with pytest.raises(ReelignError, match=r"dpo.pairs_per_update=3 does not divide over 2 ranks"):
        Trainer(load_model("miniature", device="cpu"), chosen, [], place, recipe)


@pytest.mark.parametrize(
    "setting", [{"axes": {}}, {"axes": {"beauty": 1}}, {"axes": {AXES[0]: 0}}, {"beta": 0}, {"held_out": 1}, {"bta": 1}]
)
def test_odd_settings_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        config(**setting)
