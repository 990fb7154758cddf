"""What a user may name as an entrant."""

import json

import pytest
import yaml

from reelign.data.clip import read_clip, write_clip
from reelign.data.manifest import KEPT_COLUMNS, MANIFEST, write_table
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig, run_battery
from reelign.feedback.sources import distinct, entrant_of, name_of, new_study, read_battery
from reelign.feedback.study import StudySettings, open_study
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from studies import moving
from tiny_wan import tiny_wan

BATTERY = BatteryConfig(count=3, validation_count=2, keep_clips=3)
FAST = SampleConfig(steps=2, guidance_scale=1.0)
SETTINGS = StudySettings(gold=0, repeats=0)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The miniature's evaluation with its clips, sampled in haste."""
    folder = tmp_path_factory.mktemp("evaluated")
    run_battery(load_model("miniature", device="cpu"), BATTERY, FAST, folder=folder).save(folder / "evaluation.json")
    return folder


def dataset(folder, captions):
    rows = []
    for number, caption in enumerate(captions):
        write_clip(folder / f"clips/{number}.mp4", moving(number), 8)
        rows.append({"id": str(number), "path": f"clips/{number}.mp4", "caption": caption, "fps": 8.0})
    write_table(folder / MANIFEST, rows, KEPT_COLUMNS)
    return folder


def test_an_evaluation_and_a_model_that_is_sampled_now_have_the_same_prompts_and_seeds(evaluated, tmp_path):
    kept = entrant_of(str(evaluated), "kept", BATTERY, FAST, tmp_path)
    sampled = entrant_of("miniature", "sampled", BATTERY, FAST, tmp_path)
    assert [(clip.prompt_id, clip.prompt, clip.seed) for clip in kept.clips] == [
        (clip.prompt_id, clip.prompt, clip.seed) for clip in sampled.clips
    ]
    for one, other in zip(kept.clips, sampled.clips, strict=True):  # the same model and noise: the same clip
        assert abs(read_clip(one.file).frames.astype(int) - read_clip(other.file).frames).mean() < 2


def test_a_model_makes_clips_of_its_own_size_where_the_battery_names_none(tmp_path):
    """A tiny Wan whose card says 9 x 32 x 48 at 16 fps; the miniature's battery has 17 x 32 x 32 at 8."""
    tiny_wan(tmp_path / "wan")
    size = {"frames": 9, "height": 32, "width": 48, "fps": 16.0}
    (tmp_path / "wan" / "card.json").write_text(json.dumps({"kind": "full", "native_size": size}))
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    battery, _ = read_battery(tmp_path / "prompts.txt")
    found = entrant_of(str(tmp_path / "wan"), "wan", battery, FAST, tmp_path / "own")
    clip = read_clip(found.clips[1].file)
    assert (clip.frames.shape, clip.fps) == ((9, 32, 48, 3), 16.0)
    smaller = battery.model_validate(battery.model_dump(exclude_unset=True) | {"frames": 5})
    found = entrant_of(str(tmp_path / "wan"), "wan", smaller, FAST, tmp_path / "smaller")
    assert read_clip(found.clips[1].file).frames.shape == (5, 32, 48, 3)


def test_a_new_study_is_made_of_a_model_and_an_evaluation(evaluated, tmp_path):
    (tmp_path / "b.yaml").write_text(yaml.safe_dump({"battery": {"count": 3}, "sampler": {"steps": 2}, "name": "x"}))
    told = []
    links = new_study(
        ["miniature", str(evaluated)],
        tmp_path / "b.yaml",
        tmp_path / "study",
        2,
        SETTINGS,
        progress=lambda *said: told.append(said),
    )
    made = open_study(tmp_path / "study")
    assert [name for name, _ in links] == ["rater-1", "rater-2"]
    assert made.entrants == ("miniature", name_of(str(evaluated)))
    assert len(made.store.pairs()) == 3
    assert told[0] == ("sample miniature", 3, 3, "")
    assert told[-1] == ("write clips", 3, 3, "")


def test_folders_of_captioned_clips_take_part_and_a_prompt_may_come_twice(tmp_path):
    one, two = (dataset(tmp_path / name, ["a dog", "a cat", "a dog"]) for name in ("one", "two"))
    links = new_study([str(one), str(two)], None, tmp_path / "study", ["ann"], SETTINGS)
    assert [name for name, _ in links] == ["ann"]
    assert sorted(pair.prompt for pair in open_study(tmp_path / "study").store.pairs()) == ["a cat", "a dog", "a dog"]
    three = dataset(tmp_path / "three", ["a dog", "a cat", " "])
    with pytest.raises(ReelignError, match=r"1 clips have no caption, the first is clips/2\.mp4"):
        new_study([str(one), str(three)], None, tmp_path / "other", ["ann"], SETTINGS)


def test_an_evaluation_without_clips_says_what_to_do(evaluated, tmp_path):
    (tmp_path / "evaluation.json").write_text((evaluated / "evaluation.json").read_text())
    with pytest.raises(ReelignError, match=r"lacks 3 of its clips"):
        entrant_of(str(tmp_path), "x", BATTERY, FAST, tmp_path)
    text = (evaluated / "evaluation.json").read_text()
    for name in [item.name for item in (evaluated / "samples").iterdir()]:
        text = text.replace(f'"samples/{name}"', "null")
    (tmp_path / "evaluation.json").write_text(text)
    with pytest.raises(ReelignError, match=r"kept no clips: evaluate again with `battery\.keep_clips`"):
        entrant_of(str(tmp_path), "x", BATTERY, FAST, tmp_path)


def test_a_battery_is_read_from_a_recipe_or_from_a_list_of_prompts(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"model": "miniature", "battery": {"count": 7}}))
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n")
    assert read_battery(tmp_path / "recipe.yaml") == (BatteryConfig(count=7), None)
    listed, sampler = read_battery(tmp_path / "prompts.txt")
    assert (listed.judge, listed.prompts, listed.count, sampler) == ("pixels", tmp_path / "prompts.txt", 2, None)
    assert read_battery(None) == (BatteryConfig(), None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("battery: {cuont: 3}", r"battery\.cuont: Extra inputs"),
        ("battery: {count: many}", r"battery\.count: .* \(given: 'many'\)"),
        ("sampler: {steps: 3}", "names no battery"),
        ("battery: {}\nsampler: {steps: 0}", r"sampler\.steps"),
        ("battery: [", "not a readable YAML file"),
    ],
)
def test_a_battery_that_cannot_be_read_names_the_key(tmp_path, text, said):
    (tmp_path / "b.yaml").write_text(text)
    with pytest.raises(ReelignError, match=said):
        read_battery(tmp_path / "b.yaml")


def test_entrants_are_called_by_their_run_and_stage_and_never_the_same(tmp_path):
    for place in ("runs/demo/sft/model", "runs/demo/rlhf/model"):
        (tmp_path / place).mkdir(parents=True)
    assert name_of(str(tmp_path / "runs/demo/sft/model")) == "demo/sft"
    assert name_of("miniature") == "miniature"
    assert name_of("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (3)", "a (2)", "a (4)"]


def test_raters_need_names_of_their_own_and_sources_must_be_something(tmp_path):
    for raters in ([], 0, ["ann", "ann"]):
        with pytest.raises(ReelignError, match="a study needs at least one rater"):
            new_study(["miniature", "miniature"], None, tmp_path / "study", raters, SETTINGS)
    with pytest.raises(ReelignError, match="there is no model 'nothing'"):
        new_study(["nothing", "miniature"], None, tmp_path / "study", 1, SETTINGS)
    assert not (tmp_path / "study").exists()
