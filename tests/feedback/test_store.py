"""The store on SQLite and on a real PostgreSQL."""

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

import postgres
from reelign.errors import ReelignError
from reelign.feedback.ballot import Ballot, Conflict, UnknownShowing
from reelign.feedback.database import ANSWERS, VOTES, create_database, open_database
from reelign.feedback.pairing import Planned
from reelign.feedback.store import PairRow, Store
from reelign.feedback.vote import AXES, Shown

LEFT, RIGHT, SAME = (dict.fromkeys(AXES, choice) for choice in ("left", "right", "same"))


@pytest.fixture(scope="module")
def socket_folder() -> Iterator[str]:
    with postgres.server() as folder:
        yield folder


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'votes.sqlite'}"
    return postgres.database(request.getfixturevalue("socket_folder"), request.node.name)


class Listed:
    """A store with two raters, whose lists have six pairs."""

    def __init__(self, url: str) -> None:
        self.store = Store(create_database(url, {"secret": "s"}))
        self.ballot = Ballot(self.store.database)
        sides = [(Shown("one", f"{n}a.mp4"), Shown("two", f"{n}b.mp4")) for n in range(6)]
        self.store.add_pairs([PairRow(f"pair-{n}", f"prompt {n}", *both, 8.0, 9) for n, both in enumerate(sides)])
        self.ann, self.bob = (self.store.add_rater(name, name) for name in ("ann", "bob"))
        for rater in (self.ann, self.bob):
            self.store.extend(rater, [Planned(f"pair-{n}", "b" if n % 2 else "a", "plain") for n in range(6)])

    def count(self, table) -> int:
        with self.store.database.reading() as connection:
            return connection.scalar(select(func.count()).select_from(table)) or 0


@pytest.fixture
def listed(url) -> Iterator[Listed]:
    made = Listed(url)
    yield made
    made.store.database.close()


def test_an_answer_becomes_one_vote_an_axis_in_the_order_of_the_pair(listed):
    place = listed.ballot.place(listed.ann)
    place = listed.ballot.vote(listed.ann, place.showing, LEFT | {"text": "same"}, 2.5, "a browser")
    listed.ballot.vote(listed.ann, place.showing, LEFT)
    first, second = listed.store.votes("clips")[:4], listed.store.votes("clips")[4:]
    assert {vote.axis: vote.verdict for vote in first} == dict.fromkeys(AXES, "good") | {"text": "same"}
    assert {vote.verdict for vote in second} == {"bad"}  # B was on the left
    assert [vote.left for vote in (first[0], second[0])] == ["a", "b"]
    assert (first[0].a, first[0].b) == (Shown("one", "clips/0a.mp4"), Shown("two", "clips/0b.mp4"))
    assert (first[0].rater, first[0].seconds, first[0].client, first[0].source) == ("ann", 2.5, "a browser", "person")


def test_a_rater_sees_the_same_pair_until_it_is_answered(listed):
    first = listed.ballot.place(listed.ann)
    assert listed.ballot.place(listed.ann) == first
    assert (first.done, first.total, first.prompt) == (0, 6, "prompt 0")
    after = listed.ballot.vote(listed.ann, first.showing, SAME)
    assert listed.ballot.place(listed.ann) == after
    assert (after.done, after.prompt) == (1, "prompt 1")
    assert listed.ballot.place(listed.bob).prompt == "prompt 0"


def test_the_same_answer_twice_is_one_answer(listed):
    showing = listed.ballot.place(listed.ann).showing
    places = [listed.ballot.vote(listed.ann, showing, LEFT) for _ in range(2)]
    assert places[0] == places[1]
    assert (listed.count(ANSWERS), listed.count(VOTES)) == (1, 4)


def test_another_answer_from_a_second_tab_changes_nothing(listed):
    showing = listed.ballot.place(listed.ann).showing
    listed.ballot.vote(listed.ann, showing, LEFT)
    with pytest.raises(Conflict, match="judged differently on another screen"):
        listed.ballot.vote(listed.ann, showing, RIGHT)
    assert {vote.verdict for vote in listed.store.votes()} == {"good"}


def test_only_pairs_of_the_own_list_that_were_seen_can_be_judged(listed):
    mine, other = listed.ballot.place(listed.ann).showing, listed.ballot.place(listed.bob).showing
    for showing in (other, 10**6):
        with pytest.raises(UnknownShowing):
            listed.ballot.vote(listed.ann, showing, LEFT)
    with pytest.raises(Conflict, match="not been shown yet"):
        listed.ballot.vote(listed.ann, mine + 1, LEFT)
    assert listed.count(ANSWERS) == 0


def test_an_answer_that_was_taken_back_is_history(listed):
    first = listed.ballot.place(listed.ann)
    second = listed.ballot.vote(listed.ann, first.showing, LEFT)
    back = listed.ballot.undo(listed.ann, second.showing)
    assert (back.showing, back.earlier, back.done) == (first.showing, LEFT, 0)
    assert listed.store.votes() == []
    assert listed.ballot.undo(listed.ann, second.showing) == back  # the same click once more
    listed.ballot.vote(listed.ann, first.showing, RIGHT)
    assert {vote.verdict for vote in listed.store.votes()} == {"bad"}
    assert (listed.count(ANSWERS), listed.count(VOTES)) == (2, 8)


def test_undo_goes_back_as_far_as_there_are_answers(listed):
    place = listed.ballot.place(listed.ann)
    for _ in range(6):
        place = listed.ballot.vote(listed.ann, place.showing, SAME)
    assert (place.showing, place.done) == (None, 6)
    for left in (5, 4, 3, 2, 1, 0, 0):
        place = listed.ballot.undo(listed.ann)
        assert place.done == left


def test_an_answer_is_kept_as_a_whole_or_not_at_all(listed):
    """The second row of the work violates a key; the work of those who write with it is kept."""
    showing = listed.ballot.place(listed.ann).showing

    def half(connection):
        row = {"showing": showing, "version": 7, "at": 0.0, "seconds": 0.0, "client": ""}
        connection.execute(ANSWERS.insert(), row)
        connection.execute(ANSWERS.insert(), row)

    turn = listed.store.database._turn
    with ThreadPoolExecutor(2) as pool:
        with turn:  # both wait, and are written together
            broken = pool.submit(listed.store.database.write, half)
            while len(listed.store.database._waiting) < 1:
                threading.Event().wait(0.01)
            whole = pool.submit(listed.ballot.vote, listed.ann, showing, LEFT)
            while len(listed.store.database._waiting) < 2:
                threading.Event().wait(0.01)
        with pytest.raises(IntegrityError):
            broken.result()
        assert whole.result().done == 1
    assert (listed.count(ANSWERS), listed.count(VOTES)) == (1, 4)


def test_many_raters_and_tabs_at_once_lose_nothing_and_double_nothing(listed):
    """Three tabs of each rater send the same answers at the same time, and one tab sends others."""

    def tab(rater: int, choices: dict) -> int:
        refused = 0
        while (place := listed.ballot.place(rater)).showing is not None:
            try:
                listed.ballot.vote(rater, place.showing, choices)
            except Conflict:
                refused += 1
        return refused

    with ThreadPoolExecutor(8) as pool:
        tabs = [pool.submit(tab, rater, LEFT) for rater in (listed.ann, listed.bob) for _ in range(3)]
        tabs += [pool.submit(tab, rater, RIGHT) for rater in (listed.ann, listed.bob)]
        [done.result() for done in tabs]
    assert listed.count(ANSWERS) == 12
    assert listed.count(VOTES) == 48
    by_showing = {}
    for vote in listed.store.votes():
        by_showing.setdefault((vote.rater, vote.pair), set()).add(vote.verdict)
    assert all(len(verdicts) == 1 for verdicts in by_showing.values())


def test_two_processes_may_write_to_one_study(listed, url):
    """A second store, with a lock of its own, as another process has it."""
    others = Ballot(open_database(url))
    with ThreadPoolExecutor(2) as pool:

        def all_of(ballot: Ballot, rater: int) -> None:
            place = ballot.place(rater)
            while place.showing is not None:
                place = ballot.vote(rater, place.showing, SAME)

        for done in [pool.submit(all_of, listed.ballot, listed.ann), pool.submit(all_of, others, listed.bob)]:
            done.result()
    others.database.close()
    assert listed.count(ANSWERS) == 12


def test_a_further_round_is_appended(listed):
    listed.store.add_pairs([PairRow("new", "another", Shown("one", "x"), Shown("two", "y"), 8.0, 9)])
    listed.store.extend(listed.ann, [Planned("new", "a", "plain")])
    assert [(row.name, row.done, row.total) for row in listed.store.raters()] == [("ann", 0, 7), ("bob", 0, 6)]
    assert listed.store.coverage()["new"] == 1
    with pytest.raises(ReelignError, match="a rater 'ann' already"):
        listed.store.add_rater("ann", "other")


def test_a_database_holds_one_study(listed, url):
    with pytest.raises(ReelignError, match="holds a study already"):
        create_database(url, {})
    reopened = Store(open_database(url))
    assert [pair.id for pair in reopened.pairs()] == [f"pair-{n}" for n in range(6)]
    assert reopened.fact("secret") == "s"
    reopened.database.close()


def test_tables_of_another_version_are_refused(listed, url):
    listed.store.database.write(lambda connection: connection.exec_driver_sql("UPDATE facts SET value = '99'"))
    with pytest.raises(ReelignError, match="has tables of version 99; this reelign knows 2"):
        open_database(url)


def test_a_database_that_is_no_study_or_away_is_one_message(tmp_path):
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).close()
    (tmp_path / "text.sqlite").write_text("no database at all, but long enough to be looked at" * 100)
    for url, said in (
        (f"sqlite:///{other}", "holds no study"),
        (f"sqlite:///{tmp_path / 'missing.sqlite'}", "there is no database"),
        (f"sqlite:///{tmp_path / 'text.sqlite'}", "file is not a database"),
        ("no address", "the address of the database cannot be read"),
        ("oddsql://host/name", "needs a driver that is not installed"),
        ("postgresql+psycopg://me:secret@127.0.0.1:9/name", "cannot reach the database .*me:\\*\\*\\*@"),
    ):
        with pytest.raises(ReelignError, match=said) as caught:
            open_database(url)
        assert "secret" not in str(caught.value)


def test_sqlite_is_flushed_at_every_answer(tmp_path):
    store = Store(create_database(f"sqlite:///{tmp_path / 'v.sqlite'}", {}))
    with store.database.reading() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]
    store.database.close()
