"""The list of one rater: what is shown next, and what becomes of an answer.

A list has one open place, the first that is not done. It is shown until it is answered, on any number of screens; an
answer that comes twice is one answer, and of two different ones the first holds. Taking back the last answer opens its
place again and keeps the old answer as history.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from reelign.errors import ReelignError
from reelign.feedback.database import ANSWERS, PAIRS, SHOWINGS, VOTES, Database, added
from reelign.feedback.vote import Axis, Side, Source, Verdict

# isort: split
from sqlalchemy import Connection, Row, bindparam, func, insert, select, update  # after `database`, as in `store`

Choice = Literal["left", "same", "right"]
"""A verdict as the rater sees it: which clip is better."""


@dataclass(frozen=True)
class Place:
    """Where a rater is.

    Attributes:
        showing: what is open; None when all is done.
        prompt, fps, frames: of its pair.
        done, total: showings of the rater's list.
        earlier: the choices that were taken back.
    """

    showing: int | None
    done: int
    total: int
    prompt: str = ""
    fps: float = 0.0
    frames: int = 0
    earlier: dict[Axis, Choice] = field(default_factory=dict)


class UnknownShowing(ReelignError):
    """The rater's list has no such showing."""


class Conflict(ReelignError):
    """The showing cannot be answered, or was answered otherwise."""


class Ballot:
    """The lists of all raters, seen from their side; safe to use from many threads."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database, self.now = database, now

    def progress(self, rater: int) -> tuple[int, int]:
        """How many showings of a rater's list are done, and of how many."""
        with self.database.reading() as connection:
            return _progress(connection, rater)

    def place(self, rater: int) -> Place:
        """Where a rater is; from now on the open showing counts as seen."""
        with self.database.reading() as connection:
            found = _open(connection, rater)
            if found is None or found.shown_at is not None:
                return _place(connection, rater, found)
        return self.database.write(lambda connection: self._show(connection, rater))

    def vote(
        self,
        rater: int,
        showing: int,
        choices: Mapping[Axis, Choice],
        seconds: float = 0.0,
        client: str = "",
        source: Source = "person",
    ) -> Place:
        """Keep an answer, and say where the rater is then. The same answer again changes nothing.

        Raises:
            UnknownShowing: it is not on the rater's list.
            Conflict: it has another answer, or it has not been seen yet.
        """

        def keep(connection: Connection) -> Place:
            found = _locked(connection, rater, showing)
            if found.shown_at is None:
                raise Conflict("this pair has not been shown yet; reload the page.")
            if found.done_at is None:
                self._answer(connection, found, choices, seconds, client, source)
            elif _choices(connection, found, found.version) != dict(choices):
                raise Conflict("this pair was judged differently on another screen; that judgement was kept.")
            return self._show(connection, rater)

        return self.database.write(keep)

    def undo(self, rater: int, showing: int | None = None) -> Place:
        """Take back a rater's last answer.

        Args:
            rater: whose.
            showing: what the rater sees instead of it: where something else is open, the answer has been taken back
                already and nothing happens. None takes back one more.
        """

        def reopen(connection: Connection) -> Place:
            seen = _open(connection, rater)
            if showing is None or (seen is not None and seen.id == showing):
                last = connection.scalar(_LAST, {"who": rater})
                connection.execute(_REOPEN, {"which": last})
            return self._show(connection, rater)

        return self.database.write(reopen)

    def sides(self, showing: int) -> tuple[str, str]:
        """Files of the left and of the right clip of a showing that there is."""
        with self.database.reading() as connection:
            row = connection.execute(_SIDES, {"which": showing}).one()
        return (row.a_clip, row.b_clip) if row.left == "a" else (row.b_clip, row.a_clip)

    def _show(self, connection: Connection, rater: int) -> Place:
        found = _open(connection, rater)
        if found is not None and found.shown_at is None:
            connection.execute(_SHOWN, {"which": found.id, "at": self.now()})
        return _place(connection, rater, found)

    def _answer(
        self,
        connection: Connection,
        found: Row[Any],
        choices: Mapping[Axis, Choice],
        seconds: float,
        client: str,
        source: Source,
    ) -> None:
        now = self.now()
        row = {"showing": found.id, "version": found.version, "at": now, "seconds": seconds, "client": client}
        row["source"] = source
        answer = added(connection, _ANSWER, row)
        verdicts = [
            {"answer": answer, "axis": axis, "verdict": _verdict(choice, found.left)}
            for axis, choice in choices.items()
        ]
        connection.execute(_VERDICTS, verdicts)
        connection.execute(_DONE, {"which": found.id, "at": now})


def _verdict(choice: Choice, left: Side) -> Verdict:
    """Good is A better; the left clip is A or B."""
    if choice == "same":
        return "same"
    return "good" if (choice == "left") == (left == "a") else "bad"


def choice_of(verdict: Verdict, left: Side) -> Choice:
    """A verdict as a rater says it who sees this side on the left."""
    if verdict == "same":
        return "same"
    return "left" if (verdict == "good") == (left == "a") else "right"


def _open(connection: Connection, rater: int) -> Row[Any] | None:
    """The first showing that is not done, with its pair."""
    return connection.execute(_OPEN, {"who": rater}).one_or_none()


def _locked(connection: Connection, rater: int, showing: int) -> Row[Any]:
    """A showing of the rater's list that nobody else changes before the end of the transaction."""
    found = connection.execute(_OWN, {"who": rater, "which": showing}).one_or_none()
    if found is None:
        raise UnknownShowing("this pair is not on your list; reload the page.")
    return found


def _place(connection: Connection, rater: int, found: Row[Any] | None) -> Place:
    done, total = _progress(connection, rater)
    if found is None:
        return Place(None, done, total)
    earlier = _choices(connection, found, found.version - 1) if found.version else {}
    return Place(found.id, done, total, found.prompt, found.fps, found.frames, earlier)


def _progress(connection: Connection, rater: int) -> tuple[int, int]:
    done, total = connection.execute(_PROGRESS, {"who": rater}).one()
    return done, total


def _choices(connection: Connection, found: Row[Any], version: int) -> dict[Axis, Choice]:
    rows = connection.execute(_CHOSEN, {"which": found.id, "version": version})
    return {axis: choice_of(verdict, found.left) for axis, verdict in rows}


# Statements are built once: on the way of a vote, building them would take longer than running them.
_WHO, _WHICH = SHOWINGS.c.rater == bindparam("who"), SHOWINGS.c.id == bindparam("which")
_OPEN = (
    select(SHOWINGS, PAIRS.c.prompt, PAIRS.c.fps, PAIRS.c.frames)
    .join(PAIRS)
    .where(_WHO, SHOWINGS.c.done_at.is_(None))
    .order_by(SHOWINGS.c.position)
    .limit(1)
)
_LAST = (
    select(SHOWINGS.c.id)
    .where(_WHO, SHOWINGS.c.done_at.is_not(None))
    .order_by(SHOWINGS.c.position.desc())
    .limit(1)
    .with_for_update()
)
_OWN = select(SHOWINGS).where(_WHO, _WHICH).with_for_update()
_SIDES = select(SHOWINGS.c.left, PAIRS.c.a_clip, PAIRS.c.b_clip).join(PAIRS).where(_WHICH)
_PROGRESS = select(func.count(SHOWINGS.c.done_at), func.count()).where(_WHO)
_SHOWN = update(SHOWINGS).where(_WHICH).values(shown_at=bindparam("at"))
_DONE = update(SHOWINGS).where(_WHICH).values(done_at=bindparam("at"))
_REOPEN = update(SHOWINGS).where(_WHICH).values(done_at=None, version=SHOWINGS.c.version + 1)
_ANSWER, _VERDICTS = insert(ANSWERS), insert(VOTES)
_CHOSEN = (
    select(VOTES.c.axis, VOTES.c.verdict)
    .join(ANSWERS)
    .where(ANSWERS.c.showing == bindparam("which"), ANSWERS.c.version == bindparam("version"))
)
