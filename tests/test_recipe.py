"""A recipe says everything about a run, and a slip in it is answered with the key and the nearest one."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from command import DEMO, ROOT
from reelign.errors import ReelignError
from reelign.recipe import Recipe, dump_recipe, load_recipe, parse_settings
from reelign.sampling.sample import SampleConfig

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def refusal(*overrides: str) -> str:
    with pytest.raises(ReelignError) as refused:
        load_recipe(DEMO, overrides)
    return str(refused.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_ships_loads_and_comes_back_from_what_a_run_writes(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.name == path.stem


def test_overrides_survive_in_the_resolved_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(DEMO, ["sft.optim.betas=[0.8, 0.9]", "sft.method=lora", "seed=3", "runs=/elsewhere", "name=x"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    found = load_recipe(tmp_path / "recipe.yaml")
    assert found == recipe
    assert found.folder == Path("/elsewhere/x")
    assert found.sft is not None
    assert (found.sft.optim.betas, found.sft.method, found.seed) == ((0.8, 0.9), "lora", 3)


@pytest.mark.parametrize(
    ("override", "path", "near"),
    [
        ("sede=1", "sede", "seed"),
        ("sft.stpes=3", "sft.stpes", "steps"),
        ("sft.optim.learning_rat=1", "sft.optim.learning_rat", None),
        ("sft.optim.warmup=1", "sft.optim.warmup", "warmup_steps"),
        ("sft.lora.rnak=1", "sft.lora.rnak", "rank"),
        ("sampler.guidance=1", "sampler.guidance", "guidance_scale"),
        ("battery.cuont=4", "battery.cuont", "count"),
        ("curate.config.worker=4", "curate.config.worker", "workers"),
        ("Sft=1", "Sft", "sft"),
        ("sft.Steps=1", "sft.Steps", "steps"),
        ("sft.data.0.cnt=4", "sft.data.0.cnt", "count"),
        ("sft.data.1.helt_out=0.1", "sft.data.1.helt_out", "held_out"),
        ("sft.data.1.buckets=[{frames: 17, height: 32, widht: 32}]", "sft.data.1.buckets.0.widht", "width"),
    ],
)
def test_an_unknown_key_is_answered_with_its_path_and_the_nearest_key(
    override: str, path: str, near: str | None
) -> None:
    said = refusal(override)
    assert str(DEMO) in said
    hint = f"did you mean `{near}`?" if near else "valid keys here: betas, eps, lr, max_grad_norm"
    assert f"  {path}: unknown key; {hint}" in said


def test_a_key_of_the_other_kind_of_source_is_not_offered() -> None:
    """`held_out` belongs to datasets; the miniature has no such key."""
    said = "sft.data.0.held_out: unknown key; valid keys here: count, defects, kind, kinds, seed, strength."
    assert said in refusal("sft.data.0.held_out=0.1")


def test_every_mistake_is_named_at_once() -> None:
    said = refusal("sft.stpes=3", "sft.batch_size=many", "seed=-1")
    assert all(path in said for path in ("sft.stpes:", "sft.batch_size:", "seed:"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.steps=many", ["sft.steps", "integer", "'many'"]),
        ("sft.steps=0", ["sft.steps", "greater than or equal to 1", "0"]),
        ("sft.optim.lr=-1", ["sft.optim.lr", "greater than 0"]),
        ("sft.ema_decay=1.0", ["sft.ema_decay", "less than 1"]),
        ("sft.method=qlora", ["sft.method", "'full' or 'lora'", "'qlora'"]),
        ("sft.data=[]", ["sft.data", "at least 1 item"]),
        ("sft.data.0.kind=video", ["sft.data.0", "'video'", "'miniature', 'dataset'"]),
        ("sft.data.0.count=few", ["sft.data.0.count", "'few'"]),
        ("sft.track=[tensorbord]", ["sft.track.0", "'tensorboard' or 'wandb'"]),
        ("dtype=float16", ["dtype", "float32|bfloat16"]),
        ("name=../up", ["name", "'../up'"]),
        ("sampler=fast", ["sampler", "'fast'"]),
        ("model=null", ["model", "string"]),
        ("battery.judge=pixels", ["battery", "needs `prompts`"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_key_and_what_was_given(override: str, words: list[str]) -> None:
    said = refusal(override)
    assert all(word in said for word in words), said


def test_overrides_are_yaml_and_reach_into_lists() -> None:
    recipe = load_recipe(
        DEMO, ["sft.data.0.count=7", "sft.data.1={kind: miniature, count: 9}", "curate=null", "sft.optim.lr=2e-4"]
    )
    assert recipe.sft is not None
    assert [source.count for source in recipe.sft.data] == [7, 9]  # type: ignore[union-attr]
    assert recipe.curate is None
    assert recipe.sft.optim.lr == 2e-4
    assert recipe.sft.optim.warmup_steps == 20


def test_of_two_overrides_of_one_key_the_last_counts() -> None:
    assert load_recipe(DEMO, ["seed=1", "seed=2"]).seed == 2


def test_an_override_makes_the_parts_that_a_recipe_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("{name: a, model: miniature, battery: null}", encoding="utf-8")
    recipe = load_recipe(tmp_path / "short.yaml", ["battery.count=4", "sampler.steps=3"])
    assert (recipe.battery.count, recipe.sampler.steps, recipe.sft) == (4, 3, None)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sft.steps"], "not of the form key.path=value"),
        (["=4"], "not of the form key.path=value"),
        (["sft.data=[{kind"], "is not YAML"),
        (["seed.more=1"], "cannot go below `seed`"),
        (["sft.data.0.count.more=1"], "cannot go below `sft.data.0.count`"),
        (["sft.lora.targets=[to_q]", "sft.lora.targets.0.more=1"], "cannot go below `sft.lora.targets.0`"),
        (["sft.data.2.count=1"], "`sft.data.2`: the list has 2 items"),
        (["sft.data.first.count=1"], "`sft.data.first`: the list has 2 items"),
        (["sft.data.5=1"], "`sft.data.5`: the list has 2 items"),
    ],
)
def test_an_override_that_leads_nowhere_says_where_it_stopped(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no recipe"),
        ("- a\n- b\n", "holds no recipe"),
        ("name: [a", "not a readable YAML"),
        ("name: a\n\tmodel: b", "not a readable YAML"),
        ("{}", "name: Field required"),
        ("{name: a}", "model: Field required"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_name(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ReelignError, match=words) as refused:
        load_recipe(path)
    assert str(path) in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ReelignError, match=r"mine\.yaml is not a readable YAML file"):
        load_recipe(tmp_path / "mine.yaml")


def test_a_missing_recipe_names_those_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ReelignError, match=r"there is no recipe .*dmeo\.yaml.*demo\.yaml"):
        load_recipe(DEMO.with_name("dmeo.yaml"))
    with pytest.raises(ReelignError, match="Is the working directory the right one"):
        load_recipe(tmp_path / "none" / "demo.yaml")


def test_settings_alone_make_a_config_with_the_same_errors() -> None:
    assert parse_settings(SampleConfig, ["steps=4", "solver=euler"]) == SampleConfig(steps=4, solver="euler")
    with pytest.raises(ReelignError, match=r"stesp: unknown key; did you mean `steps`\?"):
        parse_settings(SampleConfig, ["stesp=4"])
    with pytest.raises(ReelignError, match=r"steps: .*'x'"):
        parse_settings(SampleConfig, ["steps=x"])


def described(model: Any, path: str = "") -> list[str]:
    return [f"{path}{name}" for name, field in model.model_fields.items() if not field.description]


def test_every_key_at_the_top_is_described() -> None:
    assert described(Recipe) == []
    assert yaml.safe_load(DEMO.read_text(encoding="utf-8")).keys() <= Recipe.model_fields.keys()
