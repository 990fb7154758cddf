"""The page of a stream in a real browser: it plays, switches, stops, and keeps nothing running when it is left."""

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from reelign.models.base import VideoModel
from streaming import BLUE, RED, Served, causal_miniature, served

pytestmark = pytest.mark.browser
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return causal_miniature()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Opens the page of a server; at the end of the test it may have asked nobody else, and have complained of nothing
    but refusals."""
    complaints: list[str] = []
    contexts = []

    def go(server: Served, width: int = 1200, height: int = 900, **settings) -> Page:
        origin = f"http://127.0.0.1:{server.port}/"
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda it: complaints.append(it.text) if "Failed to load resource" not in it.text else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda it: None if it.url.startswith((origin, "data:")) else complaints.append(it.url))
        page.goto(origin)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def wait_until_shown(page: Page, seconds: float) -> None:
    until = time.monotonic() + 30  # not `wait_for_function`, which the page's policy keeps from evaluating words
    while not (text := page.locator("#length").inner_text())[0].isdigit() or float(text.split()[0]) < seconds:
        assert time.monotonic() < until, text
        page.wait_for_timeout(20)


def test_frames_play_as_they_come_and_the_figures_with_them(model, visit):
    with served(model) as server:
        page = visit(server)
        expect(page.locator("#status")).to_have_text("Ready.")
        assert page.locator("#prompt").input_value() == RED
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#status")).to_have_text("Playing.")
        pictures = []
        for seconds in (0.5, 1.5, 2.5):
            wait_until_shown(page, seconds)
            pictures.append(page.locator("#screen").screenshot())
        assert pictures[0] != pictures[1] != pictures[2]
        assert page.locator("#first").inner_text().endswith(" s")
        assert float(page.locator("#rate").inner_text()) > 0
        assert page.locator("#cache").inner_text().endswith(" MiB")
        assert page.get_by_role("img", name=f"Video: {RED}").count() == 1


def test_another_prompt_shows_in_mid_stream_and_stop_stops(model, visit):
    with served(model) as server:
        page = visit(server)
        page.get_by_role("button", name="Start").click()
        wait_until_shown(page, 0.5)
        page.get_by_label("What the video shows").fill(BLUE)
        page.get_by_role("button", name="Switch prompt").click()
        expect(page.locator("#status")).to_have_text(re.compile(r"The new prompt shows from [0-9.]+ s on\."))
        assert page.locator("#shown").inner_text() == BLUE
        page.get_by_role("button", name="Stop").click()
        assert page.locator("#status").inner_text().startswith("Stopped after ")
        server.wait_for("ready")
        assert page.get_by_role("button", name="Start").evaluate("it => it === document.activeElement")
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#status")).to_have_text("Playing.")
        assert len(server.settings.begun) == 2


def test_keys_alone_are_enough(model, visit):
    with served(model, prompt="") as server:
        page = visit(server)
        for _ in range(10):
            if page.evaluate("document.activeElement.id") == "prompt":
                break
            page.keyboard.press("Tab")
        page.keyboard.type(RED)
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_text("Playing.")
        page.keyboard.press("Escape")
        expect(page.locator("#status")).to_contain_text("Stopped after ")
        server.wait_for("ready")


def test_the_end_of_the_stream_is_told(model, visit):
    with served(model, frames=9) as server:
        page = visit(server)
        page.get_by_role("button", name="Start").click()
        expect(page.locator("#status")).to_have_text("The stream has reached its end, 1.1 s.")
        assert page.locator("#length").inner_text() == "1.1 s"
        assert page.get_by_role("button", name="Start").is_enabled()


def test_a_page_that_is_left_leaves_nothing_running(model, visit):
    with served(model) as server:
        page = visit(server)
        page.get_by_role("button", name="Start").click()
        wait_until_shown(page, 0.5)
        page.close()
        server.wait_for("ready")


def test_what_goes_wrong_is_said(model, visit):
    with served(model, token="sesame", fail_after=5) as server:
        first, second = visit(server), visit(server)
        first.get_by_label("Token").fill("guess")
        first.get_by_role("button", name="Start").click()
        expect(first.locator("#status.bad")).to_have_text("the token is missing or wrong.")
        for page in (first, second):
            page.get_by_label("Token").fill("sesame")
        server.settings.block_seconds = 2.0
        first.get_by_role("button", name="Start").click()
        server.wait_for("busy")
        second.get_by_role("button", name="Start").click()
        expect(second.locator("#status.bad")).to_contain_text("busy: another stream is running here")
        expect(first.locator("#status.bad")).to_have_text("the generator failed: out of memory", timeout=20_000)


def test_a_server_that_goes_away_is_noticed(model, visit):
    with served(model) as server:
        page = visit(server)
        page.get_by_role("button", name="Start").click()
        wait_until_shown(page, 0.5)
    expect(page.locator("#status.bad")).to_have_text("the server was stopped.", timeout=20_000)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#status.bad")).to_have_text("the server cannot be reached.")


@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_nothing_sticks_out_at_the_side(model, visit, width):
    with served(model, prompt="a" * 300) as server:
        page = visit(server, width=width, height=800)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_figure_for_the_eye_is_named_for_the_ear(model, visit, scheme):
    """What a screen reader is told: a polite status, labels of all fields, a name of the picture."""
    with served(model, token="sesame") as server:
        page = visit(server, color_scheme=scheme)
        assert page.get_by_role("status").get_attribute("aria-live") == "polite"
        for label in ("What the video shows", "Seed", "Token"):
            assert page.get_by_label(label).count() == 1
        assert page.get_by_role("img", name="No video yet").count() == 1
        assert page.locator("#prompt").get_attribute("aria-describedby") == "keys"
