"""The stage as a user runs it: killed, on two ranks, full and LoRA; and the mathematics that a run hides."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checkpoints import newest_weights
from command import DEMO, TINY, on_ranks, reelign
from forks import Fork
from miniatures import thin_miniature
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.models.base import VideoModel, take
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.noise import initial_noise
from reelign.sampling.sample import SampleConfig, sample
from reelign.stages.asked import build_prompts
from reelign.stages.context import StageContext
from reelign.stages.distill import Matching, load_teacher, run_part, student_of, trainer_of
from reelign.stages.distill_recipe import PARTS, DistillConfig
from reelign.stages.student import kept, student_clip
from reelign.stages.unguided import Unguided
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World
from tiny_wan import tiny_wan

TAUGHT = {"batch_size": 4, "micro_batch": 2, "validate_every": 2, "save_every": 2, "patience": None}
MATCH = {
    **TAUGHT,
    "updates": 4,
    "critic_updates": 2,
    "optim": {"lr": 1e-3, "betas": [0.0, 0.99]},
    "critic": {"lr": 1e-3, "betas": [0.0, 0.99]},
    "alarms_stop": None,
}
SMALL = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "steps": 2,
    "shift": 3.0,
    "unguided": {**TAUGHT, "updates": 4, "optim": {"lr": 1e-3}},
    "few_step": MATCH,
    "causal": {"block": 1, "window": 4, "sinks": 1},
    "initialise": {**TAUGHT, "updates": 4, "trajectories": 6, "optim": {"lr": 1e-3}},
    "self_forcing": MATCH,
}


def arguments(folder: Path, *more: str) -> list[str | Path]:
    return ["run", DEMO, *TINY, "sft=null", f"distill={json.dumps(SMALL)}", f"runs={folder}", "name=r", *more]


def place(folder: Path, part: str) -> Path:
    return folder / "r" / "distill" / part.replace("_", "-")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{part}/{name}": value for part in PARTS for name, value in newest_weights(place(folder, part)).items()}


def rows(folder: Path, part: str) -> dict[int, dict[str, float]]:
    lines = (place(folder, part) / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: row for row in map(json.loads, lines) if "grad_norm" in row}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The uninterrupted run on one rank."""
    folder = tmp_path_factory.mktemp("one")
    done = reelign(*arguments(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return folder


def test_every_part_trains_and_leaves_an_artifact_the_last_one_that_of_the_stage(one_rank):
    for part in PARTS:
        assert sorted(rows(one_rank, part)) == [1, 2, 3, 4]
    final = load_model(one_rank / "r" / "distill", device="cpu")
    assert final.causal is not None
    assert final.causal.config == CausalConfig(block=1, window=4, sinks=1)
    assert final.own_sampler == DistillConfig.model_validate(SMALL).sampler.model_dump(mode="json")
    for part in ("unguided", "few_step"):
        seeing_all = load_model(place(one_rank, part) / "model", device="cpu")
        assert seeing_all.causal is None
        assert seeing_all.own_sampler == final.own_sampler
    assert load_model(place(one_rank, "initialise") / "model", device="cpu").causal is not None
    assert len(list((place(one_rank, "initialise") / "trajectories").glob("*.safetensors"))) == 6
    card = json.loads((one_rank / "r" / "distill" / "model" / "card.json").read_text())
    assert (card["stage"], card["parent"]) == ("distill", "base")


def test_the_page_and_the_summary_say_what_it_gives_for_its_cost(one_rank):
    summary = json.loads((one_rank / "r" / "summary.json").read_text())
    stage = summary["stages"][-1]
    assert stage["gsb"].keys() == {"text", "visual", "motion", "overall"}
    names = [row["name"] for row in stage["bargain"]]
    assert names == [
        "teacher",
        "student that sees all frames",
        "student",
        "teacher, 1 guided steps",
        "teacher, 3 steps without guidance",
    ]
    price = {row["name"]: row["nfe"] for row in stage["bargain"]}
    assert price["teacher"] == 6
    assert price["student that sees all frames"] == 2
    assert price["student"] == pytest.approx(2.8)
    assert all(row["seconds"] > 0 and row["first_frame"] > 0 for row in stage["bargain"])
    assert len(stage["drift"]["parts"]) == 4
    assert (one_rank / "r" / "distill" / "samples" / "long.mp4").stat().st_size > 0
    assert "student that sees all frames" in (one_rank / "r" / "report" / "index.html").read_text()


def test_o_a_run_that_is_killed_in_every_part_ends_in_the_same_bits(one_rank, tmp_path):
    for part, update in (("unguided", 2), ("few_step", 3), ("initialise", 1), ("self_forcing", 2)):
        log = place(tmp_path, part) / "metrics.jsonl"
        at_work = Fork(tmp_path, *arguments(tmp_path))
        at_work.kill_when(lambda part=part, update=update, log=log: log.exists() and update in rows(tmp_path, part))
    Fork(tmp_path, *arguments(tmp_path)).kill_when((tmp_path / "r" / "distill" / "stage.json").exists)
    for name in PARTS:
        wanted, found = newest_weights(place(one_rank, name)), newest_weights(place(tmp_path, name))
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        assert rows(tmp_path, name) == rows(one_rank, name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_n_two_ranks_learn_what_one_rank_learns(one_rank, tmp_path, method):
    lora = ("method=lora", "lora.rank=4", "updates=2")
    more = [f"distill.{part}.{change}" for part in PARTS for change in lora]
    alone = one_rank
    if method == "lora":
        alone = tmp_path / "alone"
        done = reelign(*arguments(alone, *more), CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
    done = on_ranks(2, *arguments(tmp_path / "two", *(more if method == "lora" else ())), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    for part in PARTS:
        wanted, found = rows(alone, part), rows(tmp_path / "two", part)
        assert wanted.keys() == found.keys()
        for update, row in wanted.items():
            for name in row.keys() & {"critic_loss", "distance", "loss", "grad_norm", "nfe"}:
                assert found[update][name] == pytest.approx(row[name], rel=5e-3, abs=1e-6), (part, update, name)
    one, two = weights(alone), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=4e-3)


def context(folder: Path, guidance: float = 2.0) -> StageContext:
    return StageContext(
        folder=folder / "part",
        parent=str(thin_miniature()),
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SampleConfig(steps=4, guidance_scale=guidance),
        battery=BatteryConfig(count=2, validation_count=2),
        world=World(0, 1, torch.device("cpu"), None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=Interrupt(),
    )


def matching(folder: Path, part: str = "few_step", guidance: float = 2.0, **changes) -> Matching:
    recipe = DistillConfig.model_validate(SMALL | changes)
    base = load_model(thin_miniature(), device="cpu")
    student = student_of(base, str(thin_miniature()), recipe, causal=part == "self_forcing")
    return Matching(student, base, base, build_prompts(recipe.prompts), context(folder, guidance), recipe, part)


@pytest.mark.parametrize("part", ["few_step", "self_forcing"])
def test_l_the_student_stays_where_it_is_while_the_critic_is_the_teacher(tmp_path, part):
    """Both start as the parent; without guidance they predict the same, and there is nothing to follow."""
    alike = matching(tmp_path / "a", part, guidance=1.0)
    alike.student_step()
    assert all(bool((p.grad == 0).all()) for p in alike.trainee.parameters.values() if p.grad is not None)
    guided = matching(tmp_path / "b", part, guidance=2.0)
    guided.student_step()
    assert any(float(p.grad.abs().max()) > 0 for p in guided.trainee.parameters.values() if p.grad is not None)


@pytest.mark.parametrize("part", ["few_step", "self_forcing"])
def test_critic_and_student_learn_and_the_teacher_does_not(tmp_path, part):
    taught = matching(tmp_path, part)
    networks = {"teacher": taught.teacher, "critic": taught.critic, "student": taught.student}
    before = {n: {k: v.clone() for k, v in m.pipeline.transformer.state_dict().items()} for n, m in networks.items()}
    taught.one_update()
    changed = {
        name: any(not torch.equal(before[name][k], v) for k, v in model.pipeline.transformer.state_dict().items())
        for name, model in networks.items()
    }
    assert changed == {"teacher": False, "critic": True, "student": True}
    encoders = {id(model.pipeline.text_encoder) for model in networks.values()}
    assert len(encoders) == 1


def unguided(folder: Path, **changes) -> Unguided:
    recipe = DistillConfig.model_validate(SMALL | {"unguided": SMALL["unguided"] | changes})
    base = load_model(thin_miniature(), device="cpu")
    taught = trainer_of("unguided", base, base, recipe, context(folder))
    assert isinstance(taught, Unguided)
    return taught


def test_an_unguided_student_is_moved_by_what_guidance_adds(tmp_path):
    """It begins as the teacher, so before its first update the loss at the first step is, in velocities,
    ((w - 1) (v - v_neg))^2."""
    taught = unguided(tmp_path, guidance_scale=3.0)
    noise = initial_noise([(0, "clip", 0), (0, "clip", 1)], taught.student.latent_shape(17, 32, 32))
    conditions = taught.student.encode_text(["a large red circle moves left", "a small blue ring"])
    loss, nfe = taught.loss(conditions, noise, exit_step=0)
    with torch.no_grad():
        plain, away = (
            taught.teacher.velocity(noise, torch.ones(2), said)
            for said in (conditions, taught.teacher.encode_text(["", ""]))
        )
    assert loss.item() == pytest.approx((2 * (plain - away)).square().mean().item(), rel=1e-4)
    assert nfe == 2 * (1 + 2)
    loss.backward()
    assert all(float(p.grad.abs().max()) > 0 for p in taught.trainee.parameters.values())
    assert all(p.grad is None for p in taught.teacher.pipeline.transformer.parameters())


def test_an_unguided_student_takes_over_the_interval_of_guidance_too(tmp_path):
    """Levels of two steps at shift 3 are 1 and 0.75: only the second is guided, and there the teacher takes two."""
    taught = unguided(tmp_path)
    taught.guidance = taught.guidance.model_copy(update={"guidance_interval": (0.0, 0.8)})
    noise = initial_noise([(0, "clip", 0)], taught.student.latent_shape(17, 32, 32))
    conditions = taught.student.encode_text(["a large red circle moves left"])
    first, second = (taught.loss(conditions, noise, step) for step in range(2))
    assert (first[0].item(), first[1]) == (pytest.approx(0, abs=1e-10), 1 + 1)
    assert second[0].item() > 1e-5
    assert second[1] == 2 + 2
    assert taught.guidance.evaluations == 3


@pytest.mark.parametrize(
    ("without", "rows"),
    [
        (("few_step", "causal", "initialise", "self_forcing"), ["teacher", "student"]),
        (("causal", "initialise", "self_forcing"), ["teacher", "student"]),
        (("few_step",), ["teacher", "student that sees all frames", "student"]),
    ],
)
def test_parts_may_be_left_out_and_only_a_stream_is_compared_with_what_sees_all_frames(tmp_path, without, rows):
    short = {part: {**SMALL[part], "updates": 1} for part in PARTS}
    chain = json.dumps(SMALL | short | dict.fromkeys(without))
    done = reelign(*arguments(tmp_path, f"distill={chain}"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    stage = json.loads((tmp_path / "r" / "summary.json").read_text())["stages"][-1]
    assert [row["name"] for row in stage["bargain"]][: len(rows)] == rows
    assert all(row["name"].startswith("teacher,") for row in stage["bargain"][len(rows) :])


def test_an_unguided_student_learns_what_the_guided_teacher_predicts(tmp_path):
    """On noise and prompts that it was not taught on it comes closer, at the first step and where that leads."""
    taught = unguided(tmp_path, guidance_scale=6.0, updates=20, optim={"lr": 3e-4, "schedule": "cosine"})
    noise = initial_noise([(7, "held out", place) for place in range(8)], taught.student.latent_shape(17, 32, 32))
    conditions = taught.student.encode_text(["a large red circle moves left", "a small blue ring"] * 4)

    def losses() -> list[float]:
        with torch.no_grad():
            return [taught.loss(conditions, noise, step)[0].item() for step in range(2)]

    before = losses()
    for update in range(20):
        taught.update = update
        taught.one_update()
    assert all(after < 0.85 * first for after, first in zip(losses(), before, strict=True))


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("part", ["few_step", "self_forcing"])
def test_what_carries_no_gradient_is_in_slices_what_it_is_in_one(two_threads, tmp_path, part):
    """The clips of the critic and both scores are made in slices of eight rows."""
    taught = matching(tmp_path, part, 2.0, **{part: MATCH | {"batch_size": 11, "micro_batch": 11}})
    [(conditions, noise, eps, levels, _)] = taught.drawn(0)
    made, spent = taught.rolled_out(conditions, noise, exit_step=1)
    with torch.no_grad():
        whole, evaluations = student_clip(taught.student, conditions, noise, taught.sampler, 1)
        parts = [taught.scores(eps[rows], levels[rows], take(conditions, rows)) for rows in (slice(0, 5), slice(5, 11))]
    assert torch.allclose(made, whole, atol=1e-4)
    assert spent == evaluations
    real, fake, nfe = taught.scores(eps, levels, conditions)
    assert torch.allclose(real, torch.cat([part[0] for part in parts]), atol=1e-4)
    assert torch.allclose(fake, torch.cat([part[1] for part in parts]), atol=1e-4)
    assert nfe == sum(part[2] for part in parts) == 3 * 11
    assert not any(found.requires_grad for found in (made, real, fake))


@pytest.mark.parametrize(
    "causal", [None, CausalConfig(block=1), CausalConfig(block=5), CausalConfig(block=1, memory="last_step")]
)
def test_the_last_step_of_a_training_clip_is_what_the_sampler_gives(causal):
    """Training and deployment make their clips alike: left at the last step, a clip is the sampled one."""
    model = load_model(thin_miniature(), device="cpu")
    if causal is not None:
        model.make_causal(causal)
    sampler = SampleConfig(steps=3, shift=3.0, solver="renoise", guidance_scale=1.0)
    noise = initial_noise([(0, "clip", 0), (0, "clip", 1)], model.latent_shape(17, 32, 32))
    conditions = model.encode_text(["a large red circle moves left", "a small blue ring"])
    with torch.no_grad():
        made, nfe = student_clip(model, conditions, noise, sampler, exit_step=2)
    torch.testing.assert_close(made, sample(model, conditions, noise, sampler).latents, rtol=0, atol=1e-5)
    assert nfe == 2 * (3 if causal is None else 4)


def calls_of(monkeypatch, model: VideoModel) -> list[tuple[torch.Tensor, float, bool]]:
    """Latents and noise level of each call of the network from now on, and whether a gradient goes through it."""
    calls, velocity = [], type(model).velocity

    def watched(self, latents, sigma, conditions):
        calls.append((latents, float(sigma[0]), torch.is_grad_enabled()))
        return velocity(self, latents, sigma, conditions)

    monkeypatch.setattr(type(model), "velocity", watched)
    return calls


@pytest.mark.parametrize("memory", ["finished", "last_step"])
@pytest.mark.parametrize("exit_step", [0, 1])
def test_the_gradient_goes_through_the_call_at_the_exit_step_alone(monkeypatch, exit_step, memory):
    model = load_model(thin_miniature(), device="cpu")
    model.make_causal(CausalConfig(block=1, memory=memory))
    model.pipeline.transformer.requires_grad_(True)
    calls = calls_of(monkeypatch, model)
    sampler = SampleConfig(steps=2, shift=3.0, solver="renoise", guidance_scale=1.0)
    noise = initial_noise([(0, "clip", 0)], model.latent_shape(17, 32, 32))
    made, _ = student_clip(model, model.encode_text(["a cross"]), noise, sampler, exit_step)
    assert made.requires_grad
    levels = [round(float(level), 3) for level in sampler.grid[: exit_step + 1]]
    block = [(level, level == levels[-1]) for level in levels]
    remembered = 0.0 if memory == "finished" else round(float(sampler.grid[1]), 3)
    found = [(round(level, 3), graded) for _, level, graded in calls]
    assert found == [*block, (remembered, False)] * 4 + block  # each block, then its memory; not of the last one


@pytest.mark.parametrize("memory", ["finished", "last_step"])
def test_first_weights_are_fitted_with_the_past_as_a_rollout_remembers_it(tmp_path, monkeypatch, memory):
    """Of the trajectory: its end, or where the last step of it began."""
    recipe = DistillConfig.model_validate(SMALL | {"causal": {"block": 1, "memory": memory}})
    base = load_model(thin_miniature(), device="cpu")
    taught = trainer_of("initialise", base, base, recipe, context(tmp_path))
    states = torch.randn(2, 3, *taught.student.latent_shape(17, 32, 32))
    calls = calls_of(monkeypatch, base)
    conditions = taught.student.encode_text(["a cross", "a ring"])
    taught.predicted(states, torch.zeros(2, 5, dtype=torch.long), conditions)
    past, level = (states[:, 2], 0.0) if memory == "finished" else (states[:, 1], float(recipe.sampler.grid[1]))
    assert len(calls) == 9  # five blocks, four of them remembered
    for number, (latents, found, _) in enumerate(calls[1::2]):
        assert torch.equal(latents, past[:, :, number : number + 1])
        assert found == pytest.approx(level)


@pytest.mark.parametrize("teacher", ["few_step", "ode", "consistency"])
def test_the_ledger_of_the_first_causal_weights_holds_every_network_evaluation(tmp_path, teacher):
    """What a hook on the networks counts, in clips: a block is its share of one. Whole numbers by the choice of sizes:
    25 clips of 5 blocks, 4 of which are remembered, are 25 + 20 evaluations."""
    part = {**SMALL["initialise"], "teacher": teacher, "batch_size": 5, "updates": 5, "validate_every": 5}
    recipe = DistillConfig.model_validate(SMALL | {"initialise": part})
    where = context(tmp_path)
    where = replace(where, battery=where.battery.model_copy(update={"validation_count": 5}))
    base, counted = load_model(thin_miniature(), device="cpu"), []

    def count(network, inputs, named, output):
        if isinstance(network, WanTransformer3DModel):
            counted.append(named["hidden_states"].shape[0] * named["hidden_states"].shape[2] / 5)

    hook = register_module_forward_hook(count, with_kwargs=True)
    try:
        run_part(trainer_of("initialise", base, base, recipe, where), tmp_path / "model")
    finally:
        hook.remove()
    rows = {row["phase"]: row for row in where.ledger.read()}
    assert list(rows) == [
        "distill/trajectories",
        "distill/initialise",
        "distill/teacher/validate",
        "distill/initialise/validate",
    ]
    assert sum(row["nfe"] for row in rows.values()) == pytest.approx(sum(counted))
    assert rows["distill/trajectories"]["nfe"] == 6 * 2 * (1 if teacher == "few_step" else 5 * 2)
    assert rows["distill/initialise"]["nfe"] == 45 * (2 if teacher == "consistency" else 1)
    assert rows["distill/teacher/validate"]["nfe"] == 5 * 4 * 2
    assert [row["clips"] for row in rows.values()] == [6, 25, 5, 5]
    assert all(row["seconds"] > 0 for row in rows.values())


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that were made within it and still live."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **kwargs or {})
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self.made[StorageWeakRef(value.untyped_storage())] = value.untyped_storage().nbytes()
        return found

    @property
    def nbytes(self) -> int:
        return sum(size for storage, size in self.made.items() if not storage.expired())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_rollout_keeps_each_block_of_the_past_once_for_all_backward_passes(checkpointing):
    """Eight blocks more keep as much more, whatever came before. If each backward pass kept the past that its block
    saw, the memory would grow with the square of the length: 1.3 and 1.6 times as much for the second eight."""
    model = load_model(thin_miniature(), device="cpu")
    model.make_causal(CausalConfig(block=1))
    network = model.pipeline.transformer
    network.requires_grad_(True)
    if checkpointing:
        network.enable_gradient_checkpointing()
    sampler = SampleConfig(steps=1, shift=3.0, solver="renoise", guidance_scale=1.0)
    conditions = model.encode_text(["a cross"])
    kept = {}
    for frames in (8, 16, 24):
        noise = initial_noise([(0, "clip", 0)], (*model.latent_shape(17, 32, 32)[:1], frames, 8, 8))
        with Alive() as alive:
            clip, _ = student_clip(model, conditions, noise, sampler, exit_step=0)
            kept[frames] = alive.nbytes
        clip.square().sum().backward()
    growth = kept[16] - kept[8], kept[24] - kept[16]
    assert growth[1] == pytest.approx(growth[0], rel=0.01)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("distill.causal.block=3", "block sizes that do: 1, 5"),
        ("distill.causal={block: 5, window: 3}", "a block must see itself"),
        ("distill.causal=null", "give `causal`"),
        (
            f"distill={json.dumps(SMALL | {'steps': 1, 'causal': {'memory': 'last_step'}})}",
            "needs `steps: 2` at least",
        ),
        (
            f"distill={json.dumps(SMALL | {'few_step': None, 'unguided': None})}",
            "needs a student of few steps: `few_step` or `unguided`",
        ),
        ("distill.unguided.guidance_scale=1", "greater than 1"),
        ("sampler.guidance_scale=1", "takes over guidance, and at the student's levels there is none"),
        ("sampler.guidance_interval=[0.0, 0.5]", "look at `sampler.guidance_interval`"),
        ("distill.self_forcing=null", "needs `self_forcing`"),
        ("distill.prompts=[{kind: list, path: none.txt}]", "none.txt"),
        ("distill.self_forcing.critic_update=3", "did you mean `critic_updates`?"),
    ],
)
def test_bad_input_ends_in_one_message(tmp_path, override, said):
    done = reelign(*arguments(tmp_path, override), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    told = " ".join(done.stderr.split())
    assert said in told
    assert "'batch_size'" not in told  # a rule between keys does not print the whole part
    assert "Traceback" not in done.stderr


def test_a_teacher_with_other_latents_is_refused(tmp_path):
    base = load_model(tiny_wan(tmp_path / "a"), device="cpu")
    tiny_wan(tmp_path / "b", "2.2-5b")
    where = context(tmp_path)
    with pytest.raises(ReelignError, match="must share an autoencoder"):
        load_teacher(str(tmp_path / "b"), base, where)


def other_weights(model: VideoModel) -> None:
    torch.manual_seed(1)
    for parameter in model.pipeline.text_encoder.parameters():
        parameter.data.normal_()


def other_width(model: VideoModel) -> None:
    config = {**model.pipeline.transformer.config, "text_dim": 48}
    model.pipeline.register_modules(transformer=WanTransformer3DModel.from_config(config))


def other_words(model: VideoModel) -> None:
    model.pipeline.tokenizer.add_tokens(["circle moves"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "another text encoder than .*: the same prompts are [0-9]+% apart"),
        (other_width, "reads text of width 48, and .* of 32"),
        (other_words, "has another tokenizer"),
    ],
)
def test_a_teacher_that_reads_prompts_otherwise_is_refused(tmp_path, change, said):
    base, other = (load_model(tiny_wan(tmp_path / name), device="cpu") for name in "ab")
    change(other)
    other.save(tmp_path / "c")
    with pytest.raises(ReelignError, match=rf"distill\.teacher: .*{said}.*must share a text encoder.*Take a teacher"):
        load_teacher(str(tmp_path / "c"), base, context(tmp_path))


def test_a_teacher_whose_text_encoder_is_a_copy_in_another_precision_is_taken(tmp_path):
    base, other = (load_model(tiny_wan(tmp_path / name), device="cpu") for name in "ab")
    for parameter in other.pipeline.text_encoder.parameters():
        parameter.data = parameter.data.bfloat16().float()
    other.save(tmp_path / "c")
    assert load_teacher(str(tmp_path / "c"), base, context(tmp_path)).name == str(tmp_path / "c")


def test_the_student_carries_the_enhancer_of_its_parent(one_rank):
    enhancer = one_rank / "r" / "distill" / "model" / "enhancer"
    assert not enhancer.exists()  # its parent has none


def test_what_a_student_has_beyond_its_teacher_does_not_make_up_for_what_it_lost():
    def judged(text: float, motion: float) -> Evaluation:
        return Evaluation({}, ("text", "motion"), (Item("a", "a", 0, {"text": text, "motion": motion}, {}),))

    teacher = judged(0.9, 0.5)
    assert kept(teacher, teacher) == pytest.approx(0.7)
    assert kept(teacher, judged(0.8, 0.9)) == pytest.approx(0.65, abs=1e-3)
    assert kept(teacher, judged(0.85, 0.4)) == pytest.approx(0.625)
    assert kept(teacher, judged(0.95, 0.5)) > kept(teacher, teacher)  # more of it, where nothing was lost


def test_every_part_keeps_the_validation_that_has_most_of_the_teacher(one_rank):
    for part in PARTS:
        lines = map(json.loads, (place(one_rank, part) / "metrics.jsonl").read_text().splitlines())
        wanted = {row["step"]: row["validation/kept"] for row in lines if "validation/kept" in row}
        folders = (place(one_rank, part) / "checkpoints").glob("step-*")
        found = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
        assert all(made["metric"] == wanted[made["step"]] for made in found if made["metric"] is not None)
        assert max(made["metric"] for made in found if made["metric"] is not None) == max(wanted.values())


class _BesideASlowOne(World):
    """A rank whose neighbour has not seen a file that lies there already."""

    def sum(self, value):
        return value + 1


def test_n_a_rank_that_sees_the_teachers_validation_still_joins_those_that_do_not(tmp_path):
    """Whether the teacher is validated is one decision of all ranks; each for itself, one would wait for ever."""
    watch = matching(tmp_path).watch
    first = watch._teacher()
    path = tmp_path / "validation-teacher.json"
    path.write_text("not the teacher's")
    watch.context = replace(watch.context, world=_BesideASlowOne(0, 1, torch.device("cpu"), None))
    assert watch._teacher() == first
