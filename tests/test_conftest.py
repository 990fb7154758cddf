"""A machine without a browser says so in one line; a machine that must have one fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.filterwarnings("ignore")


def collect_without_chromium(required: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PATH": str(HERE), "REELIGN_REQUIRE_BROWSER": required}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "report/test_browser.py"]
    return subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [("--collect-only",), ("-n", "1")], ids=["alone", "xdist"])
def test_without_chromium_the_browser_tests_are_left_out_in_one_line(options) -> None:
    found = collect_without_chromium("", *options)
    lines = [line for line in found.stdout.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "browser tests: no chromium on the PATH" in lines[0]
    assert "::" not in found.stdout


def test_where_a_browser_is_required_its_absence_is_a_failure() -> None:
    found = collect_without_chromium("1", "--collect-only")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REELIGN_REQUIRE_BROWSER=1, but there is no chromium" in found.stderr
