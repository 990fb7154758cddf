"""The benchmark scripts run; what they measure is kept by hand, never by tests."""

import json
import subprocess
import sys

from command import ROOT, environment


def test_the_gpu_script_measures_every_setting_of_a_tiny_network(tmp_path):
    out = tmp_path / "gpu.json"
    script = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--steps", "1", "--out", out]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [(row["job"], row["checkpointing"]) for row in rows] == [
        ("sft step", True),
        ("sft step", False),
        ("sampling step", False),
    ]
    assert all(row["seconds"] > 0 and row["mfu"] > 0 and not row["note"] for row in rows)


def test_the_throughput_script_compares_the_stage_with_a_bare_loop(tmp_path):
    out = tmp_path / "ratio.json"
    script = [sys.executable, ROOT / "benchmarks" / "sft_throughput.py", "--rounds", "1", "--steps", "1", "--out", out]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["ratio"] > 0
    assert found["stage_seconds_per_step"] > 0
