"""The benchmark of the intervals runs; what it measured with thousands of studies is kept by hand."""

import json
import subprocess
import sys

from command import ROOT, environment


def test_the_benchmark_measures_every_interval_at_every_size_and_writes_both_files(tmp_path):
    script = [sys.executable, ROOT / "benchmarks" / "vote_statistics.py", "--studies", "6", "--out", tmp_path / "found"]
    done = subprocess.run(script, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["coverage"]) == 4 * 8
    assert all(0 <= row["coverage"] <= 1 and row["mean_width"] > 0 for row in found["coverage"])
    assert [row["points"] for row in found["power"]] == [10, 20]
    assert (tmp_path / "found.md").read_text() == done.stdout
