"""The HTTP side of a study: who may come in, what goes out, and what can go wrong on the way."""

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from reelign.feedback.app import application
from reelign.feedback.database import ANSWERS
from reelign.feedback.door import LIMIT, Accounts, Rate
from reelign.feedback.study import Study, open_study
from reelign.feedback.vote import AXES
from studies import study

LEFT = dict.fromkeys(AXES, "left")
FAST = Rate(10**6, 10**6)


class Rater:
    """A rater's browser."""

    def __init__(self, client: TestClient, token: str) -> None:
        self.client, self.headers = client, {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **headers: str):
        return self.client.get(path, headers=self.headers | headers)

    def post(self, path: str, body, **headers: str):
        return self.client.post(path, json=body, headers=self.headers | {"X-Reelign": "1"} | headers)

    def vote(self, showing: int, votes=LEFT, **more):
        return self.post("/api/vote", {"showing": showing, "votes": votes, "seconds": 1.5, "client": "test"} | more)


class Open:
    """A study and its application."""

    def __init__(self, made: Study, tokens: list[str]) -> None:
        self.study, self.tokens = made, tokens
        self.app = application(made, rater=FAST, stranger=FAST)
        self.client = TestClient(self.app, raise_server_exceptions=False)
        self.ann, self.bob = (Rater(self.client, token) for token in tokens)

    @property
    def answers(self) -> int:
        with self.study.store.database.reading() as connection:
            return connection.scalar(select(func.count()).select_from(ANSWERS)) or 0


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> tuple[Path, list[str]]:
    made, tokens = study(tmp_path_factory.mktemp("once"))
    made.store.database.close()
    return made.folder, tokens


@pytest.fixture
def fresh(once, tmp_path) -> tuple[Study, list[str]]:
    """A study in which nobody has voted, and the tokens of its raters."""
    return open_study(Path(shutil.copytree(once[0], tmp_path / "study"))), once[1]


@pytest.fixture
def opened(fresh) -> Iterator[Open]:
    made = Open(*fresh)
    yield made
    made.study.store.database.close()


def test_a_rater_goes_through_the_whole_list(opened):
    place, shown = opened.ann.get("/api/next").json(), []
    assert opened.ann.get("/api/info").json() == {"title": "Which video is better?", "done": 0, "total": place["total"]}
    while place["showing"] is not None:
        assert opened.ann.get("/api/next").json() == place
        assert (place["done"], place["can_undo"]) == (len(shown), bool(shown))
        assert (place["fps"], place["frames"], place["axes"]) == (8.0, 9, list(AXES))
        assert "votes" not in place
        shown.append(place["showing"])
        answer = opened.ann.vote(place["showing"])
        assert answer.status_code == 200
        place = answer.json()
    assert place == {"showing": None, "done": len(shown), "total": len(shown), "can_undo": True}
    votes = opened.study.votes()
    assert len(votes) == 4 * len(set(shown))
    assert {(vote.rater, vote.seconds, vote.client, vote.source) for vote in votes} == {("ann", 1.5, "test", "person")}
    assert {vote.kind for vote in votes} == {"plain", "gold", "repeat"}
    assert {(vote.axis, vote.expected) for vote in votes if vote.kind == "gold"} >= {("overall", "good")}
    assert all((vote.verdict == "good") == (vote.left == "a") for vote in votes)


def test_a_double_submit_is_harmless_and_two_tabs_cannot_disagree(opened):
    showing = opened.ann.get("/api/next").json()["showing"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: opened.ann.vote(showing), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    other = opened.ann.vote(showing, LEFT | {"text": "right"})
    assert other.status_code == 409
    assert "another screen" in other.json()["detail"]
    assert opened.answers == 1


def test_undo_shows_the_pair_again_with_its_choices(opened):
    first = opened.ann.get("/api/next").json()
    opened.ann.vote(first["showing"])
    back = opened.ann.post("/api/undo", {"showing": None}).json()
    assert back == first | {"votes": LEFT}
    assert opened.ann.get("/api/next").json() == back
    assert opened.study.votes() == []
    opened.ann.vote(first["showing"], LEFT | {"motion": "same"})
    assert len(opened.study.votes()) == 4


def test_a_showing_of_another_rater_does_not_exist(opened):
    theirs = opened.bob.get("/api/next").json()["showing"]
    assert opened.ann.vote(theirs).status_code == 404
    assert opened.answers == 0


@pytest.mark.parametrize("token", ["", "wrong", "Bearer", "\N{LATIN SMALL LETTER E WITH ACUTE}", "x" * 5000])
def test_without_the_token_there_is_nothing(opened, token):
    stranger = Rater(opened.client, "")
    stranger.headers = {"Authorization": f"Bearer {token}".encode()}
    found = [stranger.get("/api/next"), stranger.get("/api/info"), stranger.vote(1), stranger.post("/api/undo", {})]
    assert {answer.status_code for answer in found} == {401}
    assert all("This link is not valid" in answer.json()["detail"] for answer in found)
    page = opened.client.get("/r/wrong")
    assert page.status_code == 401
    assert "ask for a new one" in page.text


def test_a_foreign_page_cannot_act_for_a_rater(opened):
    """It can send no header of its own choice without asking first, which this server does not answer."""
    showing = opened.ann.get("/api/next").json()["showing"]
    body = {"showing": showing, "votes": LEFT, "seconds": 1, "client": ""}
    assert opened.client.post("/api/vote", json=body, headers=opened.ann.headers).status_code == 403
    assert opened.client.post("/api/vote", json=body, headers={"X-Reelign": "1"}).status_code == 401
    form = opened.ann.headers | {"X-Reelign": "1", "Content-Type": "text/plain"}
    assert opened.client.post("/api/vote", content=str(body), headers=form).status_code == 422
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = opened.client.options("/api/vote", headers=opened.ann.headers | asked)
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    assert "set-cookie" not in opened.client.get(f"/r/{opened.tokens[0]}").headers
    assert opened.answers == 0


def test_the_page_may_load_nothing_from_elsewhere(opened):
    answers = [opened.client.get(f"/r/{opened.tokens[0]}") for _ in range(2)]
    nonces = [
        re.search(r"script-src 'nonce-([\w-]+)'", answer.headers["content-security-policy"]) for answer in answers
    ]
    assert nonces[0] and nonces[1] and nonces[0][1] != nonces[1][1]
    assert f'<script nonce="{nonces[0][1]}">' in answers[0].text
    assert "default-src 'none'" in answers[0].headers["content-security-policy"]
    assert "frame-ancestors 'none'" in answers[0].headers["content-security-policy"]


def test_nothing_that_goes_out_names_a_model_a_file_or_a_folder(opened, tmp_path):
    """All answers that a rater can get, headers and the bytes of clips among them."""
    rater, place = opened.ann, opened.ann.get("/api/next").json()
    found = [opened.client.get(f"/r/{opened.tokens[0]}"), rater.get("/api/info"), rater.get("/api/next")]
    found += [rater.get("/clip/nothing"), rater.get("/nothing"), rater.post("/api/vote", {"showing": "x"})]
    while place["showing"] is not None:
        found += [rater.get(place[side]) for side in ("left", "right")]
        found.append(rater.vote(place["showing"]))
        place = found[-1].json()
    found += [rater.vote(1, LEFT | {"text": "same"}), rater.post("/api/undo", {})]
    pairs = opened.study.store.pairs()
    secrets = {side.clip.removesuffix(".mp4") for pair in pairs for side in (pair.a, pair.b)}
    secrets |= {"secret-model", "private-", "blurred", "frozen", "expected", tmp_path.name}
    secrets |= {
        str(tmp_path),
        "study.json",
        "votes.sqlite",
        pairs[0].id.split("-")[0],
        opened.study.store.fact("secret"),
    }
    for answer in found:
        said = b"\n".join(name + b": " + value for name, value in answer.headers.raw) + answer.content
        assert not [secret for secret in secrets if secret.encode() in said], answer.url
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "last-modified" not in answer.headers
        assert not re.search(rb"gold|repeat|plain", answer.content) or "/r/" in str(answer.url)


def test_a_hidden_repeat_looks_like_any_other_pair(opened):
    """Another name and another tag for the same clip, and nothing else to tell it by."""
    place, files = opened.ann.get("/api/next").json(), []
    while place["showing"] is not None:
        files += [opened.ann.get(place[side]) for side in ("left", "right")]
        place = opened.ann.vote(place["showing"]).json()
    assert len({file.content for file in files}) < len(files)
    for mark in ("etag", "url"):
        assert len({file.headers["etag"] if mark == "etag" else str(file.url) for file in files}) == len(files)


def test_a_clip_plays_from_any_byte(opened):
    place = opened.ann.get("/api/next").json()
    whole = opened.client.get(place["left"])
    assert (whole.status_code, whole.headers["content-type"]) == (200, "video/mp4")
    assert whole.headers["accept-ranges"] == "bytes"
    assert whole.headers["cache-control"].startswith("private")
    assert whole.content[4:8] == b"ftyp"
    size = len(whole.content)
    for asked, first, last in (
        (f"bytes=0-{size}", 0, size - 1),
        ("bytes=10-19", 10, 19),
        ("bytes=-7", size - 7, size - 1),
    ):
        part = opened.client.get(place["left"], headers={"Range": asked})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert part.content == whole.content[first : last + 1]
    beyond = opened.client.get(place["left"], headers={"Range": f"bytes={size}-"})
    assert beyond.status_code == 416
    assert beyond.headers["content-range"] == f"bytes */{size}"
    assert opened.client.get(place["left"], headers={"Range": "bytes=a-b"}).status_code == 400
    stale = opened.client.get(place["left"], headers={"Range": "bytes=0-1", "If-Range": '"other"'})
    assert (stale.status_code, len(stale.content)) == (200, size)
    tag = {"Range": "bytes=0-1", "If-Range": whole.headers["etag"]}
    assert opened.client.get(place["left"], headers=tag).status_code == 206


@pytest.mark.parametrize(
    "name",
    [
        *("..", "../study.json", "..%2fstudy.json", "..%2F..%2Fetc%2Fpasswd", "%2e%2e%2fvotes.sqlite", "/etc/passwd"),
        *("%2Fetc%2Fpasswd", "..\\study.json", "1-left", "%00", "1-left-" + 32 * "0", "1-both-" + 32 * "0"),
        "٣-left-" + 32 * "0",
    ],
)
def test_no_name_leads_out_of_the_study_or_to_a_clip_that_was_not_given(opened, name):
    assert opened.client.get(f"/clip/{name}").status_code == 404


def test_the_file_name_of_a_clip_and_the_name_for_another_showing_lead_nowhere(opened):
    place, clip = opened.ann.get("/api/next").json(), opened.study.store.pairs()[0].a.clip
    mark = place["left"].rpartition("-")[2]
    for name in (clip, f"clips/{clip}", f"{place['showing'] + 1}-left-{mark}", f"{place['showing']}-right-{mark}"):
        assert opened.client.get(f"/clip/{name}").status_code == 404


def test_a_request_that_is_too_large_or_makes_no_sense_is_told_so(opened):
    showing = opened.ann.get("/api/next").json()["showing"]
    large = opened.ann.vote(showing, client="x" * LIMIT)
    assert (large.status_code, large.json()) == (413, {"detail": f"the request has more than {LIMIT} bytes."})
    for wrong, said in (
        ({"votes": {"text": "left"}}, "visual, motion, overall is missing"),
        ({"votes": LEFT | {"beauty": "left"}}, "beauty"),
        ({"votes": LEFT | {"text": "good"}}, "votes.text"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "soon"}, "seconds"),
        ({"showing": 2**80}, "showing"),
        ({"client": "x" * 201}, "client"),
        ({"more": 1}, "more"),
    ):
        answer = opened.ann.vote(**({"showing": showing} | wrong))
        assert answer.status_code == 422
        assert said in answer.json()["detail"]
    headers = opened.ann.headers | {"X-Reelign": "1", "Content-Type": "application/json"}
    for content in (b"{", b"\xff\xfe", b'{"showing": 1, "votes": {}, "seconds": NaN}', b"[]", b""):
        answer = opened.client.post("/api/vote", content=content, headers=headers)
        assert answer.status_code in (400, 422)
        assert isinstance(answer.json()["detail"], str)
    assert opened.answers == 0


def test_what_cannot_be_printed_is_left_out_and_days_are_not_believed(opened):
    showing = opened.ann.get("/api/next").json()["showing"]
    assert opened.ann.vote(showing, client="a\x00b\nc\u202ed", seconds=1e9).status_code == 200
    assert {(vote.client, vote.seconds) for vote in opened.study.votes()} == {("abcd", 86400.0)}


def test_a_study_may_ask_about_some_axes_only(tmp_path):
    made = Open(*study(tmp_path, axes=["motion", "overall"]))
    place = made.ann.get("/api/next").json()
    assert place["axes"] == ["motion", "overall"]
    assert made.ann.vote(place["showing"]).status_code == 422
    assert made.ann.vote(place["showing"], {"motion": "left", "overall": "same"}).status_code == 200
    assert {vote.axis for vote in made.study.votes()} == {"motion", "overall"}


def test_who_asks_too_often_waits_and_nobody_else_does(fresh):
    made, tokens = fresh
    client = TestClient(application(made, rater=Rate(5, 0.01), stranger=Rate(3, 0.01)))
    ann, bob, wrong = (Rater(client, token) for token in (*tokens, "wrong"))
    answers = [ann.get("/api/info") for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 100
    assert "wait" in answers[-1].json()["detail"]
    assert bob.get("/api/info").status_code == 200
    assert [wrong.get("/api/info").status_code for _ in range(5)] == [401] * 3 + [429] * 2
    assert client.get("/r/wrong").status_code == 429
    assert bob.get("/api/info").status_code == 200  # who is known may come in, whatever others at that address do


def test_guessing_names_of_clips_counts_as_guessing_tokens(fresh):
    client = TestClient(application(fresh[0], stranger=Rate(3, 0.01)))
    for number in range(3):
        assert client.get(f"/clip/{number}-left-{'0' * 32}").status_code == 404
    assert client.get("/r/wrong").status_code == 429


def test_an_account_fills_up_again_and_forgets_who_is_long_gone():
    now = [0.0]
    accounts = Accounts(Rate(2, 0.5), most=2, now=lambda: now[0])
    assert [accounts.wait("a") for _ in range(3)] == [0.0, 0.0, 2.0]
    now[0] = 1.0
    assert accounts.wait("a") == 1.0
    now[0] = 2.0
    assert [accounts.wait("a") for _ in range(2)] == [0.0, 2.0]
    for other in "bcd":
        accounts.wait(other)
    assert len(accounts._left) == 2


def test_a_host_header_cannot_open_the_door(opened):
    """The path that is checked is the one that is served, whatever the client says the server is called."""
    for host in ("evil/r/", "x/clip", "a?b", "127.0.0.1#"):
        assert opened.client.get("/api/next", headers={"Host": host}).status_code == 401


def test_a_database_that_fails_is_told_apart_from_a_wrong_link(opened):
    showing = opened.ann.get("/api/next").json()["showing"]
    file = opened.study.folder / "votes.sqlite"
    opened.study.store.database.close()
    kept = file.read_bytes()
    for name in ("votes.sqlite-wal", "votes.sqlite-shm"):
        (opened.study.folder / name).unlink(missing_ok=True)
    file.write_bytes(b"damaged" * 1000)
    answer = opened.ann.vote(showing)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert opened.bob.get("/api/next").status_code == 503
    opened.study.store.database.close()
    file.write_bytes(kept)
    assert opened.ann.vote(showing).status_code == 200
