"""The page in a real browser, against the real server: votes by keys and by touch, two clips in lock-step, a connection
that comes and goes, and what a screen reader is told.

The clips bear the number of each frame in Gray code, so that a test can read from the pixels which frame is seen.
"""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from reelign.data.clip import write_clip
from reelign.feedback.app import application
from reelign.feedback.ballot import Choice
from reelign.feedback.door import RATER, Rate
from reelign.feedback.entrants import Entrant, Sample
from reelign.feedback.study import Study, StudySettings, add_raters, make_study
from reelign.feedback.vote import AXES, Vote

pytestmark = pytest.mark.browser
NAMES = ("walrus-sft", "walrus-dpo", "walrus-base")
FRAMES, FPS, BITS = 49, 24, 6
CHOICES: tuple[Choice, ...] = ("left", "same", "right")
SEEN = """async (milliseconds) => {
  const number = (canvas) => {
    const data = canvas.getContext("2d").getImageData(0, canvas.height / 4, canvas.width, 1).data;
    let gray = 0, number = 0;
    for (let bit = 0; bit < 6; bit++) gray |= (data[4 * Math.floor((bit + 0.5) * canvas.width / 6)] > 127) << bit;
    for (; gray; gray >>= 1) number ^= gray;
    return number;
  };
  const sides = ["left", "right"].map((id) => document.querySelector(`#${id} canvas`));
  const seen = [], from = performance.now();
  do {
    await new Promise(requestAnimationFrame);
    seen.push([...sides.map(number), Number(document.getElementById("frame").value)]);
  } while (performance.now() - from < milliseconds);
  return seen;
}"""
"""Numbers of the frames on both sides and the number that the page says, in each animation frame."""

SLEEPY = """(() => {
  const ask = HTMLVideoElement.prototype.requestVideoFrameCallback;
  HTMLVideoElement.prototype.requestVideoFrameCallback = function (callback) {
    return ask.call(this, (...told) => this.paused ? this.requestVideoFrameCallback(callback) : callback(...told));
  };
})()"""


@dataclass
class Served:
    """A study behind a running server, with one rater."""

    study: Study
    port: int
    link: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.link}"

    def votes(self) -> list[Vote]:
        """In the order they were made, and in that of the axes."""
        return sorted(self.study.votes(), key=lambda vote: (vote.at, AXES.index(vote.axis)))

    def choices(self) -> list[Choice]:
        """Votes as the rater saw them."""
        sides: dict[str, Choice] = {"a": "left", "b": "right"}
        return [
            "same" if vote.verdict == "same" else sides["a" if (vote.verdict == "good") == (vote.left == "a") else "b"]
            for vote in self.votes()
        ]


Serve = Callable[..., Served]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Entrant]:
    """Three entrants with one clip each, in another colour, of all prompts: the page does not care."""
    folder = tmp_path_factory.mktemp("samples")
    files = {name: _coded(folder / f"{name}.mp4", colour) for colour, name in enumerate(NAMES)}
    return [
        Entrant(name, [Sample(f"p{index}", f"A {index} of diamonds falls from the sky.", file) for index in range(17)])
        for name, file in files.items()
    ]


@pytest.fixture
def serve(samples: list[Entrant], tmp_path: Path) -> Iterator[Serve]:
    """Serves a study of so many pairs."""
    running = []

    def go(pairs: int = 3, prompt: str | None = None, rate: Rate = RATER) -> Served:
        entrants = [Entrant(one.name, one.clips[: -(-pairs // 3)]) for one in samples]
        if prompt is not None:
            entrants = [
                Entrant(one.name, [Sample(it.prompt_id, prompt, it.file) for it in one.clips]) for one in entrants
            ]
        study = make_study(tmp_path / "study", entrants, StudySettings(quota=pairs, repeats=0, gold=0))
        [(_, link)] = add_raters(study, ["rater"])
        server = uvicorn.Server(uvicorn.Config(application(study, rater=rate), log_level="critical"))
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return Served(study, listener.getsockname()[1], link)

    yield go
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Open]:
    """Opens a study; at the end of the test the page has asked nobody else and complained of nothing but refusals."""
    complaints: list[str] = []
    contexts = []

    def go(
        served: Served, width: int = 1200, height: int = 900, look: bool = True, script: str = "", **settings
    ) -> Page:
        origin = f"http://127.0.0.1:{served.port}/"
        context = chromium.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        context.add_init_script(script)
        page = context.new_page()
        page.on("console", lambda it: None if _expected(it.text) else complaints.append(it.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda it: None if it.url.startswith((origin, "data:")) else complaints.append(it.url))
        page.goto(served.url)
        if look:
            wait_for_pair(page, 1)
        return page

    yield go
    for context in contexts:
        context.close()
    assert complaints == []


def wait_for_pair(page: Page, number: int) -> None:
    """Until both videos of a pair are seen and can be voted on."""
    expect(page.locator("#status")).to_contain_text(f"Pair {number} of ", timeout=20_000)


def wait_for_frame(page: Page, number: int) -> None:
    expect(page.locator("#place")).to_have_text(f"{number + 1} / {FRAMES}", timeout=20_000)


def answer(page: Page, keys: str = "1231") -> None:
    for key in keys:
        page.keyboard.press(key)
    page.keyboard.press("Enter")


def check(page: Page) -> None:
    """What fades in is looked at when it is there: half of the way its contrast is half."""
    page.wait_for_function("!document.getAnimations().some(animation => animation.playState === 'running')")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_fifty_pairs_are_judged_by_keys_alone(serve, visit):
    served = serve(50)
    page = visit(served)
    wanted: list[Choice] = []
    for number in range(50):
        wait_for_pair(page, number + 1)
        keys = [(number + 2 * axis + number // 3) % 3 for axis in range(4)]
        wanted.extend(CHOICES[key] for key in keys)
        answer(page, "".join(str(key + 1) for key in keys))
    expect(page.locator("#sum")).to_contain_text("50 of 50 pairs")
    assert served.choices() == wanted
    assert [vote.axis for vote in served.votes()] == [*AXES] * 50
    assert len({vote.pair for vote in served.votes()}) == 50
    assert all(vote.seconds > 0 and "Chrome" in vote.client for vote in served.votes())


def test_pairs_are_judged_by_touch_on_a_phone(serve, visit):
    served = serve(3)
    page = visit(served, width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    for number in range(3):
        wait_for_pair(page, number + 1)
        for axis, name in enumerate(("Visual quality", "Motion quality", "Matches the words", "Overall")):
            group = page.get_by_role("group", name=name, exact=True)
            side = ("Top", "Same", "Bottom")[(number + axis) % 3]
            group.locator("label", has=page.get_by_role("radio", name=side)).tap()
        page.get_by_role("button", name="Send").tap()
    expect(page.locator("#sum")).to_contain_text("3 of 3 pairs")
    assert served.choices() == [CHOICES[(number + axis) % 3] for number in range(3) for axis in range(4)]


@pytest.mark.parametrize("speed", ["0.25", "0.5", "1", "2"])
def test_both_sides_always_show_the_same_frame(serve, visit, speed):
    page = visit(serve())
    page.get_by_label("Speed").select_option(speed)
    seen = page.evaluate(SEEN, 2000)
    assert {left - right for left, right, _ in seen} == {0}
    assert {left - said for left, _, said in seen} == {0}
    assert len({left for left, *_ in seen}) > 5


def test_a_loop_begins_anew_on_both_sides_at_once(serve, visit):
    page = visit(serve())
    page.keyboard.press("]")
    seen = page.evaluate(SEEN, 3000)
    assert any(after[0] < before[0] for before, after in pairwise(seen))
    assert all(left == right for left, right, _ in seen)
    page.keyboard.press("l")
    wait_for_frame(page, FRAMES - 1)
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert page.evaluate(SEEN, 0)[0] == [FRAMES - 1] * 3
    page.keyboard.press(" ")
    seen = page.evaluate(SEEN, 500)
    assert seen[-1][0] < FRAMES - 1
    assert all(left == right for left, right, _ in seen)


def test_frames_are_stepped_on_both_sides(serve, visit):
    page = visit(serve(), reduced_motion="reduce")
    wait_for_frame(page, 0)
    for key, number in ((".", 1), (".", 2), (".", 3), (",", 2), (".", 3)):
        page.keyboard.press(key)
        wait_for_frame(page, number)
        assert page.evaluate(SEEN, 0)[0] == [number] * 3
    for _ in range(12):  # faster than frames can be had: none of the steps is lost
        page.keyboard.press(".")
    wait_for_frame(page, 15)
    page.get_by_label("Frame", exact=True).press("End")
    wait_for_frame(page, FRAMES - 1)
    assert page.evaluate(SEEN, 0)[0] == [FRAMES - 1] * 3


def test_a_browser_that_delivers_no_frames_of_a_paused_video_shows_them_all_the_same(serve, visit):
    page = visit(serve(), script=SLEEPY, reduced_motion="reduce")
    for number in (1, 2):
        page.keyboard.press(".")
        wait_for_frame(page, number)
        assert page.evaluate(SEEN, 0)[0] == [number] * 3


def test_whoever_wants_little_motion_starts_the_videos(serve, visit):
    page = visit(serve(), reduced_motion="reduce")
    assert {tuple(one) for one in page.evaluate(SEEN, 400)} == {(0, 0, 0)}
    page.get_by_role("button", name="Play", exact=True).click()
    assert len({left for left, *_ in page.evaluate(SEEN, 1000)}) > 3


def test_a_reload_resumes_with_the_answers_that_were_chosen(serve, visit):
    served = serve(3)
    page = visit(served)
    answer(page)
    wait_for_pair(page, 2)
    prompt = page.locator("#prompt").inner_text()
    page.keyboard.press("3")
    page.reload()
    wait_for_pair(page, 2)
    assert page.locator("#prompt").inner_text() == prompt
    assert page.locator("#count").inner_text() == "1 of 3"
    expect(page.locator("#votes input:checked")).to_have_count(1)
    expect(page.locator("#missing")).to_have_text("Still open: Motion quality, Matches the words, Overall.")
    answer(page, "222")
    wait_for_pair(page, 3)
    assert served.choices() == ["left", "same", "right", "left", "right", "same", "same", "same"]


def test_undo_brings_back_the_pair_and_its_answers(serve, visit):
    served = serve(2)
    page = visit(served)
    assert page.get_by_role("button", name="Undo").is_disabled()
    answer(page, "1231")
    wait_for_pair(page, 2)
    answer(page, "2222")
    expect(page.locator("#sum")).to_contain_text("2 of 2")
    page.keyboard.press("u")
    wait_for_pair(page, 2)
    page.keyboard.press("u")
    wait_for_pair(page, 1)
    assert [it.get_attribute("value") for it in page.locator("#votes input:checked").all()] == [
        "left",
        "same",
        "right",
        "left",
    ]
    assert served.votes() == []
    page.get_by_role("group", name="Overall").get_by_role("radio", name="Right").check(force=True)
    page.keyboard.press("Enter")
    wait_for_pair(page, 2)
    assert served.choices() == ["left", "same", "right", "right"]


def test_a_vote_outlives_a_lost_connection(serve, visit):
    served = serve(2)
    page = visit(served)
    page.context.set_offline(True)
    answer(page)
    expect(page.locator("#status.bad")).to_contain_text("The server cannot be reached. Your answers are kept.")
    assert page.locator("#votes input:checked").count() == 4
    assert served.votes() == []
    page.context.set_offline(False)
    wait_for_pair(page, 2)
    assert served.choices() == ["left", "same", "right", "left"]


def test_a_vote_whose_answer_was_lost_is_not_doubled(serve, visit):
    served = serve(2)
    page = visit(served)
    sent: list[str | None] = []

    def lose(route: Route) -> None:
        sent.append(route.request.post_data)
        route.fetch()
        route.abort()

    page.route("**/api/vote", lose, times=2)
    answer(page)
    wait_for_pair(page, 2)
    assert len(sent) == 2
    assert served.choices() == ["left", "same", "right", "left"]


def test_another_judgement_elsewhere_is_told(serve, visit):
    served = serve(3)
    first, second = visit(served), visit(served)
    answer(first, "1111")
    wait_for_pair(first, 2)
    answer(second, "3333")
    wait_for_pair(second, 2)
    expect(second.locator("#status")).to_contain_text("judged differently on another screen")
    assert served.choices() == ["left"] * 4


def test_nobody_votes_before_both_videos_are_seen(serve, visit):
    served = serve(2)
    clips = sorted((served.study.folder / "clips").iterdir())
    for clip in clips:
        clip.rename(clip.with_suffix(".away"))
    page = visit(served, look=False)
    expect(page.locator("#status.bad")).to_contain_text("A video could not be loaded.")
    answer(page, "1111")
    assert page.locator("#votes input:checked").count() == 0
    assert page.get_by_role("button", name="Send").is_disabled()
    for clip in clips:
        clip.with_suffix(".away").rename(clip)
    page.get_by_role("button", name="Try again").click()
    wait_for_pair(page, 1)
    answer(page, "1111")
    wait_for_pair(page, 2)


def test_a_wrong_link_is_told(serve, visit):
    served = serve()
    page = visit(served)
    page.route("**/api/vote", lambda route: route.continue_(headers={**route.request.headers, "authorization": "no"}))
    answer(page)
    expect(page.locator("#status.bad")).to_contain_text("This link is not valid.")
    assert page.locator("#votes input:checked").count() == 4


def test_who_is_too_fast_is_told_to_wait_and_loses_nothing(serve, visit):
    served = serve(2, rate=Rate(2, 0.001))
    page = visit(served)
    answer(page)
    expect(page.locator("#status.bad")).to_have_text(
        re.compile(r"Too many requests .* Your answers are kept\. Trying again in \d+ s\.")
    )
    assert page.locator("#votes input:checked").count() == 4
    assert served.votes() == []


def test_time_in_which_the_page_was_hidden_is_not_counted(serve, visit):
    served = serve(2)
    began = time.monotonic()
    page = visit(served)
    turn = "it => { Object.defineProperty(document, 'hidden', { value: it, configurable: true });"
    turn += " document.dispatchEvent(new Event('visibilitychange')); }"
    page.evaluate(turn, True)
    page.wait_for_timeout(1500)
    page.evaluate(turn, False)
    answer(page)
    wait_for_pair(page, 2)
    assert 0 < served.votes()[0].seconds < time.monotonic() - began - 1.5


def test_keys_can_be_switched_off_and_the_rest_works_without_them(serve, visit):
    served = serve(2)
    page = visit(served)
    page.keyboard.press("?")
    page.get_by_role("checkbox", name=re.compile("Keys without Ctrl")).uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.locator("#votes input:checked").count() == 0
    page.reload()
    wait_for_pair(page, 1)
    for name in ("Visual quality", "Motion quality", "Matches the words", "Overall"):
        page.get_by_role("group", name=name).get_by_role("radio", name="Left").focus()
        page.keyboard.press("ArrowRight")
    assert [it.get_attribute("value") for it in page.locator("#votes input:checked").all()] == ["same"] * 4
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.id") != "send":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for_pair(page, 2)
    assert served.choices() == ["same"] * 4


def test_keys_do_not_take_over_what_a_control_does_with_them(serve, visit):
    page = visit(serve(), reduced_motion="reduce")
    group = page.get_by_role("group", name="Motion quality")
    group.get_by_role("radio", name="Left").focus()
    page.keyboard.press(" ")
    assert group.get_by_role("radio", name="Left").is_checked()
    page.keyboard.press("ArrowRight")
    assert group.get_by_role("radio", name="Same").is_checked()
    page.get_by_label("Speed").focus()
    page.keyboard.press("2")
    assert page.locator("#votes input:checked").count() == 1
    page.keyboard.press("Control+1")
    assert page.locator("#votes input:checked").count() == 1
    assert page.get_by_role("button", name="Play", exact=True).is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_bars_the_way_for_anybody(serve, visit, width, scheme):
    """axe finds nothing: while voting, in the help, at the end."""
    page = visit(serve(1), width=width, height=844, color_scheme=scheme, bypass_csp=True)
    page.keyboard.press("1")
    check(page)
    page.get_by_role("button", name="Help").click()
    check(page)
    page.keyboard.press("Escape")
    answer(page, "222")
    expect(page.locator("#sum")).to_contain_text("1 of 1")
    check(page)


@pytest.mark.parametrize("width", [320, 390, 768, 1200])
def test_nothing_sticks_out_and_everything_can_be_hit(serve, visit, width):
    page = visit(serve(prompt="w" * 300), width=width, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for control in page.locator("button:visible, select, input[type=range], .choices label").all():
        box = control.bounding_box()
        assert box is not None and box["width"] >= 44 and box["height"] >= 44, control.inner_html()


def test_the_page_says_nothing_of_whose_the_clips_are(serve, visit):
    served = serve()
    page = visit(served)
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    answer(page)
    wait_for_pair(page, 2)
    text = page.content() + "".join(urls)
    secrets = [*NAMES, *(clip.stem for clip in (served.study.folder / "clips").iterdir()), str(served.study.folder)]
    assert [it for it in secrets if it in text] == []


def test_what_happens_is_told_to_a_screen_reader(serve, visit):
    page = visit(serve(2))
    status = page.get_by_role("status")
    expect(status).to_have_text("Pair 1 of 2.")
    assert page.get_by_role("button", name="Send").is_disabled()
    page.keyboard.press("1")
    assert page.evaluate("document.activeElement.dataset.axis") == "motion"
    answer(page, "111")
    expect(status).to_have_text("Saved. Pair 2 of 2.")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.get_by_role("radio").count() == 12
    assert page.get_by_role("progressbar", name="1 of 2").count() == 1
    answer(page, "1111")
    expect(status).to_have_text("Saved. No more pairs.")


def _coded(path: Path, colour: int) -> Path:
    """The upper half bears the number of the frame in Gray code, the lower half a colour."""
    frames = np.full((FRAMES, 64, 96, 3), 40, np.uint8)
    frames[:, 32:, :, colour] = 170
    for number in range(FRAMES):
        for bit in range(BITS):
            frames[number, :32, 16 * bit : 16 * bit + 16] = 255 * ((number ^ (number >> 1)) >> bit & 1)
    write_clip(path, frames, FPS)
    return path


def _expected(words: str) -> bool:
    """Refusals, which the page tells itself, and what Chromium thinks of reading pixels."""
    return "Failed to load resource" in words or "willReadFrequently" in words
