"""The stage as a user runs it (killed, stopped, two ranks, failing rewards), and with other language models."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from command import DEMO, on_ranks, reelign
from forks import Fork
from miniatures import thin_miniature
from reelign.data.pairs import PromptPair, write_pairs
from reelign.enhancer.enhancer import load_enhancer, read_manner
from reelign.enhancer.language_model import MINIATURE
from reelign.enhancer.template import TEMPLATES
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.miniature.enhancer_pairs import miniature_pairs
from reelign.miniature.judgement import AXES
from reelign.models.load import enhancer_folder, load_model, weights_identity
from reelign.sampling.sample import SampleConfig
from reelign.stages import enhance as module
from reelign.stages.asked import MiniaturePrompts, build_prompts, drawn
from reelign.stages.context import StageContext
from reelign.stages.enhance import WHOLE, run_enhance
from reelign.stages.enhance_recipe import EnhanceConfig
from reelign.terminal import quiet_libraries
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World
from tiny_language import tiny_language

PAIRS, STEPS, PROMPTS, PER_STEP = 16, 6, 6, 2
"""Steps of each step (an epoch of the pairs is 5 steps, one of the prompts 3), prompts in all and a step."""
SMALL = {
    "language_model": "miniature",
    "template": "plain-1",
    "guard": "miniature",
    "tokens": 16,
    "supervised": {
        "pairs": [{"kind": "miniature", "count": 40}],
        "steps": PAIRS,
        "batch_size": 8,
        "micro_batch": 4,
        "lr": 1e-3,
    },
    "grpo": {
        "prompts": [{"kind": "miniature", "count": PROMPTS, "style": "user"}],
        "rewards": [{"kind": "miniature"}],
        "frames": 9,
        "steps": STEPS,
        "prompts_per_step": PER_STEP,
        "group_size": 4,
        "noises": 2,
        "micro_batch": 4,
        "lr": 1e-4,
        "sampler": {"steps": 2, "guidance_scale": 2.0},
        "save_every": 4,
    },
}
TINY = (
    f"model={thin_miniature()}",
    "curate=null",
    "sft=null",
    "votes=null",
    "reward=null",
    "rlhf=null",
    "distill=null",
    "battery.count=2",
    "battery.validation_count=2",
    "sampler.steps=2",
)


def arguments(folder: Path, *more: str) -> list[str | Path]:
    return ["run", DEMO, *TINY, f"enhance={json.dumps(SMALL)}", f"runs={folder}", "name=r", *more]


def weights(stage: Path, step: str = "grpo") -> dict[str, torch.Tensor]:
    return load_file(stage / step / "model" / "model.safetensors")


def rows(stage: Path) -> list[dict[str, float]]:
    """The log, without what depends on the clock and on clips that an interrupted run had rendered already."""
    found = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    passing = ("seconds/rollout", "rendered", "reused")
    return [{name: value for name, value in row.items() if name not in passing} for row in found]


def assert_equal(stage: Path, wanted: Path) -> None:
    """The same bits and the same log."""
    for step in ("supervised", "grpo"):
        expected, found = weights(wanted, step), weights(stage, step)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items()), step
    assert rows(stage) == rows(wanted)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """The stage's folder of an uninterrupted run on one rank."""
    folder = tmp_path_factory.mktemp("one")
    done = reelign(*arguments(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr
    return folder / "r" / "enhance"


def test_the_artifact_is_a_transformers_folder_beside_the_name_of_its_generator(one_rank):
    artifact = one_rank / "model"
    assert {path.name for path in artifact.iterdir()} == {"card.json", "enhancer"}
    card = json.loads((artifact / "card.json").read_text())
    assert (card["kind"], card["base"], card["stage"], card["parent"]) == (
        "enhancer",
        str(thin_miniature()),
        "enhance",
        "base",
    )
    assert card["scores"].keys() == {"text", "visual", "motion"}
    folder = enhancer_folder(str(artifact))
    assert folder == enhancer_folder(str(one_rank)) == artifact / "enhancer"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3"
    assert tokenizer.chat_template
    final = weights(one_rank)
    assert all(torch.equal(final[name], value) for name, value in load_file(folder / "model.safetensors").items())
    manner = read_manner(str(folder))
    assert (manner.template, manner.guard, manner.tokens, manner.window) == ("plain-1", "miniature", 16, (10, 11))
    assert {path.name for path in one_rank.glob("*/checkpoint-*")} == set()


def test_the_artifact_loads_as_its_base_and_evaluates_with_its_enhancer(one_rank, tmp_path):
    made, base = load_model(one_rank / "model", device="cpu"), load_model(thin_miniature(), device="cpu")
    for name, network in base.denoisers().items():
        wanted, found = network.state_dict(), made.denoisers()[name].state_dict()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert enhancer_folder("miniature") is None
    other = tmp_path / "other"
    shutil.copytree(one_rank / "model", other)
    path = other / "enhancer" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert weights_identity(str(other)) == weights_identity(str(one_rank))  # of the generator: the words are no weights
    items = json.loads((one_rank / "evaluation.json").read_text())["items"]
    plain = json.loads((one_rank / "without" / "evaluation.json").read_text())["items"]
    prompts = [item["prompt"] for item in items]
    assert prompts == [item["prompt"] for item in plain]
    rewrites = load_enhancer(str(one_rank / "model" / "enhancer"), device="cpu")(prompts)
    assert [(item["rewrite"], item["outcome"]) for item in items] == [(r.text, r.label) for r in rewrites]
    assert not any(item["rewrite"] or item["outcome"] for item in plain)


def test_both_steps_learn_are_logged_in_one_row_of_steps_and_paid_for(one_rank):
    found = rows(one_rank)
    assert [row["step"] for row in found] == list(range(1, PAIRS + STEPS + 1))
    assert all(math.isfinite(value) for row in found for value in row.values())
    for row in found[PAIRS:]:
        assert row["grad_norm"] > 0
        assert 0 <= row["fallback"] <= 1
        assert 3 <= row["words"] <= 16
        assert 0 <= row["reward/miniature.visual"] <= 1
        assert -1 <= row["reward/structure"] <= 1
        assert row["raw/structure"] == 0  # own words are shorter than the generator's captions
    start = load_file(MINIATURE / "model.safetensors")
    taught, rewarded = weights(one_rank, "supervised"), weights(one_rank)
    assert all(not torch.equal(start[name], value) for name, value in taught.items())
    assert any(not torch.equal(taught[name], value) for name, value in rewarded.items())
    ledger = [json.loads(line) for line in (one_rank.parent / "ledger.jsonl").read_text().splitlines()]
    [cost] = [entry for entry in ledger if entry["phase"] == "enhance/grpo"]
    lines = (one_rank / "metrics.jsonl").read_text().splitlines()
    assert cost["clips"] == sum(json.loads(line).get("rendered", 0) for line in lines)
    assert cost["nfe"] == cost["clips"] * 2 * 2  # steps x guidance
    summary = json.loads((one_rank.parent / "summary.json").read_text())
    row = summary["stages"][1]
    assert (row["name"], row["parent"], row["complete"]) == ("enhance", "base", True)
    assert row["without"]["scores"].keys() == row["scores"].keys() == {"text", "visual", "motion"}
    assert sum(row["enhancement"]["outcomes"].values()) == 2
    assert row["gsb"].keys() == {"text", "visual", "motion", "overall"}
    assert [figure["label"] for figure in row["figures"]] == [
        "Overall GSB on full captions, with the enhancer against without"
    ]


def test_a_run_that_is_killed_in_both_steps_ends_in_the_same_bits(one_rank, tmp_path):
    stage = tmp_path / "r" / "enhance"
    for step, sealed in (("supervised", 8), ("grpo", 4)):
        run = Fork(tmp_path, *arguments(tmp_path))
        run.signal_when((stage / step / f"checkpoint-{sealed}" / WHOLE).exists, signal.SIGKILL)
        run.end(-signal.SIGKILL)
        assert not (stage / step / "model").exists()
    Fork(tmp_path, *arguments(tmp_path)).end(0)
    assert_equal(stage, one_rank)


def test_ctrl_c_ends_with_the_state_saved_and_the_same_command_goes_on(one_rank, tmp_path):
    stage = tmp_path / "r" / "enhance"
    run = Fork(tmp_path, *arguments(tmp_path))
    log, row = stage / "metrics.jsonl", f'{{"step": {PAIRS + 1}, "loss"'
    run.signal_when(lambda: log.exists() and row in log.read_text(), signal.SIGINT)
    said = run.end(1)
    assert "as asked; the same command goes on from here." in said
    assert "Traceback" not in said
    [sealed] = (stage / "grpo").glob(f"checkpoint-*/{WHOLE}")
    step = json.loads(sealed.read_text())["step"]
    assert f"stopped after step {step} as asked" in said
    assert 1 <= step < STEPS
    Fork(tmp_path, *arguments(tmp_path)).end(0)
    assert_equal(stage, one_rank)


MOODY = """
import os, pathlib
from reelign.rewards.miniature import MiniatureReward
judge, calls = MiniatureReward(), []
def reward(clips):
    calls.append(1)
    if len(calls) == 4 and not pathlib.Path(os.environ['MENDED']).exists():
        raise RuntimeError('the judge fell asleep')
    return judge(clips)
"""


def test_a_reward_that_fails_stops_the_run_between_checkpoints_and_loses_nothing(one_rank, tmp_path):
    (tmp_path / "moody_enhance.py").write_text(MOODY)
    own = {"kind": "function", "path": "moody_enhance.reward"}
    own |= {"dimensions": {name: [0, 1] for name in AXES}, "weights": dict.fromkeys(AXES, 1)}
    extra = {"PYTHONPATH": str(tmp_path), "MENDED": str(tmp_path / "mended")}
    again = arguments(tmp_path, f"enhance.grpo.rewards=[{json.dumps(own)}]")
    said = Fork(tmp_path, *again, **extra).end(1)
    assert "the reward 'moody_enhance.reward' has no score for 0: " in said
    assert "RuntimeError: the judge fell asleep Stopped after step 3; the same command goes on from here." in said
    assert "Traceback" not in said
    stage = tmp_path / "r" / "enhance"
    assert [path.parent.name for path in (stage / "grpo").glob(f"*/{WHOLE}")] == ["checkpoint-3"]
    assert not (stage / "grpo" / "model").exists()
    (tmp_path / "mended").touch()
    Fork(tmp_path, *again, **extra).end(0)
    expected, found = weights(one_rank), weights(stage)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert len(rows(stage)) == PAIRS + STEPS


NOTING = """
import json, os, pathlib
def reward(clips):
    with (pathlib.Path(os.environ['NOTES']) / f"rank-{os.environ.get('RANK', '0')}").open('a') as file:
        file.write(json.dumps([clip.prompt for clip in clips]) + '\\n')
    return {'light': [clip.frames.mean() / 255 for clip in clips]}
"""


def test_two_ranks_learn_together(one_rank, tmp_path):
    """The supervised step sees the same pairs on any number of ranks and differs by rounding. In GRPO each rank draws
    its rewrites from a seed of its own, so that only what is asked and how often can be compared. Here one group
    stretches over both ranks, and the first has nothing to learn from: all its rows are the user's words.
    """
    (tmp_path / "noting_enhance.py").write_text(NOTING)
    own = {
        "kind": "function",
        "path": "noting_enhance.reward",
        "dimensions": {"light": [0, 1]},
        "weights": {"light": 1},
    }
    changes = (f"enhance.grpo.rewards=[{json.dumps(own)}]", "enhance.grpo.prompts_per_step=1", "enhance.grpo.raw=2")
    extra = {"PYTHONPATH": str(tmp_path), "NOTES": str(tmp_path)}
    done = on_ranks(2, *arguments(tmp_path, *changes), **extra)
    assert done.returncode == 0, done.stderr
    stage = tmp_path / "r" / "enhance"
    expected, found = weights(one_rank, "supervised"), weights(stage, "supervised")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)  # the first steps of Adam divide by noise
    logged = rows(stage)
    assert [row["step"] for row in logged] == list(range(1, PAIRS + STEPS + 1))
    assert all(math.isfinite(value) for row in logged for value in row.values())
    for row, alone in zip(logged[:PAIRS], rows(one_rank)[:PAIRS], strict=True):
        assert row["loss"] == pytest.approx(alone["loss"], abs=2e-3)
    assert all(row["raw/noting_enhance.reward.light"] > 0 for row in logged[PAIRS:])
    asked = [listed.text for listed in drawn(build_prompts([MiniaturePrompts(**PROMPT)]), range(STEPS), 0)]
    for rank in range(2):
        notes = [json.loads(line) for line in (tmp_path / f"rank-{rank}").read_text().splitlines()]
        assert notes == [[prompt] * 2 * 2 for prompt in asked]  # rows of a rank x clips
    after = weights(stage)
    moved = max(float((after[name] - value).abs().max()) for name, value in found.items())
    assert 0 < moved < 2 * STEPS * SMALL["grpo"]["lr"]  # a step of Adam is about the rate


PROMPT = SMALL["grpo"]["prompts"][0]


def begin(folder: Path, stop: tuple[str, int] | None = None, **changes) -> Path:
    """The stage alone, in this process; `stop` is when the user asks to, by what is in progress and its step."""
    quiet_libraries()
    interrupt = Interrupt()

    def progress(what: str, done: int, total: int, note: str = "") -> None:
        interrupt.requested = interrupt.requested or (what, done) == stop

    context = StageContext(
        folder=folder / "r" / "enhance",
        parent=str(thin_miniature()),
        dataset=None,
        seed=0,
        dtype="float32",
        sampler=SampleConfig(steps=2, guidance_scale=2.0),
        battery=BatteryConfig(count=2, validation_count=2),
        world=World(0, 1, torch.device("cpu"), None),
        ledger=Ledger(folder / "ledger.jsonl"),
        interrupt=interrupt,
        progress=progress,
    )
    return run_enhance(context, EnhanceConfig.model_validate(SMALL | changes))


SHORT = {"supervised": SMALL["supervised"] | {"steps": 4}}
SHORT |= {
    "grpo": SMALL["grpo"] | {"rewards": [{"kind": "pixels", "weights": {"sharpness": 1}}], "frames": 5, "steps": 2}
}


def test_what_was_trained_but_not_written_is_not_trained_further(tmp_path, monkeypatch):
    """The power goes between the last checkpoint and the finished folder. (The library would add a step.)"""
    written, trained = module.save_enhancer, []

    def fails(folder, model, *what):
        trained.append({name: value.clone() for name, value in model.state_dict().items()})
        if len(trained) == 2:
            raise OSError("the power went")
        written(folder, model, *what)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_enhancer", fails)
        with pytest.raises(OSError, match="the power went"):
            begin(tmp_path, **SHORT)
    begin(tmp_path, **SHORT)
    stage = tmp_path / "r" / "enhance"
    for expected, step in zip(trained, ("supervised", "grpo"), strict=True):
        assert all(torch.equal(expected[name], value) for name, value in weights(stage, step).items()), step
    assert [row["step"] for row in rows(stage)] == [1, 2, 3, 4, 5, 6]


LORA = SHORT | {"method": "lora", "lora": {"rank": 4, "alpha": 8}}


def test_adapters_are_merged_into_an_ordinary_folder_and_resume_in_the_same_bits(tmp_path):
    artifact = begin(tmp_path / "whole", **LORA)
    for when in (("enhance: pairs", 1), ("enhance: rewards", 1)):
        with pytest.raises(ReelignError, match="as asked"):
            begin(tmp_path / "parts", stop=when, **LORA)
    begin(tmp_path / "parts", **LORA)
    assert_equal(tmp_path / "parts" / "r" / "enhance", tmp_path / "whole" / "r" / "enhance")
    folder = artifact / "enhancer"
    assert not list(folder.glob("adapter*"))
    found = load_file(folder / "model.safetensors")
    start = load_file(MINIATURE / "model.safetensors")
    assert found.keys() == start.keys()
    changed = {name for name, value in start.items() if not torch.equal(found[name], value)}
    assert changed == {name for name in start if name.endswith("_proj.weight")}
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen3"
    assert len(load_enhancer(str(folder), device="cpu")(["red ball going left"])) == 1


CAT = [
    PromptPair("a cat on a roof", "A grey cat sits on the roof of an old house at dusk."),
    PromptPair("two dogs run", "Two brown dogs run over wet sand along the sea in the morning."),
    PromptPair('a sign "OPEN"', 'A wooden sign that says "OPEN" hangs in the window of a small shop.'),
]


def test_a_chat_model_with_its_own_template_learns_both_steps(tmp_path):
    """Byte-level words, system messages, thoughts that it is told not to think, and the divergence from a reference."""
    template = TEMPLATES["video-1"]
    texts = [template.system, *(pair.prompt for pair in CAT), *(template.answer(pair.rewrite) for pair in CAT)]
    language = tiny_language(tmp_path / "language", texts)
    write_pairs(tmp_path / "pairs.jsonl", CAT)
    (tmp_path / "prompts.txt").write_text("\n".join(pair.prompt for pair in CAT), encoding="utf-8")
    supervised = {
        "pairs": [{"kind": "file", "path": str(tmp_path / "pairs.jsonl")}],
        "steps": 60,
        "batch_size": 3,
        "micro_batch": 3,
        "lr": 1e-2,
    }
    changes = {
        "prompts": [{"kind": "list", "path": str(tmp_path / "prompts.txt")}],
        "lr": 1e-5,
        "kl": 0.1,
    }
    artifact = begin(
        tmp_path,
        language_model=str(language),
        template="video-1",
        guard="lexical",
        tokens=48,
        supervised=supervised,
        grpo=SHORT["grpo"] | changes,
    )
    found = rows(tmp_path / "r" / "enhance")
    assert [row["step"] for row in found] == list(range(1, 63))
    assert found[59]["loss"] < 0.2 < found[0]["loss"]
    assert all(math.isfinite(value) for row in found for value in row.values())
    enhancer = load_enhancer(str(artifact / "enhancer"), device="cpu")
    assert (enhancer.manner.template, enhancer.manner.guard, enhancer.manner.window) == ("video-1", "lexical", (13, 14))
    rewrites = enhancer([pair.prompt for pair in CAT])
    assert [(rewrite.text, rewrite.outcome) for rewrite in rewrites] == [(pair.rewrite, "rewritten") for pair in CAT]


def test_the_window_is_measured_on_the_pairs_unless_it_is_given(tmp_path):
    supervised = SMALL["supervised"] | {"steps": 1}
    artifact = begin(tmp_path, supervised=supervised, grpo=None, window=(3, 30))
    assert read_manner(str(artifact / "enhancer")).window == (3, 30)
    assert [row["step"] for row in rows(tmp_path / "r" / "enhance")] == [1]
    counts = {len(pair.rewrite.split()) for pair in miniature_pairs(40, 31)}
    config = EnhanceConfig.model_validate(SMALL)
    assert config.manner(miniature_pairs(40, 31)).window == (min(counts), max(counts))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"language_model": "no/such/model"}, "there is no language model 'no/such/model'"),
        ({"template": "video-9"}, "there is no template 'video-9'"),
        ({"supervised": SMALL["supervised"] | {"micro_batch": 3}}, "no multiple of micro_batch=3"),
        ({"supervised": SMALL["supervised"] | {"pairs": [{"kind": "file", "path": "no.jsonl"}]}}, "no.jsonl"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(tmp_path, changes, said):
    with pytest.raises(ReelignError, match=said):
        begin(tmp_path, **changes)
    assert not (tmp_path / "r" / "enhance" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"raw": 3}, "leaves fewer than two"),
        ({"clips": 3, "noises": 2}, "more than there are noises"),
        ({"micro_batch": 64}, "more than a step has rewrites"),
    ],
)
def test_a_recipe_that_does_not_add_up_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        EnhanceConfig.model_validate(SMALL | {"grpo": SMALL["grpo"] | changes})
