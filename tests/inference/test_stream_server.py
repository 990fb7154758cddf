"""A stream over HTTP: the frames are those of the stream, one client at a time, and nothing runs on without one."""

import json
import time

import cv2
import numpy as np
import pytest

from reelign.inference import stream_server
from reelign.models.base import VideoModel
from reelign.sampling.stream import Stream
from streaming import BLUE, FEW, RED, Served, causal_miniature, message, served


@pytest.fixture(scope="module")
def model() -> VideoModel:
    return causal_miniature()


def pictures(parts: list[bytes]) -> np.ndarray:
    return np.stack([cv2.imdecode(np.frombuffer(part, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for part in parts])


def begun(server: Served, prompt: str = RED, seed: int = 0):
    answer = server.ask("/stream", {"prompt": prompt, "seed": seed})
    assert answer.status == 200
    return message(answer)[0]["stream"], answer


def wait_until_still(server: Served) -> int:
    """Frames of the last stream once no more are made."""
    stream, until = server.settings.begun[-1], time.monotonic() + 30
    while True:
        made = stream.made
        time.sleep(0.5)
        if stream.made == made:
            return made
        assert time.monotonic() < until


def test_the_frames_are_those_of_the_stream(model):
    wanted = np.concatenate([chunk.frames for chunk in Stream(model, RED, 3, FEW, frames=15)])
    with served(model, frames=15) as server:
        answer = server.ask("/stream", {"prompt": RED, "seed": 3})
        hello, _ = message(answer)
        assert (hello["fps"], hello["width"], hello["height"]) == (8.0, 32, 32)
        heads, got = [], []
        while "end" not in (got_now := message(answer))[0]:
            heads.append(got_now[0])
            got += got_now[1]
        assert answer.read() == b""
        server.wait_for("ready")
    assert got_now[0]["end"] == "The stream has reached its end, 1.9 s."
    assert [head["first"] for head in heads] == [0, 1, 5, 9, 13]
    assert all(head["prompt"] == RED and head["first_frame"] > 0 and head["rate"] > 0 for head in heads)
    assert heads[-1]["cache"] > 0
    assert np.abs(pictures(got).astype(int) - wanted).mean() < 3  # what JPEG loses


def test_another_prompt_in_mid_stream_shows_from_the_next_block_on(model):
    with served(model) as server:
        name, answer = begun(server)
        assert message(answer)[0]["prompt"] == RED
        assert server.ask(f"/stream/{name}/prompt", {"prompt": BLUE}).status == 204
        seen = [message(answer)[0]["prompt"] for _ in range(6)]
    assert seen[-1] == BLUE
    assert seen == sorted(seen)  # "a small ..." after "a large ...": never back


def test_a_second_client_is_told_that_the_server_is_busy_and_has_its_turn_afterwards(model):
    with served(model) as server:
        _, answer = begun(server)
        refused = server.ask("/stream", {"prompt": BLUE})
        assert (refused.status, json.loads(refused.read())["error"][:5]) == (409, "busy:")
        assert server.status == "busy"
        answer.close()
        server.connections[0].close()
        server.wait_for("ready")
        _, answer = begun(server, BLUE)
        assert message(answer)[0]["prompt"] == BLUE


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_a_client_that_disappears_stops_its_generation(model, seconds):
    """Whether it goes while a block is made or while the server waits for the time of the next one."""
    with served(model, block_seconds=seconds) as server:
        _, answer = begun(server)
        for _ in range(2):
            message(answer)
        answer.close()
        server.connections[0].close()
        server.wait_for("ready")
        assert wait_until_still(server) <= 40
        assert len(server.settings.begun) == 1


def test_a_client_that_takes_nothing_stops_the_generator_and_loses_its_turn(model, monkeypatch):
    """Large frames fill the connection; what is made then is what was sent and one block."""
    monkeypatch.setattr(stream_server, "LEAD", 1e9)  # as fast as it can
    monkeypatch.setattr(stream_server, "PATIENCE", 2.0)
    monkeypatch.setattr(stream_server, "_jpeg", lambda frame: b"x" * 2**20)
    with served(model) as server:
        begun(server)
        time.sleep(1.0)
        made = server.settings.begun[-1].made
        server.wait_for("ready")
        assert made <= wait_until_still(server) <= 60  # 60 MiB: what two ends of a connection hold, and no more


def test_no_more_is_made_than_will_be_seen_soon(model):
    with served(model) as server:
        _, answer = begun(server)
        started, shown = time.monotonic(), 0
        while shown < 30:
            shown += len(message(answer)[1])
        assert time.monotonic() - started > (30 - 4) / 8 - stream_server.LEAD - 0.6


def test_a_generator_that_fails_says_so_and_the_next_stream_runs(model):
    with served(model, fail_after=5) as server:
        _, answer = begun(server)
        heads = [message(answer)[0] for _ in range(3)]
        assert heads[-1] == {"error": "the generator failed: out of memory"}
        server.wait_for("ready")
        server.settings.fail_after = None
        _, answer = begun(server)
        assert [message(answer)[0]["first"] for _ in range(3)] == [0, 1, 5]


def test_without_the_token_nothing_is_made(model):
    with served(model, token="sesame") as server:
        assert "Token" in server.ask("/").read().decode()
        for path in ("/stream", "/stream/x/prompt"):
            refused = server.ask(path, {"prompt": RED}, Authorization="Bearer guess")
            assert (refused.status, json.loads(refused.read())) == (401, {"error": "the token is missing or wrong."})
        begun(server)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        ({"prompt": ""}, {}, 422, "prompt"),
        ({"prompt": "x", "seed": -1}, {}, 422, "seed"),
        ({"prompt": "x", "steps": 4}, {}, 422, "steps"),
        (b"no json", {}, 422, "the request"),
        (b" " * 70_000, {}, 413, "more than 65536 bytes"),
        ({"prompt": "x"}, {"Content-Type": "text/plain"}, 415, "send JSON"),
    ],
    ids=str,
)
def test_what_cannot_be_understood_is_refused(model, body, headers, status, words):
    with served(model) as server:
        refused = server.ask("/stream", body, **headers)
        assert refused.status == status
        assert words in json.loads(refused.read())["error"]
        assert server.status == "ready"


def test_a_stream_that_has_ended_takes_no_prompt(model):
    with served(model) as server:
        assert server.ask("/stream/gone/prompt", {"prompt": RED}).status == 404


def test_the_page_shows_words_as_they_are(model):
    with served(model, prompt="</textarea><script>alert(1)</script>") as server:
        page = server.ask("/").read().decode()
    assert "&lt;/textarea&gt;&lt;script&gt;alert(1)" in page
    assert "http://" not in page
    assert "https://" not in page
