"""A real server process: killed at any moment it has lost nothing that it answered."""

import http.client
import json
import signal
import socket
import threading
from pathlib import Path

import pytest
from sqlalchemy import select

from reelign.errors import ReelignError
from reelign.feedback.app import serve_study
from reelign.feedback.database import ANSWERS, VOTES
from reelign.feedback.study import open_study
from reelign.feedback.vote import AXES
from studies import served, study

LEFT = dict.fromkeys(AXES, "left")


def ask(at: str, token: str, path: str, body: dict | None = None) -> dict:
    connection = http.client.HTTPConnection(at.removeprefix("http://"), timeout=30)
    headers = {"Authorization": f"Bearer {token}", "X-Reelign": "1", "Content-Type": "application/json"}
    try:
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    finally:
        connection.close()
    assert answer.status == 200, content
    return content


def vote(at: str, token: str, showing: int) -> dict:
    return ask(at, token, "/api/vote", {"showing": showing, "votes": LEFT, "seconds": 1.0, "client": "test"})


def test_a_vote_that_was_answered_survives_kill_9_and_the_rater_goes_on(tmp_path):
    made, tokens = study(tmp_path)
    made.store.database.close()
    seen = []
    for _ in range(2):
        with served(made.folder) as (process, at):
            place = ask(at, tokens[0], "/api/next")
            assert place["done"] == len(seen)
            after = vote(at, tokens[0], place["showing"])
            process.send_signal(signal.SIGKILL)
            process.wait()
        seen.append(place["showing"])
        reopened = open_study(made.folder)
        votes = reopened.votes()
        reopened.store.database.close()
        assert len(votes) == 4 * len(seen)
        assert after["showing"] not in seen


def test_killed_amid_votes_each_rater_has_lost_at_most_the_one_that_was_being_sent(tmp_path):
    made, tokens = study(tmp_path, raters=[f"r{number}" for number in range(6)], prompts=40, quota=40)
    answered: dict[str, int] = {}
    enough = threading.Event()

    def rate(at: str, token: str) -> None:
        try:
            place = ask(at, token, "/api/next")
            while place["showing"] is not None:
                place = vote(at, token, place["showing"])
                answered[token] = place["done"]
                if sum(answered.values()) >= 60:
                    enough.set()
        except (OSError, http.client.HTTPException):
            pass  # the server was killed

    with served(made.folder) as (process, at):
        threads = [threading.Thread(target=rate, args=(at, token)) for token in tokens]
        for thread in threads:
            thread.start()
        assert enough.wait(60)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
    kept = [row.done for row in made.store.raters()]
    assert all(0 <= done - answered[token] <= 1 for done, token in zip(kept, tokens, strict=True))
    with made.store.database.reading() as connection:
        axes = list(connection.execute(select(ANSWERS.c.id, VOTES.c.axis).join(VOTES)))
        answers = list(connection.scalars(select(ANSWERS.c.showing)))
    assert len(set(answers)) == len(answers) == sum(kept)
    assert len(axes) == 4 * len(answers)


def test_a_taken_port_and_a_folder_that_is_no_study_are_one_message(tmp_path):
    made, _ = study(tmp_path)
    made.store.database.close()
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(ReelignError, match=r"Address already in use.*--port"),
    ):
        serve_study(made.folder, "127.0.0.1", other.getsockname()[1], lambda at: None)
    clip = next((made.folder / "clips").iterdir())
    clip.unlink()
    with pytest.raises(ReelignError, match=f"lacks 1 of its clips, the first is {clip.name}"):
        serve_study(made.folder, "127.0.0.1", 0, lambda at: None)
    with pytest.raises(ReelignError, match=r"is no study: study\.json is missing"):
        serve_study(tmp_path, "127.0.0.1", 0, lambda at: None)


def test_the_server_says_where_it_is_before_it_answers(tmp_path):
    made, tokens = study(tmp_path)
    with served(made.folder) as (process, at):
        assert process.stdout is not None
        assert process.stdout.readline().strip() == at
        answer = http.client.HTTPConnection(at.removeprefix("http://"), timeout=30)
        answer.request("GET", f"/r/{tokens[0]}")
        got = answer.getresponse()
        assert got.status == 200
        assert got.headers["Server"] is None
        answer.close()
    assert Path(made.folder / "links.txt").read_text().splitlines() == [
        f"{name}\t/r/{token}" for name, token in zip(("ann", "bob"), tokens, strict=True)
    ]
