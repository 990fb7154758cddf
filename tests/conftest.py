"""Browser tests need the distribution's Chromium: without it they are left out, in one line, unless required."""

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# As every command that a test forks has it, before torch looks: sums depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples at every run, however slow the machine: a test that fails must fail again.
settings.register_profile("reelign", derandomize=True, deadline=None)
settings.load_profile("reelign")
LEFT_OUT = pytest.StashKey[int]()
LONGEST = (
    "test_distill.py",
    "test_rlhf.py",
    "test_wan_recipes.py",
    "test_page.py",
    "test_benchmarks.py",
    "test_dpo.py",
    "test_sft.py",
    "test_enhance.py",
    "test_cli_judge.py",
)
"""Files that take minutes. They begin first: one that begins last keeps all processes but its own waiting."""
MOST_PROCESSES = 8


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """The distribution's own, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        yield browser
        browser.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: a test that waits for a browser or a server leaves its core to another."""
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)) + 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    browser = [item for item in items if item.get_closest_marker("browser")]
    if not browser or shutil.which("chromium"):
        return
    if os.environ.get("REELIGN_REQUIRE_BROWSER") == "1":
        raise pytest.UsageError("REELIGN_REQUIRE_BROWSER=1, but there is no chromium on the PATH: apt install chromium")
    items[:] = [item for item in items if item not in browser]
    config.hook.pytest_deselected(items=browser)
    config.stash[LEFT_OUT] = len(browser)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the process that prints the summary how many it left out."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    config = node.config
    config.stash[LEFT_OUT] = max(config.stash.get(LEFT_OUT, 0), getattr(node, "workeroutput", {}).get("left_out", 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"left out {count} browser tests: no chromium on the PATH (apt install chromium)")
