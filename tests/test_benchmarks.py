"""The benchmark scripts run; what they measure is kept by hand, never by tests."""

import json
from pathlib import Path

import pytest

from command import ROOT
from forks import run_script

BENCHMARKS = ROOT / "benchmarks"


def gpu_rows(out: Path, *settings: str) -> list[dict]:
    small = ("--tiny", "--steps", "1", "--matches", "1")
    done = run_script(BENCHMARKS / "gpu.py", *small, "--out", out, *settings)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())["rows"]


def test_the_gpu_script_measures_every_setting_of_a_tiny_network(tmp_path):
    """In RL, groups branch at step 4.5 of 20 in the mean: 5.5 evaluations before, 14.5 a clip after, 1 to replay."""
    rows = gpu_rows(tmp_path / "gpu.json", "--group", "2")
    network, rl, streams, updates = rows[:3], rows[3:7], rows[7:13], rows[13:]
    assert not [row for row in rows if row["note"]]
    assert all(row["seconds"] > 0 for row in [*network, *rl, *updates])
    assert [(row["job"], row["checkpointing"]) for row in network] == [
        ("sft step", True),
        ("sft step", False),
        ("sampling step", False),
    ]
    assert all(row["mfu"] > 0 for row in network)
    assert [(row["preset"], row["guidance"], row["network_evaluations"]) for row in rl] == [
        ("reelign", "both", 2 * 2 * (5.5 + 14.5 * 2 + 1)),
        ("reelign", "none", 2 * (5.5 + 14.5 * 2 + 1)),
        ("flow-grpo", "both", 2 * 2 * 2 * (20 + 19)),
        ("flow-grpo", "none", 2 * 2 * (20 + 19)),
    ]
    for row in rl:
        assert 0 < sum(row[phase] for phase in ("rollout", "decode", "reward", "update")) <= row["seconds"]
        assert row["clips_per_gpu_hour"] == 3600 * 4 / row["seconds"]
        assert row["ratio_drift"] < 1e-3
    assert [(row["sampler"], row["window"], row["compiled"]) for row in streams] == [
        (sampler, window, compiled)
        for sampler, window in (("causal", None), ("causal", 9), ("bidirectional", None))
        for compiled in (False, True)
    ]
    for row in streams:
        assert 0 < row["first_frame"] <= row["denoise"] + row["decode"]
        assert row["fps"] == pytest.approx(21 / (row["denoise"] + row["decode"]))
        assert 0 < row["attention_share"] < 1
        assert (row["graphs"] or 0) >= row["compiled"]
    assert [(row["method"], row["part"], row["window"]) for row in updates] == [
        (method, part, window)
        for method in ("full", "lora")
        for part, window in (("few_step", None), ("self_forcing", None), ("self_forcing", 9))
    ]
    for row in updates:
        assert 5 * row["critic_step"] + row["student_step"] <= row["seconds"]


def test_the_gpu_script_measures_only_what_is_asked_for(tmp_path):
    assert [row["job"] for row in gpu_rows(tmp_path / "gpu.json", "--only", "sampling", "5x32x32")] == ["sampling step"]


def test_the_throughput_script_compares_the_stage_with_a_bare_loop(tmp_path):
    out = tmp_path / "ratio.json"
    done = run_script(BENCHMARKS / "sft_throughput.py", "--rounds", "1", "--steps", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["ratio"] > 0
    assert found["stage_seconds_per_step"] > 0


def test_the_slices_script_compares_slices_with_the_whole_batch(tmp_path):
    out = tmp_path / "slices.json"
    done = run_script(BENCHMARKS / "slices.py", "--batches", "2", "9", "--rounds", "2", "--steps", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    for rows, other in ((found["rows"], "whole_seconds"), (found["blocks"], "eight_rows_seconds")):
        assert [row["batch"] for row in rows] == [2, 9]
        assert all(row["ratio"] > 0 and row["slices_seconds"] > 0 and row[other] > 0 for row in rows)


def test_the_plan_script_writes_a_row_for_each_seed(tmp_path):
    out = tmp_path / "plan.json"
    small = ["--seeds", "0", "--count", "2", "--fresh", "2", "--only", "steps", "--runs", tmp_path, "--out", out]
    done = run_script(BENCHMARKS / "plan.py", *small)
    assert done.returncode == 0, done.stderr
    assert [row["seed"] for row in json.loads(out.read_text())["rows"]] == [0]
    head, rule, row = out.with_suffix(".md").read_text().splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
