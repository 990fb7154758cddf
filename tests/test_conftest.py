"""A machine without a browser says so in one line; a machine that must have one fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore")


def collect_without_chromium(required: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(HERE), "REELIGN_REQUIRE_BROWSER": required}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "report/test_browser.py"]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)


def test_without_chromium_the_browser_tests_are_left_out_in_one_line() -> None:
    found = collect_without_chromium(required="")
    lines = [line for line in found.stdout.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "browser tests: no chromium on the PATH" in lines[0]
    assert "::" not in found.stdout


def test_where_a_browser_is_required_its_absence_is_a_failure() -> None:
    found = collect_without_chromium(required="1")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REELIGN_REQUIRE_BROWSER=1, but there is no chromium" in found.stderr
