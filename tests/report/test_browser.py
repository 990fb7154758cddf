"""The page in a real browser: quiet, in lock-step, on a phone and in the dark."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from reelign.report.page import build_report

pytestmark = pytest.mark.browser
FPS, FRAMES = 8.0, 17
Open = Callable[..., Page]


@pytest.fixture
def open_page(run: Path, chromium: Browser) -> Iterator[Open]:
    """Opens the report from disk; at the end of the test no message and no request may have come."""
    address = build_report(run).as_uri()
    complaints: list[str] = []
    contexts = []

    def visit(width: int = 1280, height: int = 2400, **settings: Any) -> Page:
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: note_request(request.url))
        page.goto(address)
        return page

    def note_request(url: str) -> None:
        if url != address and not url.startswith(("data:", "blob:")):
            complaints.append(f"request to {url}")

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def times(page: Page) -> list[float]:
    return page.evaluate("[...document.querySelectorAll('video')].map((video) => video.currentTime)")


def wait_until_playing(page: Page) -> None:
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => !v.paused && v.currentTime > 0.2)")


def wait_until_at(page: Page, frame: int) -> None:
    condition = f"(video) => !video.seeking && Math.abs(video.currentTime - {(frame + 0.5) / FPS}) < 0.05"
    page.wait_for_function(f"[...document.querySelectorAll('video')].every({condition})")


def test_all_clips_play_in_lock_step(open_page: Open) -> None:
    page = open_page()
    wait_until_playing(page)
    seen = []
    for _ in range(12):
        now = times(page)
        assert len(now) == 6
        assert max(now) - min(now) < 1 / FPS
        seen.append(now[0])
        page.wait_for_timeout(60)
    assert len(set(seen)) > 6


def test_the_clips_start_again_together_when_they_end(open_page: Open) -> None:
    page = open_page()
    page.locator("#speed").select_option("2")
    wait_until_playing(page)
    page.wait_for_function("document.querySelector('video').currentTime > 1.5")
    page.wait_for_function("[...document.querySelectorAll('video')].every((v) => v.currentTime < 1 && !v.paused)")
    now = times(page)
    assert max(now) - min(now) < 1 / FPS


def test_pause_step_and_seek_move_all_clips_to_the_same_frame(open_page: Open) -> None:
    page = open_page()
    wait_until_playing(page)
    page.locator("#play").click()
    assert page.locator("#play").inner_text() == "Play"
    page.locator("#seek").fill("0")
    wait_until_at(page, 0)
    page.locator("#back").click()
    wait_until_at(page, FRAMES - 1)
    page.locator("#forward").click()
    page.locator("#forward").click()
    wait_until_at(page, 1)
    assert page.locator("#where").inner_text() == f"2 / {FRAMES}"
    assert page.locator("#seek").get_attribute("aria-valuetext") == f"frame 2 of {FRAMES}"
    page.locator("#play").click()
    wait_until_playing(page)


def test_the_picture_on_screen_is_that_of_the_frame(open_page: Open) -> None:
    page = open_page()
    page.locator("#seek").fill("9")
    wait_until_at(page, 9)
    # The square's left edge is at pixel 1 + frame: the first pixel of row 15 that is clearly brighter than the ground.
    edges = page.evaluate("""() => [...document.querySelectorAll("video")].map((video) => {
      const canvas = new OffscreenCanvas(32, 32), context = canvas.getContext("2d");
      context.drawImage(video, 0, 0);
      const row = context.getImageData(0, 15, 32, 1).data;
      return [...Array(32).keys()].find((x) => row[4 * x] + row[4 * x + 1] + row[4 * x + 2] > 160);
    })""")
    assert edges == [10] * 6


def test_the_speed_is_that_of_all_clips(open_page: Open) -> None:
    page = open_page()
    page.locator("#speed").select_option("0.25")
    wait_until_playing(page)
    rates = page.evaluate("[...document.querySelectorAll('video')].map((video) => video.playbackRate)")
    # A clip that strays is nudged by up to a quarter of the pace.
    assert all(0.18 <= rate <= 0.32 for rate in rates)


def test_who_prefers_less_motion_starts_with_standing_pictures(open_page: Open) -> None:
    page = open_page(reduced_motion="reduce")
    wait_until_at(page, 0)
    assert page.locator("#play").inner_text() == "Play"


def test_clips_out_of_sight_rest(open_page: Open) -> None:
    page = open_page(height=300)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_function("[...document.querySelectorAll('video')].every((video) => video.paused)")


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_sticks_out_at_the_side(open_page: Open, width: int) -> None:
    page = open_page(width=width, height=800)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1280])
def test_enhancement_fits_the_page_and_its_clips_play_with_the_others(
    enhanced: Path, open_page: Open, width: int
) -> None:
    page = open_page(width=width, height=8000)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#seek").fill("9")
    wait_until_at(page, 9)
    assert len(times(page)) == 12


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_feedback_fits_the_page(asked: Path, open_page: Open, width: int) -> None:
    page = open_page(width=width, height=800)
    assert page.get_by_role("heading", name="Human feedback").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_bin_of_the_reliability_diagram_lies_where_its_numbers_say(asked: Path, open_page: Open) -> None:
    page = open_page()
    places = page.evaluate("""() => [...document.querySelector(".relia").querySelectorAll("i")].map((dot) => {
      const box = dot.parentElement.getBoundingClientRect(), own = dot.getBoundingClientRect();
      return [(own.x + own.width / 2 - box.x) / box.width, (box.bottom - own.y - own.height / 2) / box.height];
    })""")
    assert places == [pytest.approx([0.2, 0.25], abs=0.02), pytest.approx([0.9, 1.0], abs=0.02)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_feedback_stands_out_from_its_ground_by_day_and_by_night(asked: Path, open_page: Open, scheme: str) -> None:
    for front, back, words in open_page(color_scheme=scheme).evaluate(WORDS_AND_GROUNDS):
        bright, dim = sorted((luminance(front), luminance(back)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (words, front, back)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground_by_day_and_by_night(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    ground = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert ground > 0.7 if scheme == "light" else ground < 0.05
    pairs = page.evaluate(WORDS_AND_GROUNDS)
    assert len(pairs) > 80
    for front, back, words in pairs:
        bright, dim = sorted((luminance(front), luminance(back)), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (words, front, back)  # WCAG 2.2, level AA


WORDS_AND_GROUNDS = """() => {
  const speaks = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const clear = (element) => getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)";
  return [...document.querySelectorAll("body *")].filter((it) => speaks(it) && it.checkVisibility()).map((element) => {
    let ground = element;
    while (clear(ground) && ground.parentElement) ground = ground.parentElement;
    const words = element.textContent.trim().slice(0, 40);
    return [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor, words];
  });
}"""


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
