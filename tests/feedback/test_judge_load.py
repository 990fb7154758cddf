"""The load benchmark runs and finds every vote; what it measures is kept by hand, never by tests."""

import json
import subprocess
import sys

from command import ROOT
from forks import environment


def test_the_load_benchmark_finds_every_vote_once(tmp_path):
    script = [sys.executable, ROOT / "benchmarks" / "judge_load.py", "--raters", "3", "--votes", "12"]
    script += ["--think", "0.01", "--out", tmp_path / "load.json"]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    [row] = json.loads((tmp_path / "load.json").read_text())["rows"]
    assert (row["sent"], row["kept"], row["lost"], row["doubled"], row["altered"]) == (36, 36, 0, 0, 0)
    assert row["requests"]["POST /api/vote"]["count"] == 36 + 3
    assert "36 of 36 answers kept, 0 lost, 0 doubled" in (tmp_path / "load.md").read_text()
