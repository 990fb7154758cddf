"""What the doctor finds in a recipe with `distill:`, by a rehearsal of one update of each part on the miniature."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from command import DEMO, on_ranks, reelign
from diagnosis import complaints, diagnosis
from reelign.doctor import Finding
from reelign.doctor.distill_cost import an_update, count
from reelign.doctor.distill_memory import need_of
from reelign.doctor.distill_rehearsal import Trainer, at_rest, cache_error, rehearsing
from reelign.doctor.rehearsal import context_in
from reelign.errors import ReelignError
from reelign.models.kv_cache import CausalConfig, KVCache
from reelign.models.load import MINIATURE, load_model
from reelign.recipe import Recipe, load_recipe
from reelign.stages.distill import Matching, models_of
from reelign.stages.distill_recipe import PARTS
from reelign.train.parallel import World
from tiny_wan import tiny_wan

TAUGHT = {"batch_size": 4, "micro_batch": 2, "validate_every": 2, "save_every": 1}
MATCH = {**TAUGHT, "updates": 4, "critic_updates": 2, "optim": {"lr": 1e-4, "betas": [0.0, 0.99]}}
SMALL = {
    "prompts": [{"kind": "miniature", "count": 6}],
    "steps": 2,
    "shift": 3.0,
    "unguided": {**TAUGHT, "updates": 3},
    "few_step": MATCH,
    "causal": {"block": 1, "window": 4, "sinks": 1},
    "initialise": {**TAUGHT, "updates": 3, "trajectories": 6},
    "self_forcing": MATCH,
}
READ = ["prompts", "teacher", "steps", "causal", "budget", "trajectories"]
REHEARSED = [
    *[f"unguided.{line}" for line in ("update", "gradient", "ranks")],
    *[f"few_step.{line}" for line in ("start", "update", "gradient", "ranks")],
    *[f"initialise.{line}" for line in ("update", "gradient", "ranks")],
    *[f"self_forcing.{line}" for line in ("start", "update", "gradient", "ranks")],
]
ALONE = World(0, 1, torch.device("cpu"), None)


def overrides(*more: str) -> list[str]:
    small = [
        "curate=null",
        "sft=null",
        "votes=null",
        "reward=null",
        "rlhf=null",
        "enhance=null",
        "sampler.steps=4",
        "battery.count=2",
    ]
    return [*small, "battery.validation_count=3", f"distill={json.dumps(SMALL)}", *more]


def recipe(*more: str) -> Recipe:
    return load_recipe(DEMO, overrides(*more))


def findings(*more: str) -> dict[str, Finding]:
    return diagnosis(recipe(*more))


def failed(*more: str) -> dict[str, str]:
    return complaints(recipe(*more))


def trainer(folder, planned: Recipe, part: str) -> Trainer:
    assert planned.distill is not None
    context = context_in(folder / "distill", planned, ALONE)
    base, teacher = models_of(context, planned.distill)
    return rehearsing(part, base, teacher, planned.distill, context)


def test_a_sound_recipe_passes_every_finding_and_nothing_is_written(tmp_path):
    found = findings(f"runs={tmp_path}/runs")
    assert [finding for finding in found.values() if not finding.passed] == []
    own = [f"distill.{line}" for line in (*READ, "memory", "disk", "rehearsal", *REHEARSED, "cache", "cost")]
    assert list(found) == ["device", "model", "battery size", "sampler", "shards", *own, "disk"]
    said = {check.removeprefix("distill."): finding.sentence for check, finding in found.items()}
    assert said["prompts"] == "6 prompts."
    assert said["teacher"] == (
        "the run's own model; the student takes over guidance of 2, and is then matched with scores guided at 2."
    )
    assert said["steps"] == "the student takes 2 steps at the levels 1.000, 0.750."
    assert "5 blocks of 1 latent frame; the last one sees 4 frames of the past" in said["causal"]
    assert "1 sinks stay in sight" in said["causal"]
    assert said["budget"].startswith(
        "unguided: 3 updates of 4 clips, 1 ranks x 2 passes x 2; "
        "few_step: 4 updates of 4 clips, 1 ranks x 2 passes x 2, 2 of the critic for each;"
    )
    assert said["trajectories"].endswith("the few-step student's; each is seen 2 times.")
    for part in PARTS:
        assert said[f"{part}.update"].startswith("one update of 2 clips in ")
        assert said[f"{part}.gradient"].startswith("reaches all ")
        assert "under torchrun" in said[f"{part}.ranks"]
    assert "up to " in said["cache"]
    assert " hours here (unguided " in said["cost"]
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_covered_and_those_whose_gradient_comes_second_are_told_apart():
    more = [f"distill.{part}.method=lora" for part in PARTS]
    found = findings(*more, *[f"distill.{part}.lora.targets=[to_q, ffn.net.2]" for part in PARTS])
    assert [finding for finding in found.values() if not finding.passed] == []
    assert found["distill.few_step.lora"].sentence == "12 modules carry an adapter: to_q 8, ffn.net.2 4."
    said = found["distill.few_step.gradient"].sentence
    assert said.startswith(
        "reaches all 48 trained tensors of student and critic, the 24 lora_A after the second update"
    )


@pytest.mark.parametrize(
    ("override", "check", "said"),
    [
        (
            "distill.causal.block=3",
            "causal",
            "distill.causal.block: blocks of 3 latent frames do not divide a clip of 5",
        ),
        ("distill.causal={block: 1, window: 1}", "causal", "nothing of the past: set it to 2 or more"),
        ("distill.prompts=[{kind: list, path: none.txt}]", "prompts", "cannot read the prompt list"),
        ("distill.teacher=/no/such", "teacher", "there is no model '/no/such'"),
        ("distill.few_step={method: lora, lora: {targets: [to_qq]}}", "few_step.lora", "matches no linear layer"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_computed(override, check, said):
    found = findings(override)
    assert [name for name, finding in found.items() if not finding.passed] == [f"distill.{check}"]
    assert said in found[f"distill.{check}"].sentence
    assert found["distill.rehearsal"].sentence == "left out until the lines above pass."


def test_a_batch_that_does_not_divide_over_the_ranks_is_answered_with_one_that_does(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    said = failed()
    assert list(said) == ["distill.budget"]
    assert said["distill.budget"] == "distill.unguided.batch_size=4 does not divide over 3 ranks: use 3."


def test_a_teacher_with_other_latents_or_another_text_encoder_is_refused(tmp_path):
    tiny_wan(tmp_path / "student")
    tiny_wan(tmp_path / "5b", "2.2-5b")
    said = failed(f"model={tmp_path / 'student'}", f"distill.teacher={tmp_path / '5b'}")
    assert list(said) == ["distill.teacher"]
    assert "teacher and student must share an autoencoder" in said["distill.teacher"]
    wide = load_model(tmp_path / "student", device="cpu")
    network = WanTransformer3DModel.from_config({**wide.pipeline.transformer.config, "text_dim": 48})
    wide.pipeline.register_modules(transformer=network)
    wide.save(tmp_path / "wide")
    said = failed(f"model={tmp_path / 'student'}", f"distill.teacher={tmp_path / 'wide'}")
    assert list(said) == ["distill.teacher"]
    assert "reads text of width 48" in said["distill.teacher"]


def test_a_model_that_is_distilled_already_is_refused(tmp_path):
    model = load_model(MINIATURE, device="cpu")
    model.own_sampler = {"steps": 4, "solver": "renoise"}
    model.save(tmp_path / "model")
    said = failed(f"model={tmp_path / 'model'}")
    assert list(said) == ["distill.teacher"]
    assert "is distilled already" in said["distill.teacher"]


def test_weights_that_the_network_does_not_use_are_named(tmp_path):
    """A network with an image's embedding, which text to video never feeds."""
    model = load_model(MINIATURE, device="cpu")
    old = model.pipeline.transformer
    new = WanTransformer3DModel.from_config({**old.config, "image_dim": 8})
    new.load_state_dict(old.state_dict(), strict=False)
    model.pipeline.register_modules(transformer=new)
    model.save(tmp_path / "model")
    said = failed(f"model={tmp_path / 'model'}")
    assert list(said) == [f"distill.{part}.gradient" for part in PARTS]
    assert "no gradient reaches 16 of 262 trained tensors of student and critic" in said["distill.few_step.gradient"]
    assert "image_embedder" in said["distill.few_step.gradient"]


def test_a_loss_that_is_not_finite_is_a_finding_and_the_rest_is_still_looked_at(tmp_path):
    model = load_model(MINIATURE, device="cpu")
    with torch.no_grad():
        model.pipeline.transformer.proj_out.bias[0] = math.nan
    model.save(tmp_path / "model")
    said = failed(
        f"model={tmp_path / 'model'}", "distill.causal=null", "distill.initialise=null", "distill.self_forcing=null"
    )
    assert "distill.few_step.update" in said
    assert "nan" in said["distill.few_step.update"]


def test_l_a_critic_that_is_not_the_teacher_is_found_at_rest(tmp_path):
    own = trainer(tmp_path, recipe(), "few_step")
    assert isinstance(own, Matching)
    assert "they are 0.0e+00 apart" in at_rest(own)
    assert own.guidance.guidance_scale == 2  # as it was
    assert all(parameter.grad is None for parameter in own.trainee.parameters.values())
    with torch.no_grad():
        own.critic.pipeline.transformer.proj_out.weight.add_(1e-2)
    with pytest.raises(ReelignError, match="the student would follow that error"):
        at_rest(own)


@pytest.mark.parametrize("causal", [CausalConfig(block=1), CausalConfig(block=1, window=3, sinks=1)])
def test_k_the_cache_is_checked_against_the_full_pass_and_one_that_forgets_is_found(monkeypatch, causal):
    """Two sums in another order differ by float32's rounding; a student that forgets a frame differs by far more."""
    model = load_model(MINIATURE, device="cpu")
    model.make_causal(causal)
    assert model.causal is not None
    clean, noise = torch.randn(1, 16, 4, 8, 8), torch.randn(1, 16, 1, 8, 8)
    conditions = model.encode_text(["a large red circle moves left"])
    assert cache_error(model, clean, noise, 0.75, conditions) < 1e-5
    monkeypatch.setattr(KVCache, "extended", lambda cache, layers, config: replace(cache, end=cache.end + config.block))
    assert cache_error(model, clean, noise, 0.75, conditions) > 1e-3


@pytest.mark.parametrize("part", ["unguided", "few_step", "self_forcing"])
def test_evaluations_are_counted_as_they_are_spent(tmp_path, part):
    """With one step there is one exit, and the mean is what is spent."""
    changes = {
        "unguided": ("distill.unguided.guidance_scale=3.0", "sampler.guidance_interval=[0.5, 1.0]"),
    }.get(part, ("distill.guidance_scale=2.0", "distill.guidance_scale=1.0"))
    for change in changes:
        planned = recipe("distill.steps=1", change)
        assert planned.distill is not None
        own = trainer(tmp_path, planned, part)
        wanted = an_update(part, own.config, planned, planned.distill, frames=5)
        assert own.one_update()["nfe"] == wanted.forward, change


def test_a_whole_run_is_counted():
    """By hand: B=4 clips, 4 updates of 2 + 1 turns; clips are left after 1.5 of 2 steps in the mean."""
    planned = recipe()
    assert planned.distill is not None
    found = count(planned, planned.distill, load_model(MINIATURE, device="cpu"))
    assert (found["few_step"].forward, found["few_step"].backward) == (4 * 4 * (3 * 1.5 + 2 + 1 + 2), 4 * 4 * 3)
    assert found["self_forcing"].forward == 4 * 4 * (3 * 2.5 + 2 + 1 + 2)
    assert found["initialise"].forward == 3 * round(4 * (1 + 4 / 5)) + 6 * 2  # 4 of 5 blocks are remembered
    assert (found["unguided"].forward, found["unguided"].backward) == (3 * 4 * (1.5 + 2), 3 * 4)
    assert found["unguided"].judged == 2 * 3 * 2 + 3 * 4 * 2  # after 2 and 3; the guided teacher once
    assert found["few_step"].judged == 3 * 3 * 2  # before, after 2 and 4
    assert found["self_forcing"].judged == math.ceil(3 * 3 * (2 + 4 / 5))


@pytest.mark.parametrize("window", ["null", "3"])
def test_memory_holds_two_training_states_and_every_block_of_the_past_once(window):
    planned = recipe(f"distill.causal={{block: 1, window: {window}}}")
    assert planned.distill is not None
    model = load_model(MINIATURE, device="cpu")
    few, causal = (
        need_of(part, getattr(planned.distill, part), planned, planned.distill, model, 0.0)
        for part in ("few_step", "self_forcing")
    )
    weights = sum(p.numel() for p in model.pipeline.transformer.parameters())
    assert few.states == weights * (16 + 12)  # gradients, two moments, and the student's average
    network = model.pipeline.transformer.config
    frame = 2 * network.num_layers * network.num_attention_heads * network.attention_head_dim * 4 * 16
    assert (few.past, causal.past) == (0, 2 * 4 * frame)  # 2 clips; 4 x 4 tokens a frame


def test_what_does_not_fit_is_not_rehearsed_but_counted():
    big = {**MATCH, "batch_size": 64_000, "micro_batch": 64_000}
    found = findings(f"distill.self_forcing={json.dumps(big)}", "distill.causal={block: 1}")
    assert [check for check, finding in found.items() if not finding.passed] == ["distill.memory"]
    assert "turn on distill.self_forcing.gradient_checkpointing, use" in found["distill.memory"].sentence
    assert "left out: it would not fit" in found["distill.rehearsal"].sentence
    assert "hours" not in found["distill.cost"].sentence


def test_the_command_prints_each_line_once_on_two_ranks(tmp_path):
    done = on_ranks(2, "doctor", DEMO, *overrides("name=two", f"runs={tmp_path / 'runs'}"))
    assert done.returncode == 0, done.stderr + done.stdout
    said = " ".join(done.stdout.split())
    assert said.count("pass distill.cost:") == 1
    assert said.count("2 ranks hold equal weights after one update") == 4
    assert "few_step on 4 clips" in said
    assert not (tmp_path / "runs").exists()


def test_the_command_fails_with_the_line_that_fails(tmp_path):
    done = reelign("doctor", DEMO, *overrides("distill.causal.block=3", f"runs={tmp_path}"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "FAIL distill.causal: distill.causal.block: blocks of 3" in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_a_size_that_does_not_fit_is_a_finding_also_where_no_part_asks_for_the_frames():
    """A few-step student alone: nothing of its recipe is looked at per block, and its cost needs the size."""
    alone = ("distill.causal=null", "distill.initialise=null", "distill.self_forcing=null")
    said = failed(*alone, "battery.frames=16")
    assert list(said) == ["battery size"]
    assert "use 13 or 17" in said["battery size"]
