"""What a study asks of whom, and what was answered; `ballot` is what one rater sees of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from reelign.errors import ReelignError
from reelign.feedback.database import ANSWERS, FACTS, PAIRS, RATERS, SHOWINGS, VOTES, Database, added
from reelign.feedback.pairing import Candidate, Planned
from reelign.feedback.vote import Axis, Kind, Shown, Side, Verdict, Vote

# isort: split
from sqlalchemy import Connection, Row, func, insert, select, update  # after `database`, which says what is missing


@dataclass(frozen=True)
class PairRow:
    """Two clips of one prompt.

    Attributes:
        id: of the pair.
        prompt: what both clips should show.
        a, b: whose clips they are, and their files inside the study's `clips/`.
        fps, frames: of both, as the page steps through them.
        expected: the known verdicts of a gold pair.
    """

    id: str
    prompt: str
    a: Shown
    b: Shown
    fps: float
    frames: int
    expected: dict[Axis, Verdict] = field(default_factory=dict)

    @property
    def gold(self) -> bool:
        """Whether the answer is known, at least on one axis."""
        return bool(self.expected)

    @property
    def candidate(self) -> Candidate:
        """The pair as scheduling sees it."""
        return Candidate(self.id, self.prompt, (self.a.model, self.b.model))


@dataclass(frozen=True)
class RaterRow:
    """A rater and how far the list is done."""

    id: int
    name: str
    done: int
    total: int


@dataclass(frozen=True)
class ShowingRow:
    """A place of a rater's list: which pair, as what, and which clip on the left."""

    pair: str
    left: Side
    kind: Kind


class Store:
    """The open study of one database; safe to use from many threads."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database, self.now = database, now

    def fact(self, key: str) -> str:
        """What was kept under a name when the study was made."""
        with self.database.reading() as connection:
            return connection.execute(select(FACTS.c.value).where(FACTS.c.key == key)).scalar_one()

    def add_pairs(self, pairs: Sequence[PairRow]) -> None:
        """Add pairs; no rater sees them before they are on a list."""
        rows = [
            {
                "id": pair.id,
                "prompt": pair.prompt,
                "a": pair.a.model,
                "a_clip": pair.a.clip,
                "b": pair.b.model,
                "b_clip": pair.b.clip,
                "kind": "gold" if pair.gold else "plain",
                "expected": json.dumps(pair.expected),
                "fps": pair.fps,
                "frames": pair.frames,
            }
            for pair in pairs
        ]
        self.database.write(lambda connection: connection.execute(insert(PAIRS), rows))

    def pairs(self) -> list[PairRow]:
        """All pairs, in a fixed order."""
        with self.database.reading() as connection:
            return [_pair(row) for row in connection.execute(select(PAIRS).order_by(PAIRS.c.id))]

    def coverage(self) -> dict[str, float]:
        """How often each plain pair is on a list, and how often it has been answered, summed."""
        count = func.count() + func.count(SHOWINGS.c.done_at)
        query = select(SHOWINGS.c.pair, count).where(SHOWINGS.c.kind == "plain").group_by(SHOWINGS.c.pair)
        with self.database.reading() as connection:
            return {pair: float(number) for pair, number in connection.execute(query)}

    def add_rater(self, name: str, token: str) -> int:
        """Add a rater with an empty list; `token` is the hash of the link's.

        Raises:
            ReelignError: the study has a rater of that name.
        """
        row = {"name": name, "token": token, "quota": 0, "created": self.now()}

        def add(connection: Connection) -> int:
            if connection.scalar(select(RATERS.c.id).where(RATERS.c.name == name)) is not None:
                raise ReelignError(f"the study has a rater {name!r} already; give the new one another name.")
            return added(connection, insert(RATERS), row)

        return self.database.write(add)

    def extend(self, rater: int, planned: Sequence[Planned]) -> None:
        """Append showings to a rater's list."""

        def add(connection: Connection) -> None:
            first = connection.scalar(select(func.count()).where(SHOWINGS.c.rater == rater)) or 0
            rows = [
                {
                    "rater": rater,
                    "position": first + place,
                    "pair": one.pair,
                    "left": one.left,
                    "kind": one.kind,
                    "version": 0,
                }
                for place, one in enumerate(planned)
            ]
            connection.execute(insert(SHOWINGS), rows)
            connection.execute(update(RATERS).where(RATERS.c.id == rater).values(quota=first + len(rows)))

        self.database.write(add)

    def given(self, rater: int) -> set[str]:
        """Pairs that are on a rater's list."""
        with self.database.reading() as connection:
            return set(connection.scalars(select(SHOWINGS.c.pair).where(SHOWINGS.c.rater == rater)))

    def raters(self) -> list[RaterRow]:
        """All raters, in the order they were added."""
        done = func.count(SHOWINGS.c.done_at)
        query = (
            select(RATERS.c.id, RATERS.c.name, done, func.count(SHOWINGS.c.id))
            .join(SHOWINGS, isouter=True)
            .group_by(RATERS.c.id, RATERS.c.name)
            .order_by(RATERS.c.id)
        )
        with self.database.reading() as connection:
            return [RaterRow(*row) for row in connection.execute(query)]

    def showing(self, which: int) -> ShowingRow:
        """A place of a list that there is, by its id."""
        query = select(SHOWINGS.c.pair, SHOWINGS.c.left, SHOWINGS.c.kind).where(SHOWINGS.c.id == which)
        with self.database.reading() as connection:
            return ShowingRow(*connection.execute(query).one())

    def rater(self, token: str) -> int | None:
        """Whose link holds the token with this hash."""
        with self.database.reading() as connection:
            return connection.scalar(select(RATERS.c.id).where(RATERS.c.token == token))

    def votes(self, clips: str = "clips") -> list[Vote]:
        """All votes that count, in the order they were made; `clips` is the folder of the files."""
        with self.database.reading() as connection:
            return [_vote(row, clips) for row in connection.execute(_COUNTED)]


def _pair(row: Row[Any]) -> PairRow:
    sides = Shown(row.a, row.a_clip), Shown(row.b, row.b_clip)
    return PairRow(row.id, row.prompt, *sides, row.fps, row.frames, json.loads(row.expected))


def _vote(row: Any, clips: str) -> Vote:
    return Vote(
        pair=row.pair,
        prompt=row.prompt,
        a=Shown(row.a, f"{clips}/{row.a_clip}"),
        b=Shown(row.b, f"{clips}/{row.b_clip}"),
        axis=row.axis,
        verdict=row.verdict,
        rater=row.rater,
        seconds=row.seconds,
        left=row.left,
        kind=row.kind,
        source=row.source,
        at=row.at,
        client=row.client,
        expected=json.loads(row.expected).get(row.axis),
    )


_PAIR = [column for column in PAIRS.c if column.name not in ("id", "kind")]
_COUNTED = (
    select(
        *(SHOWINGS.c.pair, SHOWINGS.c.left, SHOWINGS.c.kind, RATERS.c.name.label("rater")),
        *(ANSWERS.c.at, ANSWERS.c.seconds, ANSWERS.c.client, ANSWERS.c.source, VOTES.c.axis, VOTES.c.verdict),
        *_PAIR,
    )
    .select_from(VOTES)
    .join(ANSWERS)
    .join(SHOWINGS, (SHOWINGS.c.id == ANSWERS.c.showing) & (SHOWINGS.c.version == ANSWERS.c.version))
    .join(RATERS)
    .join(PAIRS)
    .where(SHOWINGS.c.done_at.is_not(None))
    .order_by(ANSWERS.c.at, ANSWERS.c.id, VOTES.c.axis)
)
