"""A plan is chosen on one half of the prompts and checked on the other; what it says is obeyed, or refused."""

from pathlib import Path

import pytest
import yaml

from command import reelign
from reelign.errors import ReelignError
from reelign.evaluate.battery import tasks
from reelign.inference.acceleration import Acceleration
from reelign.inference.plan import Search, make_plan
from reelign.inference.plan_file import Plan, Row, Target, export_plan, load_plan, read_plan
from reelign.inference.plan_request import plan_request
from reelign.inference.plan_table import shortfall, table
from reelign.inference.trial import SAME_PSNR, Estimate, Trial, Yardstick
from reelign.models.block_cache import BlockCacheConfig
from reelign.models.load import load_model
from tiny_wan import tiny_wan

TARGET = Target(budget=1000, min_gsb=-1)
"""Seconds a clip that any machine keeps, however busy: what is tested is the plan, not the machine's speed."""


@pytest.fixture(scope="module")
def model():
    return load_model("miniature", device="cpu")


def silent(*_):
    pass


@pytest.fixture(scope="module")
def planned(model, tmp_path_factory):
    """A plan of the miniature: two prompts of each half, six steps."""
    out = tmp_path_factory.mktemp("plan") / "plan.yaml"
    request = plan_request(model, TARGET, count=2, steps=6, kinds=["steps", "guidance", "cache", "offload"])
    return out, make_plan("miniature", model, request, out, silent)


class Told(Yardstick):
    """A yardstick whose figures are given: what is tested is the choice."""

    def __init__(self, model, figures):
        super().__init__(model, plan_request(model, TARGET).sampler, plan_request(model, TARGET).battery, {}, Path())
        self.figures = figures

    def measure(self, acceleration, part, progress, hopeless=None):
        found = self.figures[acceleration.label]
        return trial(*found[part] if isinstance(found, dict) else found)


def trial(speedup, gsb, psnr=30.0):
    given = Estimate(value=gsb, low=gsb - 0.1, high=gsb + 0.1, n=60)
    speed = Estimate(value=speedup, low=speedup, high=speedup, n=12)
    return Trial(
        seconds=1 / speedup,
        plain_seconds=1,
        speedup=speed,
        gsb={"text": given, "overall": given},
        psnr=psnr,
        motion=0.2,
        plain_motion=0.2,
        warm_up=0,
        evaluations=20,
    )


def search(model, figures, target=TARGET):
    found = Search(Told(model, figures), target, silent)
    for label, acceleration in {
        "10 steps": Acceleration(steps=10),
        "8 steps": Acceleration(steps=8),
        "cache taylorseer every 2": Acceleration(cache=BlockCacheConfig(kind="taylorseer", interval=2)),
        "compile": Acceleration(compile=True),
    }.items():
        if label in figures:
            row = Row(kind=acceleration.parts[0], label=label, acceleration=acceleration)
            found.rows.append(row)
            found._measure(row, "validation")
    return found


def test_every_candidate_has_a_row_with_figures_or_a_reason(planned):
    _, plan = planned
    assert all((row.validation is None) == bool(row.refused) for row in plan.rows)
    assert {row.kind for row in plan.rows} >= {"steps", "guidance", "cache", "offload"}
    assert all(row.refused for row in plan.rows if row.kind in ("cache", "offload"))
    header, rows = table(plan)
    assert len(rows) == len(plan.rows)
    assert all(len(row) == len(header) for row in rows)


def test_the_choice_is_predicted_from_prompts_that_had_no_part_in_it(planned):
    _, plan = planned
    chosen = next(row for row in plan.rows if row.acceleration == plan.choice)
    assert chosen.validation is not None
    assert plan.prediction == chosen.test
    assert plan.prediction is not None
    assert plan.prediction.gsb.keys() == {"text", "visual", "motion", "overall"}


def test_fewer_steps_cost_fewer_evaluations_and_give_other_clips(planned):
    _, plan = planned
    rows = {row.label: row.validation for row in plan.rows if row.validation}
    assert rows["3 steps"].evaluations == 6
    assert rows["3 steps"].psnr < SAME_PSNR
    assert rows["guidance in [0.80, 1.00]"].evaluations == 6 + 3  # three of six steps have their guidance


def test_the_plan_is_read_back_as_it_was_written_and_has_a_picture(planned):
    out, plan = planned
    assert read_plan(out) == plan
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_what_changes_nothing_gives_the_same_clips(model, tmp_path):
    request = plan_request(model, TARGET, count=2, steps=2)
    parts = {"test": tasks(request.battery)}
    found = Yardstick(model, request.sampler, request.battery, parts, tmp_path).measure(Acceleration(), "test", silent)
    assert found.psnr == SAME_PSNR
    assert found.motion == found.plain_motion
    assert all(one.value == one.low == one.high == 0 for one in found.gsb.values())


def test_a_cache_that_needs_the_models_magnitudes_is_told_them(model, tmp_path):
    request = plan_request(model, TARGET, count=2, steps=9)
    yardstick = Yardstick(model, request.sampler, request.battery, {"validation": tasks(request.battery)}, tmp_path)
    search = Search(yardstick, TARGET, silent)
    row = Row(kind="cache", label="", acceleration=Acceleration(cache=BlockCacheConfig(kind="mag", threshold=0.1)))
    search._measure(row, "validation")
    assert row.validation is not None
    assert row.acceleration is not None
    assert row.acceleration.cache is not None
    assert len(row.acceleration.cache.ratios) == 9


def test_the_fastest_that_keeps_the_quality_with_its_whole_interval_is_chosen(model):
    """Intervals reach 0.1 to each side, so at a bound of -0.05 an estimate of +0.05 is proven and 0 is not."""
    target = Target(speedup=1.5, min_gsb=-0.05)
    figures = {"10 steps": (2.0, 0.06), "8 steps": (2.5, 0.0), "cache taylorseer every 2": (1.6, 0.2)}
    found = search(model, figures, target).choose()
    assert found is not None
    assert found.label == "10 steps"


def test_where_nothing_is_proven_the_surest_is_chosen(model):
    target = Target(speedup=1.5, min_gsb=-0.05)
    figures = {"10 steps": (2.0, 0.02), "8 steps": (2.5, 0.0), "compile": (1.2, 0.1)}
    found = search(model, figures, target).choose()
    assert found is not None
    assert found.label == "10 steps"


def test_a_choice_that_does_not_hold_on_the_other_half_gives_way_to_the_next(model):
    figures = {"8 steps": {"validation": (2.5, 0.06), "test": (2.5, -0.1)}, "10 steps": (2.0, 0.0)}
    found = search(model, figures, Target(speedup=1.5, min_gsb=-0.05))
    chosen = found.choose()
    assert chosen is not None
    assert chosen.label == "10 steps"
    assert all(row.test is not None for row in found.rows)


def test_what_is_good_alone_is_tried_together_and_what_cannot_be_is_refused(model):
    figures = {
        "10 steps": (2.0, 0.0),
        "8 steps": (2.5, -0.5),
        "cache taylorseer every 2": (1.5, 0.02),
        "compile": (1.2, 0.0),
        "10 steps + cache taylorseer every 2": (2.8, 0.03),
        "10 steps + compile": (2.4, 0.0),
    }
    found = search(model, figures, Target(speedup=1.5, min_gsb=-0.05))
    found.combinations()
    together = {row.label: row for row in found.rows if row.kind == "together"}
    assert together["10 steps + cache taylorseer every 2"].validation is not None
    assert "breaks what is compiled" in together["10 steps + cache taylorseer every 2 + compile"].refused
    assert not any("8 steps" in label for label in together)
    chosen = found.choose()
    assert chosen is not None
    assert chosen.label == "10 steps + cache taylorseer every 2"


def test_clips_far_from_the_plain_ones_are_not_good_where_a_psnr_is_asked_for():
    target = Target(budget=1, min_psnr=20)
    assert target.good(trial(2, 0, psnr=21))
    assert not target.good(trial(2, 0, psnr=19))


def test_an_unreachable_target_is_said_with_the_best_there_is_and_everything_is_written(model, tmp_path):
    request = plan_request(model, Target(speedup=90, min_gsb=-1), count=2, steps=3, kinds=["steps"])
    plan = make_plan("miniature", model, request, tmp_path / "plan.yaml", silent)
    assert plan.choice is None
    assert "nothing is 90x faster at GSB >= -1: the fastest of all is" in shortfall(plan)
    assert len(read_plan(tmp_path / "plan.yaml").rows) == 1
    with pytest.raises(ReelignError, match="found nothing 90x faster"):
        load_plan(tmp_path / "plan.yaml", "miniature")


def test_a_model_of_another_world_is_planned_on_a_list_of_prompts(tmp_path):
    wan, listed = tiny_wan(tmp_path / "wan"), tmp_path / "prompts.txt"
    listed.write_text("a dog\na cat\na horse\na cow\n")
    model, size = load_model(wan, device="cpu"), (5, 32, 32)
    with pytest.raises(ReelignError, match="give prompts with --prompts LIST"):
        plan_request(model, TARGET, size=size)
    request = plan_request(model, TARGET, listed, size=size, steps=3, kinds=["steps"])
    assert (request.battery.validation_count, request.battery.count, request.target.min_psnr) == (2, 2, 20.0)
    plan = make_plan(str(wan), model, request, tmp_path / "plan.yaml", silent)
    assert plan.judge == "pixels"
    assert plan.rows[0].validation is not None
    assert "steadiness" in plan.rows[0].validation.gsb


def test_halves_that_share_prompts_are_refused(tmp_path):
    wan, listed = tiny_wan(tmp_path / "wan"), tmp_path / "prompts.txt"
    listed.write_text("a dog\na cat\na horse\na cow\n")
    model = load_model(wan, device="cpu")
    request = plan_request(model, TARGET, listed, size=(5, 32, 32), steps=3)
    shared = request.model_copy(update={"battery": request.battery.model_copy(update={"count": 3})})
    with pytest.raises(ReelignError, match="'a horse' is in both"):
        make_plan(str(wan), model, shared, tmp_path / "plan.yaml", silent)


def test_what_is_hopeless_after_some_clips_is_given_up(model, tmp_path, monkeypatch):
    monkeypatch.setattr("reelign.inference.trial.LOOK", 2)
    request = plan_request(model, TARGET, count=4, steps=2)
    yardstick = Yardstick(model, request.sampler, request.battery, {"test": tasks(request.battery)}, tmp_path)
    found = yardstick.measure(Acceleration(steps=1), "test", silent, lambda trial: trial.psnr < SAME_PSNR)
    assert found.overall.n == 2
    assert yardstick.measure(Acceleration(), "test", silent, lambda trial: trial.psnr < SAME_PSNR).overall.n == 4


@pytest.mark.parametrize(("budget", "speedup"), [(None, None), (1.0, 2.0)])
def test_one_speed_is_asked_for(budget, speedup):
    with pytest.raises(ReelignError, match="give --budget, the seconds a clip may take, or --speedup"):
        Target.asked(budget, speedup, -0.05, None)


@pytest.mark.parametrize("text", ["model: [", "model: miniature", "[]", "\x00"])
def test_a_damaged_plan_is_named(tmp_path, text):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ReelignError, match=r"plan\.yaml"):
        read_plan(tmp_path / "plan.yaml")


def test_a_plan_of_other_weights_is_refused_and_of_another_machine_or_size_doubted(planned, model, tmp_path):
    out, plan = planned
    with pytest.raises(ReelignError, match=r"was made for miniature, and .* has other weights"):
        load_plan(out, str(tiny_wan(tmp_path / "wan")))
    assert plan.concerns(model, (None, None, None)) == []
    elsewhere = plan.model_copy(update={"device": "NVIDIA H100"})
    [speed, size] = elsewhere.concerns(model, (33, None, None))
    assert "measured on NVIDIA H100" in speed
    assert "17 frames of 32 x 32 and this clip has 33 frames" in size


def test_a_plan_goes_with_the_exported_model(planned, tmp_path):
    """The folder stands for an export, whose merged weights are not those of the artifact."""
    out, plan = planned
    exported = tiny_wan(tmp_path / "exported")
    export_plan(out, "miniature", exported)
    assert load_plan(exported / "plan.yaml", str(exported)).choice == plan.choice


def test_generate_obeys_a_plan(planned, tmp_path):
    _, plan = planned
    written: Plan = plan.model_copy(update={"choice": Acceleration(steps=3, guidance_interval=(0.0, 0.0))})
    written.save(tmp_path / "plan.yaml")
    prompt = ("generate", "miniature", "a red circle moves left", "--plan", tmp_path / "plan.yaml")
    done = reelign(*prompt, "--out", tmp_path / "clip.mp4")
    assert done.returncode == 0, done.stderr
    assert "3 network evaluations" in done.stdout
    refused = reelign(*prompt, "--steps", "4")
    assert refused.returncode == 1
    assert "leave out --steps" in refused.stderr


def test_the_command_writes_a_plan_and_fails_where_nothing_is_fast_enough(tmp_path):
    small = ("plan", "miniature", "--count", "2", "--steps", "3", "--only", "steps", "--min-gsb", "-1")
    done = reelign(*small, "--budget", "1000", "--out", tmp_path / "plan.yaml")
    assert done.returncode == 0, done.stderr
    assert "chosen: 2 steps. On prompts that had no part in the choice" in done.stdout
    assert yaml.safe_load((tmp_path / "plan.yaml").read_text())["choice"]["steps"] == 2
    slow = reelign(*small, "--budget", "0.000001", "--out", tmp_path / "slow.yaml")
    assert slow.returncode == 1
    assert "nothing is 1e-06 s a clip" in slow.stderr
    assert (tmp_path / "slow.yaml").exists()
    assert "give --budget" in reelign("plan", "miniature").stderr


def test_a_missing_model_is_an_error(tmp_path):
    done = reelign("plan", tmp_path / "nothing", "--speedup", "2")
    assert done.returncode == 1
    assert "there is no model" in done.stderr
