"""What the doctor finds in a recipe with `enhance:`, by rewrites that are rendered and judged on the miniature."""

import sys
from collections import namedtuple
from itertools import chain
from pathlib import Path

import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from command import ROOT, on_ranks, reelign
from diagnosis import complaints, diagnosis
from reelign.data.pairs import PromptPair, write_pairs
from reelign.doctor import Finding, examine
from reelign.doctor.language import trained_weights
from reelign.doctor.rehearsal import context_in
from reelign.doctor.screening import Seconds
from reelign.enhancer.enhancer import MINIATURE_MANNER
from reelign.enhancer.language_model import load_language_model
from reelign.evaluate.battery import run_battery
from reelign.models.load import load_model
from reelign.recipe import Recipe, load_recipe
from reelign.stages.rewriting import Rewriting
from reelign.train.parallel import World
from tiny_language import tiny_language

RECIPE = ROOT / "recipes" / "miniature-enhance.yaml"
READ = ["enhance.language_model", "enhance.trl", "enhance.pairs", "enhance.budget", "enhance.tokens"]
ASKED = ["enhance.prompts", "enhance.clips", "enhance.memory", "enhance.disk"]
SCREENED = ["enhance.rehearsal", "enhance.rewards", "enhance.cost"]
ALONE = World(0, 1, torch.device("cpu"), None)
CAPTIONS = [
    "A brown dog runs along a wet beach towards the camera at sunset, waves rolling in behind it.",
    "An old man in a blue cap feeds pigeons on a park bench, the birds taking off one after another.",
    "A cup of coffee is poured in slow motion, steam rising against a dark background.",
]
FAITHFUL = ["brown dog runs on a beach", "an old man feeds pigeons", "coffee in slow motion"]


def overrides(*more: str) -> list[str]:
    small = ["model=miniature", "sampler.steps=2", "battery.count=2", "enhance.grpo.sampler.steps=2"]
    return [*small, "enhance.supervised.pairs=[{kind: miniature, count: 60}]", *more]


def recipe(*more: str) -> Recipe:
    return load_recipe(RECIPE, overrides(*more))


def findings(*more: str) -> dict[str, Finding]:
    return diagnosis(recipe(*more))


def failed(*more: str) -> dict[str, str]:
    return complaints(recipe(*more))


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> Path:
    """A chat model that reads English, with the template that Qwen3-4B-Instruct-2507 ships."""
    folder = tiny_language(tmp_path_factory.mktemp("chat") / "model", CAPTIONS)
    return with_template(folder, "qwen3_instruct_2507")


def with_template(folder: Path, name: str) -> Path:
    """Give a language model one of the chat templates that trl has copies of."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return folder


def own_pairs(path: Path, prompts: list[str]) -> list[str]:
    """The overrides for a file of pairs that the lexical guard reads, and no GRPO."""
    write_pairs(path, [PromptPair(*sides) for sides in zip(prompts, CAPTIONS, strict=True)])
    pairs = f"enhance.supervised.pairs=[{{kind: file, path: {path}}}]"
    return [pairs, "enhance.guard=lexical", "enhance.template=video-1", "enhance.tokens=320", "enhance.grpo=null"]


@pytest.fixture
def own_reward(tmp_path, monkeypatch):
    """A user's function, and the override that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, body: str) -> str:
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test of this process may have used the name
        (tmp_path / f"{name}.py").write_text(f"def reward(clips):\n{body}")
        entry = f"{{kind: function, path: {name}.reward, dimensions: {{a: [0, 1]}}, weights: {{a: 1}}}}"
        return f"enhance.grpo.rewards=[{entry}]"

    return write


def test_a_sound_recipe_passes_every_finding_and_nothing_is_written(tmp_path):
    found = findings(f"runs={tmp_path}/runs")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert list(found) == ["device", "model", "battery size", "sampler", *READ, *ASKED, *SCREENED, "disk"]
    said = {check: finding.sentence for check, finding in found.items()}
    assert said["enhance.language_model"] == "miniature loads: 0.8 M weights and a chat template; all of them learn."
    assert said["enhance.trl"] == "trl 1.16.0."
    assert said["enhance.pairs"].startswith("60 pairs, ")
    assert "the window is 10 to 11 words, as measured on them, and 0.0% of them lie outside" in said["enhance.pairs"]
    assert said["enhance.pairs"].endswith("the guard itself refuses 0 of 60.")
    assert said["enhance.budget"] == (
        "a step learns from 64 pairs: 1 ranks x 1 passes x 64; a step of GRPO from 64 rewrites, 1 of each 8 the user's "
        "own words: 1 ranks x 1 passes x 64."
    )
    assert "answers up to 12, and 0 of 60 answers are longer than enhance.tokens=24." in said["enhance.tokens"]
    assert said["enhance.clips"].startswith("a step renders at most 64 rewrites x 2 noises, 2 unipc steps each; 17 x ")
    assert "to write 64 rewrites, " in said["enhance.memory"]
    assert "at most 0.2 GiB for the 3,200 clips of GRPO" in said["enhance.disk"]  # of 17 x 32 x 32 x 3 bytes
    assert said["enhance.rehearsal"].startswith("2 prompts with 2 rewrites each, by the language model as it comes (")
    assert said["enhance.rehearsal"].endswith(", in 2 clips each by miniature.")
    assert "means of the rewrites (of the users' own words): miniature.text 0." in said["enhance.rewards"]
    assert "GRPO renders at most 3,200 clips with 12,800 network evaluations, in " in said["enhance.cost"]
    assert "Batteries take 32 more" in said["enhance.cost"]  # the parent; full captions; with and without the enhancer
    assert list(tmp_path.iterdir()) == []


def test_the_recipe_of_the_miniature_passes_every_finding():
    assert [finding for finding in examine(load_recipe(RECIPE, ["model=miniature"])) if not finding.passed] == []


def test_supervised_training_alone_asks_for_no_generator():
    found = findings("enhance.grpo=null")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert [check for check in found if check.startswith("enhance")] == [*READ, "enhance.memory", "enhance.disk"]
    assert "to learn from 60 pairs" not in found["enhance.memory"].sentence  # a step has 64, some of them twice
    assert "to learn from 64 pairs" in found["enhance.memory"].sentence
    assert "clips" not in found["enhance.disk"].sentence


def test_a_generator_that_the_run_has_yet_to_train_is_stood_in_for_by_its_base():
    rlhf = "rlhf={prompts: [{kind: miniature, count: 4}], rewards: [{kind: miniature}], updates: 2, group_size: 4}"
    found = findings("sft.data=[{kind: miniature, count: 16}]", rlhf, "sampler.steps=3")
    assert [finding for finding in found.values() if not finding.passed] == []
    said = "by miniature itself: its parent in the run, the trained model, does not exist yet."
    assert found["enhance.rehearsal"].sentence.endswith(said)
    assert "Batteries take 36 more" in found["enhance.cost"].sentence  # its own three: the line `cost` has the others


def test_a_missing_language_model_is_answered_with_what_to_do(tmp_path):
    found = findings("enhance.language_model=/no/such")
    assert [check for check, finding in found.items() if not finding.passed] == ["enhance.language_model"]
    assert "there is no language model '/no/such'" in found["enhance.language_model"].sentence
    assert "a transformers folder or a hub id such as Qwen/Qwen3-4B-Instruct-2507" in (
        found["enhance.language_model"].sentence
    )
    assert found["enhance.rehearsal"].sentence == "left out until the lines above pass."
    assert found["enhance.pairs"].passed
    done = reelign("doctor", RECIPE, *overrides("enhance.language_model=Qwen/Qwen3-0.6B"), CUDA_VISIBLE_DEVICES="")
    said = " ".join(done.stdout.split())
    assert done.returncode == 1
    assert "FAIL enhance.language_model: cannot load the language model Qwen/Qwen3-0.6B: " in said
    assert "Download it: hf download Qwen/Qwen3-0.6B" in said
    assert "Traceback" not in done.stderr


def test_a_language_model_without_a_chat_template_is_found(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_language(tmp_path / "base", CAPTIONS))
    (tmp_path / "base" / "chat_template.jinja").unlink()
    assert tokenizer.chat_template is not None
    said = failed(f"enhance.language_model={tmp_path / 'base'}")
    assert list(said) == ["enhance.language_model"]
    assert "has no chat template, so it cannot be asked anything" in said["enhance.language_model"]


def test_without_trl_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    said = failed()
    assert list(said) == ["enhance.trl"]
    assert said["enhance.trl"].endswith("pip install 'reelign[enhance]'.")


def test_adapters_are_counted_as_peft_makes_them(chat):
    for name in ("miniature", str(chat)):
        planned = recipe("enhance.method=lora", "enhance.lora.rank=5")
        assert planned.enhance is not None
        model, _ = load_language_model(name)
        counted = trained_weights(model, planned.enhance)
        adapted = get_peft_model(model, LoraConfig(r=5, target_modules="all-linear", task_type="CAUSAL_LM"))
        assert counted == sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)


def test_a_missing_file_of_pairs_names_the_command_that_makes_one(tmp_path):
    found = findings(f"enhance.supervised.pairs=[{{kind: file, path: {tmp_path}/none.jsonl}}]")
    assert [check for check, finding in found.items() if not finding.passed] == ["enhance.pairs"]
    assert f"reelign pairs CAPTIONS --out {tmp_path}/none.jsonl" in found["enhance.pairs"].sentence
    assert "enhance.tokens" not in found
    assert found["enhance.rehearsal"].sentence == "left out until the lines above pass."


def test_pairs_that_teach_what_the_guard_forbids_are_counted_with_the_commonest_reason(tmp_path, chat):
    lm = f"enhance.language_model={chat}"
    prompts = [FAITHFUL[0], "a zebra feeds pigeons", FAITHFUL[2]]
    found = findings(lm, *own_pairs(tmp_path / "some.jsonl", prompts))
    assert [finding for finding in found.values() if not finding.passed] == []
    said = "the guard itself refuses 1 of 3, most often for 'word' ('a zebra feeds pigeons')."
    assert found["enhance.pairs"].sentence.endswith(said)
    prompts = ["three brown dogs", "a zebra feeds pigeons", "espresso in slow motion"]
    found = findings(lm, *own_pairs(tmp_path / "most.jsonl", prompts))
    assert [check for check, finding in found.items() if not finding.passed] == ["enhance.pairs"]
    assert "refuses 3 of 3, most often for 'word' ('a zebra feeds pigeons')" in found["enhance.pairs"].sentence
    assert "they teach what is refused afterwards" in found["enhance.pairs"].sentence


def test_rewrites_outside_a_given_window_are_counted(tmp_path, chat):
    mine = own_pairs(tmp_path / "pairs.jsonl", FAITHFUL)
    found = findings(f"enhance.language_model={chat}", *mine, "enhance.window=[16, 40]")["enhance.pairs"]
    assert found.passed
    assert "the window is 16 to 40 words, as enhance.window says, and 33.3% of them lie outside" in found.sentence


def test_an_unknown_template_is_answered_with_those_that_there_are():
    said = failed("enhance.template=video-2")
    assert list(said) == ["enhance.pairs"]
    assert "there is no template 'video-2'; there are plain-1, video-1" in said["enhance.pairs"]


@pytest.mark.parametrize(
    ("ranks", "change", "sentence"),
    [
        ("1", "enhance.supervised.batch_size=50", None),
        ("3", "enhance.supervised.batch_size=64", "enhance.supervised.batch_size=64 does not divide over 3 ranks."),
        ("4", "enhance.supervised.micro_batch=3", "gives each rank 16, which is no multiple of micro_batch=3."),
        ("1", "enhance.grpo.micro_batch=24", "rewrites of a step=64 gives each rank 64, which is no multiple of micro"),
        ("4", "enhance.grpo.prompts_per_step=8", None),
    ],
)
def test_steps_divide_over_ranks_and_passes_by_the_stages_own_rule(monkeypatch, ranks, change, sentence):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    found = findings(change, "enhance.grpo.generator=/none")  # which spares the rehearsal
    assert found["enhance.budget"].passed == (sentence is None)
    if sentence is not None:
        assert sentence in found["enhance.budget"].sentence


def test_steps_that_bfloat16_rounds_away_are_found(chat, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    coarse = [f"enhance.language_model={chat}", "enhance.dtype=bfloat16", "enhance.grpo=null", "enhance.tokens=320"]
    said = failed(*coarse, "enhance.supervised.lr=1e-5")
    assert list(said) == ["device", "enhance.precision"]
    assert said["device"].endswith("set enhance.dtype=float32.")
    assert "in bfloat16 a step of enhance.supervised.lr=1e-05 moves " in said["enhance.precision"]
    assert "Use enhance.method=lora, whose adapters are float32, or enhance.dtype=float32" in said["enhance.precision"]
    assert list(failed(*coarse, "enhance.supervised.lr=1e-3")) == ["device"]
    assert "enhance.precision" not in findings(*coarse, "enhance.supervised.lr=1e-5", "enhance.method=lora")


def test_the_weights_that_a_step_moves_are_those_that_adamw_moves(chat):
    """Of a step of AdamW in bfloat16; where a weight lies just at a power of two, the lower neighbour is nearer."""
    model, _ = load_language_model(str(chat), "bfloat16")
    before = [weights.detach().clone() for weights in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for weights in model.parameters():
        weights.grad = torch.ones_like(weights)
    optimizer.step()
    moved = sum(int((new != old).sum()) for new, old in zip(model.parameters(), before, strict=True))
    coarse = [f"enhance.language_model={chat}", "enhance.dtype=bfloat16", "enhance.grpo=null", "enhance.tokens=320"]
    sentence = findings(*coarse, "enhance.supervised.lr=1e-4")["enhance.precision"].sentence
    share = float(sentence.partition(" moves ")[2].partition("%")[0])
    assert share == pytest.approx(100 * moved / model.num_parameters(), abs=1)


def test_a_generator_of_its_own_renders_or_is_missed(tmp_path):
    found = findings("enhance.grpo.generator=miniature")
    assert [finding for finding in found.values() if not finding.passed] == []
    assert found["enhance.generator"].sentence == "miniature loads and renders the rewrites."
    said = failed(f"enhance.grpo.generator={tmp_path}/none")
    assert list(said) == ["enhance.generator"]
    assert "there is no model" in said["enhance.generator"]


def test_answers_that_would_be_cut_are_found_when_they_are_many():
    said = failed("enhance.tokens=11")
    assert list(said) == ["enhance.tokens"]
    assert "of 60 answers are longer than enhance.tokens=11" in said["enhance.tokens"]
    assert said["enhance.tokens"].endswith("Set enhance.tokens=12.")


def test_a_few_answers_may_be_cut(tmp_path, chat):
    """One of 21: 4.8 %."""
    mine = own_pairs(tmp_path / "pairs.jsonl", FAITHFUL)
    pairs = [PromptPair(f"{FAITHFUL[0]} {number}", f"{CAPTIONS[0]} {number}") for number in range(20)]
    write_pairs(tmp_path / "pairs.jsonl", [*pairs, PromptPair(FAITHFUL[1], " ".join(CAPTIONS * 3))])
    found = findings(f"enhance.language_model={chat}", *mine)["enhance.tokens"]
    assert found.passed
    assert "and 1 of 21 answers are longer than enhance.tokens=320" in found.sentence
    assert "of the rewrites 21 are longer than the 20 tokens that the text encoder reads" in found.sentence


def test_questions_and_answers_fit_the_language_model():
    said = failed("enhance.tokens=510")
    assert list(said) == ["enhance.tokens"]
    assert "together that is more than the 512 positions of miniature" in said["enhance.tokens"]


def test_a_chat_template_that_takes_no_system_message_is_found(tmp_path):
    folder = with_template(tiny_language(tmp_path / "model", CAPTIONS), "gemma")
    mine = [f"enhance.language_model={folder}", *own_pairs(tmp_path / "pairs.jsonl", FAITHFUL)]
    said = failed(*mine)
    assert list(said) == ["enhance.tokens"]
    assert "refuses enhance.template=video-1 (System role not supported)" in said["enhance.tokens"]
    assert failed(*mine, "enhance.template=plain-1") == {}


def test_what_becomes_of_odd_prompts_is_counted(tmp_path):
    long = " ".join(["red"] * 30)
    lines = ["red circle", "", "red  circle", long, "blue square going left"]
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    rewards = "enhance.grpo.rewards=[{kind: pixels, weights: {exposure: 1}}]"
    found = findings(f"enhance.grpo.prompts=[{{kind: list, path: {tmp_path / 'p.txt'}}}]", rewards)
    assert [finding for finding in found.values() if not finding.passed] == []
    said = found["enhance.prompts"].sentence
    assert said.startswith("3 prompts; of 5 that are listed 1 are empty and 1 repeats; ")
    assert "1 are longer than the 20 tokens that the text encoder reads (the longest has " in said
    assert "1 are longer than the captions: they are left as they are, and nothing is learned from them" in said
    assert said.endswith("fewer than enhance.grpo.prompts_per_step=8: a step has some of them twice.")


def test_a_missing_prompt_list_is_found_before_anything_is_rendered(tmp_path):
    found = findings(f"enhance.grpo.prompts=[{{kind: list, path: {tmp_path / 'none.txt'}}}]")
    assert [check for check, finding in found.items() if not finding.passed] == ["enhance.prompts"]
    assert found["enhance.rehearsal"].sentence == "left out until the lines above pass."


def test_a_clip_that_does_not_fit_the_autoencoder_is_answered_with_the_nearest_that_do():
    said = failed("enhance.grpo.frames=16")
    assert list(said) == ["enhance.clips"]
    assert "16 frames do not fit" in said["enhance.clips"]
    assert "use 13 or 17" in said["enhance.clips"]
    assert (
        "13 x 32 x 64 is a latent of "
        in findings("enhance.grpo.frames=13", "enhance.grpo.width=64")["enhance.clips"].sentence
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("enhance.supervised.batch_size=4000000", "enhance.supervised.micro_batch=4000000"), "supervised.micro_batch"),
        (("enhance.grpo.prompts_per_step=1000000", "enhance.grpo.micro_batch=4000000"), "grpo.micro_batch"),
    ],
)
def test_what_does_not_fit_is_not_rehearsed_but_counted(change, key):
    found = findings(*change)
    assert not found["enhance.memory"].passed
    assert f"Lower enhance.{key}, turn on enhance.gradient_checkpointing, use" in found["enhance.memory"].sentence
    assert found["enhance.rehearsal"].sentence.startswith("left out: it would not fit.")
    assert " hours" not in found["enhance.cost"].sentence


def test_a_cache_of_clips_beyond_the_disk_is_found(monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(2**40, 2**39, 2**30))
    assert failed() == {}
    said = failed("enhance.grpo.steps=250")
    assert list(said) == ["enhance.disk"]
    assert "at most 1.6 GiB for the 32,000 clips of GRPO" in said["enhance.disk"]
    assert "or render smaller clips (enhance.grpo.frames, height and width)" in said["enhance.disk"]


def test_what_keeps_a_cpu_busy_for_hours_is_only_counted(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = findings("enhance.grpo.height=256", "enhance.grpo.width=512", "enhance.grpo.sampler.steps=1000")
    assert "left out: a CPU would need about " in found["enhance.rehearsal"].sentence
    assert "enhance.rewards" not in found
    assert " hours" not in found["enhance.cost"].sentence


def test_a_reward_that_breaks_its_contract_is_a_finding(own_reward):
    found = findings(own_reward("holes", "    return {'a': [float('nan')] * len(clips)}"))
    assert [check for check, finding in found.items() if not finding.passed] == ["enhance.rewards"]
    assert "a is nan, outside [0, 1]" in found["enhance.rewards"].sentence
    assert "enhance.cost" not in found


def test_a_reward_that_does_not_load_is_a_finding():
    entry = "{kind: videoalign, path: /no/such, base: /no/such}"
    said = failed(f"enhance.grpo.rewards=[{entry}]")
    assert list(said) == ["enhance.rehearsal"]
    assert "Give a local copy of KwaiVGI/VideoReward" in said["enhance.rehearsal"]


def test_the_rewards_are_asked_about_the_users_own_words(own_reward, tmp_path):
    body = (
        f"    with open({str(tmp_path / 'asked')!r}, 'a') as file:\n"
        "        file.writelines(clip.prompt + '\\n' for clip in clips)\n"
        "    return {'a': [0.5] * len(clips)}"
    )
    (tmp_path / "p.txt").write_text("red circle\nblue square going left\n", encoding="utf-8")
    change = own_reward("notes", body), f"enhance.grpo.prompts=[{{kind: list, path: {tmp_path / 'p.txt'}}}]"
    assert failed(*change) == {}
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 2 * (2 + 2 * 6)  # two clips of the prompts; of two rewrites and the words of each, twice
    assert set(asked) == {"red circle", "blue square going left"}


def test_clips_and_evaluations_are_counted_as_they_are_spent(tmp_path):
    planned = recipe("enhance.grpo.sampler.guidance_interval=[0.0, 0.8]", "enhance.grpo.steps=1")
    assert planned.enhance is not None
    grpo = planned.enhance.grpo
    assert grpo is not None
    assert grpo.sampler is not None
    model, tokenizer = load_language_model("miniature")
    rewriting = Rewriting(model, tokenizer, MINIATURE_MANNER, grpo, context_in(tmp_path / "enhance", planned, ALONE))
    rows = list(chain.from_iterable([prompt] * grpo.group_size for prompt in rewriting.prompts))
    assert rewriting.rollout(model, rows).scores
    studio = rewriting.studio
    assert studio.nfe == studio.rendered * grpo.sampler.evaluations
    assert studio.rendered < grpo.prompts_per_step * grpo.group_size * grpo.clips
    generator = load_model("miniature", device="cpu")
    once = run_battery(generator, planned.battery, planned.sampler, "test").nfe
    sentence = findings("enhance.grpo.sampler.guidance_interval=[0.0, 0.8]")["enhance.cost"].sentence
    assert f"Batteries take {4 * once} more" in sentence


def test_hours_are_those_of_all_rewrites_and_their_clips_over_the_ranks():
    grpo = recipe("enhance.grpo.steps=9").enhance.grpo  # pyright: ignore[reportOptionalMemberAccess]
    assert grpo is not None
    seconds = Seconds(rewrite=2.0, clip=0.5)
    assert seconds.hours(grpo, 4) == pytest.approx(9 * 64 * (2.0 + 2 * 0.5) / 4 / 3600)


def test_the_command_prints_each_line_once_on_two_ranks(tmp_path):
    done = on_ranks(2, "doctor", RECIPE, *overrides(f"runs={tmp_path / 'runs'}"))
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert said.count("pass enhance.cost:") == 1
    assert "2 prompts with 2 rewrites each on each of 2 ranks" in said
    assert "2 ranks x 1 passes x 32" in said
    assert not (tmp_path / "runs").exists()
