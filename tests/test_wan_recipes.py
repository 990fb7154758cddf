"""The recipes for Wan 2.1-1.3B, examined by the doctor on random weights of the same layout, and run in small."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import trl
import yaml
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, UMT5Config, UMT5EncoderModel

from command import ROOT, on_ranks, reelign
from footage import pan, write
from reelign.data.clip import write_clip
from reelign.data.curate import CurateConfig, curate
from reelign.data.pairs import inverted, write_pairs
from reelign.data.prompts import read_prompts
from reelign.doctor import examine
from reelign.doctor.cost import clips_at_most
from reelign.doctor.distill_cost import count
from reelign.doctor.distill_memory import distill_memory
from reelign.doctor.language import enhance_memory
from reelign.evaluate.battery import BatteryConfig
from reelign.feedback.vote import AXES, Shown, Vote, write_votes
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.recipe import load_recipe
from reelign.sampling.sample import SampleConfig
from tiny_language import tiny_language
from tiny_qwen import tiny_whole
from tiny_wan import tiny_wan

PROMPTS = ROOT / "recipes" / "prompts.txt"
SMALL_BATTERY = (
    f"battery.prompts={PROMPTS}",
    "battery.count=2",
    "battery.validation_count=2",
    "battery.frames=9",
    "battery.height=32",
    "battery.width=48",
)
SMALL = (*SMALL_BATTERY, "sampler.steps=2", "sft.batch_size=2", "sft.accumulate=1")
SMALL_RL = (
    *SMALL_BATTERY,
    "sampler.steps=3",
    f"rlhf.prompts=[{{kind: list, path: {PROMPTS}}}]",
    "rlhf.rewards=[{kind: pixels, weights: {steadiness: 1.0, sharpness: 1.0}}]",
    "rlhf.updates=2",
    "rlhf.prompts_per_update=2",
    "rlhf.group_size=4",
    "rlhf.micro_batch=4",
    "rlhf.validate_every=1",
)
SMALL_ENHANCE = (
    "enhance.dtype=float32",
    f"enhance.grpo.prompts=[{{kind: list, path: {PROMPTS}}}]",
    "enhance.grpo.rewards=[{kind: pixels, weights: {steadiness: 1.0, sharpness: 1.0}}]",
    "enhance.grpo.steps=2",
    "enhance.grpo.frames=9",
    "enhance.grpo.height=32",
    "enhance.grpo.width=48",
    "enhance.grpo.sampler.steps=2",
)
SMALL_PART = {"updates": 2, "batch_size": 2, "micro_batch": 1, "validate_every": 1, "save_every": 1}
SMALL_DISTILL = (
    *SMALL_BATTERY,
    "sampler.steps=2",
    f"distill.prompts=[{{kind: list, path: {PROMPTS}}}]",
    *(
        f"distill.{part}.{key}={value}"
        for part in ("few_step", "initialise", "self_forcing")
        for key, value in SMALL_PART.items()
    ),
    "distill.few_step.critic_updates=1",
    "distill.self_forcing.critic_updates=1",
    "distill.initialise.trajectories=2",
    "distill.causal.block=1",
)
DISTILL = "wan21-1.3b-distill"
RECIPES = ["wan21-1.3b-lora", "wan21-1.3b-full"]
RL_RECIPES = ["wan21-1.3b-rlhf-lora", "wan21-1.3b-rlhf-full"]
FEEDBACK = "wan21-1.3b-feedback"
CHAT_TEMPLATES = {
    "wan21-1.3b-enhance-qwen3-4b": "qwen3_instruct_2507",
    "wan21-1.3b-enhance-qwen3-0.6b": "qwen3",
}
"""Those of the language models that the recipes for prompt enhancement name, of which trl has copies."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny Wan 2.1 and a curated dataset of clips that are long enough."""
    root = tmp_path_factory.mktemp("wan")
    tiny_wan(root / "wan", "2.1")
    for seed in (1, 2, 3):
        write(root / "footage" / f"clip {seed}.mp4", np.concatenate([pan(seed, 70), pan(seed, 70)[::-1]]))
        (root / "footage" / f"clip {seed}.txt").write_text(f"A pan over texture number {seed}.")
    assert curate(root / "footage", root / "dataset", CurateConfig(workers=1)).kept == 3
    return root


def tiny_model(root: Path) -> list[str]:
    return [f"model={root / 'wan'}", "dtype=float32", f"runs={root / 'runs'}"]


def overrides(root: Path) -> list[str]:
    return [*tiny_model(root), f"sft.data=[{{kind: dataset, path: {root / 'dataset'}, held_out: 0.3}}]"]


@pytest.mark.parametrize("name", RECIPES)
def test_the_doctor_passes_every_line(place, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WORLD_SIZE", "8" if name.endswith("full") else "1")
    findings = examine(load_recipe(ROOT / "recipes" / f"{name}.yaml", overrides(place)))
    assert not [finding for finding in findings if not finding.passed]
    checks = {finding.check: finding.sentence for finding in findings}
    assert checks["battery size"].startswith("81 x 480 x 832 is a latent of 16 x 21 x 60 x 104")
    assert "3 clips, all captioned" in checks["sft.data.0"]
    if name.endswith("lora"):
        assert checks["LoRA coverage"].startswith("20 modules carry an adapter")
    else:
        assert checks["shards"] == "2 blocks over 8 ranks."


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_runs_to_its_report_in_small(place, name):
    small = [
        f"name={name}",
        *SMALL,
        "sft.steps=2",
    ]
    done = reelign("run", ROOT / "recipes" / f"{name}.yaml", *overrides(place), *small, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    run = place / "runs" / name
    assert (run / "report" / "index.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "sft"]
    assert summary["stages"][1]["gsb"]


@pytest.mark.parametrize("name", RECIPES)
def test_bfloat16_trains_on_two_ranks_as_on_one(place, name):
    """The recipes' own precision, with real gradients; losses agree as far as bfloat16 lets them."""
    losses = []
    for ranks in (1, 2):
        small = [
            f"name={name}-bf16-{ranks}",
            "dtype=bfloat16",
            *SMALL,
            "sft.steps=3",
        ]
        settings = [*(o for o in overrides(place) if not o.startswith("dtype")), *small]
        arguments = ["run", ROOT / "recipes" / f"{name}.yaml", *settings]
        done = on_ranks(2, *arguments) if ranks == 2 else reelign(*arguments, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        lines = (place / "runs" / f"{name}-bf16-{ranks}" / "sft" / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("name", [*RL_RECIPES, FEEDBACK])
def test_an_rl_recipe_fits_its_gpus_and_its_header_counts_what_it_costs(name):
    """Groups branch after 5.5 of 20 guided steps in the mean; validations and two batteries sample whole clips."""
    path = ROOT / "recipes" / f"{name}.yaml"
    recipe = load_recipe(path)
    rlhf, battery, ranks = recipe.rlhf, recipe.battery, 8 if name.endswith("full") else 1
    groups = rlhf.updates * rlhf.prompts_per_update
    validations = 1 + rlhf.updates / rlhf.validate_every
    judged = 2 * recipe.sampler.steps * (validations * battery.validation_count + 2 * battery.count)
    header = path.read_text(encoding="utf-8").partition("name:")[0]
    for number in (groups * 2 * (5.5 + 14.5 * rlhf.group_size), groups * 2, judged):
        assert f"{number:,.0f}" in header
    assert rlhf.method == ("full" if ranks == 8 else "lora")
    assert rlhf.prompts_per_update % ranks == 0
    assert rlhf.algorithm.branches
    assert rlhf.micro_batch % rlhf.group_size == 0
    assert rlhf.prompts[0].path != battery.prompts


def rl_run(root: Path, name: str, ranks: int) -> Path:
    """The folder of a small run of an RL recipe."""
    settings = [f"name={name}-{ranks}", *tiny_model(root), *SMALL_RL]
    arguments = ["run", ROOT / "recipes" / f"{name}.yaml", *settings]
    done = on_ranks(ranks, *arguments) if ranks > 1 else reelign(*arguments, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return root / "runs" / f"{name}-{ranks}"


def rl_updates(run: Path) -> list[dict[str, float]]:
    lines = (run / "rlhf" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "reward" in row]


@pytest.fixture(scope="module")
def rl_alone(place):
    """Small runs of the RL recipes on one rank, by recipe."""
    return {name: rl_run(place, name, 1) for name in RL_RECIPES}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("wan21-1.3b-rlhf-lora", "pytorch_lora_weights.safetensors"),
        ("wan21-1.3b-rlhf-full", "transformer/diffusion_pytorch_model.safetensors"),
    ],
)
def test_an_rl_recipe_runs_to_its_report_in_small(rl_alone, name, weights):
    run = rl_alone[name]
    assert (run / "report" / "index.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "rlhf"]
    assert summary["stages"][1]["gsb"]
    assert (run / "rlhf" / "model" / weights).exists()
    for row in rl_updates(run):
        assert row["groups_kept"] == 1
        assert row["grad_norm"] > 0
        assert row["ratio_drift"] < 1e-5


def test_two_ranks_learn_what_one_rank_learns_from_the_rl_recipe_for_eight(rl_alone, place):
    name = "wan21-1.3b-rlhf-full"
    wanted, found = rl_updates(rl_alone[name]), rl_updates(rl_run(place, name, 2))
    assert len(found) == len(wanted) == 2
    for one, two in zip(wanted, found, strict=True):
        for number in ("reward", "grad_norm", "learned", "nfe"):
            assert two[number] == pytest.approx(one[number], rel=2e-3), number


def voted(root: Path) -> Path:
    """A file of votes of people: of two clips of a prompt the bright one is better, whatever is asked."""
    votes = []
    for number in range(24):
        clips = []
        for name, light in (("dark", 0.2), ("bright", 1.0)):
            clips.append(root / "votes" / f"{number}-{name}.mp4")
            write_clip(clips[-1], (light * pan(number, 9)[:, :32, :48]).astype(np.uint8), 16)
        a, b = (Shown(name, str(clip)) for name, clip in zip(("dark", "bright"), clips, strict=True))
        pair = (f"{number}", f"words of prompt {number}", a, b)
        votes += [Vote(*pair, axis, "bad", "ann", 4.0, "a", "plain", "person") for axis in AXES]
    write_votes(root / "votes" / "votes.jsonl", votes)
    return root / "votes" / "votes.jsonl"


def test_the_feedback_recipe_counts_the_clips_that_its_reward_sees_and_explains_its_study():
    path = ROOT / "recipes" / f"{FEEDBACK}.yaml"
    recipe, header = load_recipe(path), path.read_text(encoding="utf-8").partition("name:")[0]
    assert f"= {2 * recipe.reward.updates * recipe.reward.batch_size:,} clips" in header
    lines = [
        line.removeprefix("#   ") for line in header.splitlines() if line.startswith(("#   battery", "#   sampler"))
    ]
    study = yaml.safe_load("\n".join(lines))
    asked = BatteryConfig.model_validate(study["battery"])
    assert SampleConfig.model_validate(study["sampler"]) == recipe.sampler
    for name in ("frames", "height", "width", "fps"):
        assert getattr(asked, name) == getattr(recipe.battery, name)
    assert asked.prompts == recipe.rlhf.prompts[0].path != recipe.battery.prompts


def test_the_feedback_recipe_runs_from_votes_to_its_report_in_small(place):
    small = [
        *(setting for setting in SMALL_RL if not setting.startswith("rlhf.rewards")),
        f"votes.sources=[{{kind: file, path: {voted(place)}}}]",
        f"reward.network.base={tiny_whole(place / 'qwen', 'qwen2_vl')}",
        "reward.network.dtype=float32",
        "reward.network.least_pixels=784",
        "reward.updates=20",
        "reward.batch_size=8",
        "reward.optim.lr=1.0e-2",
        "reward.held_out=0.5",
        "reward.validate_every=10",
    ]
    done = reelign(
        "run", ROOT / "recipes" / f"{FEEDBACK}.yaml", f"name={FEEDBACK}", *tiny_model(place), *small,
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = place / "runs" / FEEDBACK
    assert (run / "report" / "index.html").exists()
    card = json.loads((run / "reward" / "model" / "card.json").read_text())
    assert card["usable"] == {"visual": True, "motion": True, "text": True}
    assert set(card["source"]) == {"person"}
    for row in rl_updates(run):
        assert {"reward/learned.visual", "reward/learned.motion", "reward/learned.text"} <= row.keys()
        assert row["ratio_drift"] < 1e-5


def enhance_overrides(root: Path, name: str) -> list[str]:
    """A tiny language model with the real one's chat template, and pairs of captions inverted by rules."""
    folder = root / name
    if not folder.exists():
        captions = [prompt.text for prompt in read_prompts(PROMPTS)]
        tiny_language(folder / "chat", captions)
        tokenizer = AutoTokenizer.from_pretrained(folder / "chat")
        template = Path(trl.__file__).parent / "chat_templates" / f"{CHAT_TEMPLATES[name]}.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        tokenizer.save_pretrained(folder / "chat")
        write_pairs(folder / "pairs.jsonl", inverted(captions, 64, 0))
    pairs = f"enhance.supervised.pairs=[{{kind: file, path: {folder / 'pairs.jsonl'}}}]"
    return [*tiny_model(root), f"battery.prompts={PROMPTS}", f"enhance.language_model={folder / 'chat'}", pairs]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_the_doctor_passes_every_line_of_an_enhance_recipe(place, name):
    settings = [*enhance_overrides(place, name), *SMALL_ENHANCE]
    findings = examine(load_recipe(ROOT / "recipes" / f"{name}.yaml", settings))
    assert not [finding for finding in findings if not finding.passed]
    checks = {finding.check: finding.sentence for finding in findings}
    assert "a chat template; adapters of " in checks["enhance.language_model"]
    assert checks["enhance.tokens"].startswith("questions of video-1 have up to ")
    assert checks["enhance.rehearsal"].startswith("2 prompts with 2 rewrites each")
    assert "hours here" in checks["enhance.cost"]


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_an_enhance_recipe_runs_to_its_report_in_small(place, name):
    small = [
        *SMALL_BATTERY,
        "sampler.steps=2",
        "enhance.supervised.steps=2",
        "enhance.supervised.batch_size=4",
        "enhance.supervised.micro_batch=2",
        "enhance.tokens=32",
        "enhance.grpo.prompts_per_step=2",
        "enhance.grpo.group_size=3",
        "enhance.grpo.micro_batch=3",
    ]
    settings = [f"name={name}", *enhance_overrides(place, name), *SMALL_ENHANCE, *small]
    done = reelign("run", ROOT / "recipes" / f"{name}.yaml", *settings, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    run = place / "runs" / name
    assert (run / "report" / "index.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "enhance"]
    assert summary["stages"][1]["gsb"]
    assert (run / "enhance" / "model" / "enhancer" / "model.safetensors").exists()
    assert not (run / "enhance" / "model" / "enhancer" / "adapter_config.json").exists()  # adapters are merged
    steps = [json.loads(line) for line in (run / "enhance" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 4
    assert all("reward/pixels.steadiness" in step for step in steps[2:])


@pytest.mark.parametrize(
    ("name", "gibibytes", "shape"),
    [
        ("wan21-1.3b-enhance-qwen3-4b", 79, (2560, 9728, 36, 32)),
        ("wan21-1.3b-enhance-qwen3-0.6b", 23.5, (1024, 3072, 28, 16)),
    ],
)
def test_an_enhance_recipe_fits_its_gpu_and_its_header_counts_what_it_costs(place, monkeypatch, name, gibibytes, shape):
    """The real shapes, without memory. What the doctor cannot count are the 4.6 GiB of VideoReward."""
    path = ROOT / "recipes" / f"{name}.yaml"
    recipe = load_recipe(path)
    enhance, header = recipe.enhance, path.read_text(encoding="utf-8").partition("name:")[0]
    grpo, clips = enhance.grpo, clips_at_most(enhance.grpo)
    for number in (clips, clips * 2 * grpo.sampler.steps, 3 * recipe.battery.count * 2 * recipe.sampler.steps):
        assert f"{number:,}" in header
    assert f"at most {clips * 3 * grpo.frames * grpo.height * grpo.width / 2**30:.0f} GiB" in header
    assert grpo.prompts[0].path != recipe.battery.prompts
    model, chat = real_wan(place), real_qwen3(*shape)
    monkeypatch.setattr("reelign.doctor.language.free_memory", lambda: (gibibytes - 4.6) * 2**30)
    assert f"{chat.num_parameters() / 1e9:.1f}" == ("4.0" if "4b" in name else "0.6")
    assert "GiB a rank" in enhance_memory(recipe, enhance, chat, model, 512, 320)


def test_the_distill_recipe_fits_its_gpus_and_its_header_counts_what_it_costs(place, monkeypatch):
    """The real shapes, without memory, on eight GPUs of 80 GB."""
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setattr("reelign.doctor.distill_memory.free_memory", lambda: 79 * 2**30)
    path = ROOT / "recipes" / f"{DISTILL}.yaml"
    recipe, model = load_recipe(path), real_wan(place)
    distill, header = recipe.distill, path.read_text(encoding="utf-8").partition("name:")[0]
    cost = count(recipe, distill, model)
    for part, spent in cost.items():
        assert f"{part} {spent.forward:,} / {spent.backward:,}" in header
    judged = sum(spent.judged for spent in cost.values())
    work = sum(spent.work(checkpointing=True) for spent in cost.values()) / 8 + judged
    assert f"{judged:,} on each" in header
    assert f"worth {work:,.0f} evaluations of 283 TFLOP, {work * 283 / 300 / 3600:.0f} hours" in header
    needed = distill_memory(recipe, distill, model, 0.0)
    assert f"{float(needed.split()[1]):.0f} GiB a rank in few_step" in header
    assert "a rank in few_step" in needed
    assert distill.sampler.grid[:-1].tolist() == pytest.approx([1.0, 0.9376, 0.8336, 0.6259], abs=1e-4)
    assert distill.prompts[0].path != recipe.battery.prompts


def test_the_doctor_passes_every_line_of_the_distill_recipe(place):
    small = [*tiny_model(place), *SMALL_DISTILL]
    findings = examine(load_recipe(ROOT / "recipes" / f"{DISTILL}.yaml", small))
    assert not [finding for finding in findings if not finding.passed]
    checks = {finding.check: finding.sentence for finding in findings}
    assert checks["distill.teacher"] == "the run's own model, guided at 4; the student needs no guidance."
    assert "hours here (few_step " in checks["distill.cost"]


def test_the_distill_recipe_runs_to_its_report_in_small(place):
    small = [f"name={DISTILL}", *tiny_model(place), *SMALL_DISTILL]
    done = reelign("run", ROOT / "recipes" / f"{DISTILL}.yaml", *small, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    run = place / "runs" / DISTILL
    assert (run / "report" / "index.html").exists()
    summary = json.loads((run / "summary.json").read_text())
    assert [stage["name"] for stage in summary["stages"]] == ["base", "distill"]
    assert (run / "distill" / "model" / "causal.json").exists()


def real_wan(root: Path) -> VideoModel:
    """Wan 2.1-1.3B in its own shapes, without memory."""
    model = load_model(root / "wan", device="cpu")
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30, text_dim=4096
        )
        text_encoder = UMT5EncoderModel(
            UMT5Config(vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64)
        )
        parts = {"transformer": transformer, "text_encoder": text_encoder.to(torch.bfloat16), "vae": AutoencoderKLWan()}
    cast(Any, model.pipeline).register_modules(**parts)
    return model


def real_qwen3(width: int, inside: int, blocks: int, heads: int) -> Qwen3ForCausalLM:
    """A Qwen3 in its own shape, without memory."""
    with torch.device("meta"):
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151936,
                hidden_size=width,
                intermediate_size=inside,
                num_hidden_layers=blocks,
                num_attention_heads=heads,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
