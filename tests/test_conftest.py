"""A machine without a browser says so in one line; a machine that must have one fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def collect_without_chromium(folder: Path, required: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Collect a browser test under this suite's own settings and hooks, without importing what the others need."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "test_page.py").write_text("import pytest\n\n@pytest.mark.browser\ndef test_it():\n    pass\n")
    environment = os.environ | {"PATH": str(folder), "REELIGN_REQUIRE_BROWSER": required}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # those that are not needed here take seconds to start
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", *options, "test_page.py"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [("--collect-only",), ("-n", "1")], ids=["alone", "xdist"])
def test_without_chromium_the_browser_tests_are_left_out_in_one_line(tmp_path, options) -> None:
    found = collect_without_chromium(tmp_path, "", *options)
    lines = [line for line in found.stdout.splitlines() if "left out" in line]
    assert len(lines) == 1
    assert "browser tests: no chromium on the PATH" in lines[0]
    assert "::" not in found.stdout


def test_where_a_browser_is_required_its_absence_is_a_failure(tmp_path) -> None:
    found = collect_without_chromium(tmp_path, "1", "--collect-only")
    assert found.returncode == pytest.ExitCode.USAGE_ERROR
    assert "REELIGN_REQUIRE_BROWSER=1, but there is no chromium" in found.stderr
